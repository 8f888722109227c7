"""The verbs of ``failoverctl``, one function each. ``ctl.VERBS`` has their names and arguments.

A function raises FailedError if an order is refused or impossible; errors of other modules (ControlError, ConfigError,
...) pass through to ``ctl.main``.
"""

import argparse
import json
import sys
import time

from check_failover import control, syncstate
from check_failover.admin import FailedError, reports, show
from check_failover.admin.doctor import doctor
from check_failover.admin.finding import LOOK_MORE, LOOK_TIMEOUT, journal
from check_failover.admin.orders import operator
from check_failover.config import Config
from check_failover.control import MAX_HISTORY, ControlError
from check_failover.model import State, printable
from check_failover.records import JournalEntry, service_statuses, to_json


def status(config: Config, arguments: argparse.Namespace) -> None:
    services = [config.service(name) for name in arguments.names] or config.services
    message = {"verb": "status", **({"service": services[0].name} if len(services) == 1 else {})}
    limit = LOOK_TIMEOUT + LOOK_MORE * len(config.services)
    reply = control.ask(config.controller.redirector_socket, message, limit)
    redirector = service_statuses(reply)
    try:
        sniffer = control.ask(config.controller.sniffer_socket, message, limit)["services"]
        away = None
    except ControlError as error:
        sniffer, away = {}, str(error)
    if arguments.json:
        names, replies = [service.name for service in services], reply["services"]
        print(json.dumps({n: {"redirector": replies.get(n), "sniffer": sniffer.get(n)} for n in names}, indent=2))
        return
    briefs, now = [], time.time()
    for service in services:
        found, seen, more = redirector.get(service.name), sniffer.get(service.name), []
        if service.sync is not None:
            record = syncstate.read(config.controller.state_dir, service.name)
            more = [syncstate.judge(record, now, *syncstate.limits(service))]
        if not arguments.names:
            synced = [(level, f"sync: {text}") for level, text in more if level is not State.OK]
            briefs.append(show.brief(service, found, [*([] if away else show.seen(seen)), *synced]))
        elif found is None:
            raise FailedError(f"{service.name}: {show.UNKNOWN}")
        else:
            _show(*show.status(service, found, seen, away, now), *(f"  sync: {s.name}: {text}" for s, text in more))
    if briefs:
        _show(*([f"failover-sniffer: away: {away}"] if away else []), *show.briefs(briefs, every=arguments.all))


def history(config: Config, arguments: argparse.Namespace) -> None:
    chosen = [config.service(arguments.service)] if arguments.service else config.services
    if arguments.limit < 1:
        raise FailedError("--limit must be at least 1")
    wanted = arguments.show or arguments.report
    entries = journal(config, MAX_HISTORY if wanted else min(arguments.limit * len(config.services), MAX_HISTORY))
    if wanted:
        found = [entry for entry in entries if entry.id == wanted]
        if not found:
            raise FailedError(f"history: no entry {wanted!r}; failoverctl history lists them")
        if arguments.report:
            print(reports.page(config, found[-1], entries), end="")
        else:
            _show(*show.entry(found[-1]), *_evidence(config, found[-1]))
        return
    names = {service.name for service in chosen}
    for entry in [entry for entry in entries if entry.service in names][-arguments.limit :]:
        _show(json.dumps(to_json(entry)) if arguments.json else show.line(entry))


def _evidence(config: Config, entry: JournalEntry) -> list[str]:
    """The sniffer's evidence for an attempt."""
    base = reports.evidence_base(config, entry)
    if base is None:
        return []
    try:
        kept = show.evidence(control.parse(syncstate.read_file(base.with_suffix(".json"))))
    except (OSError, ValueError, ControlError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        return [f"  evidence: {base}.json: cannot read: {reason}"]
    return [*kept, f"  packets: tshark -r {base}.pcap"]


def write_reports(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.follow:
        reports.follow(config)
    reports.publish(config)


def drill(config: Config, arguments: argparse.Namespace) -> None:
    from check_failover.admin.drill import DrillRun

    service, by = config.service(arguments.service), operator()
    client = arguments.client or service.test_client
    print(f"{service.name}: drill, ordered by {by}", flush=True)
    failed = DrillRun(config, service, by, client, arguments.wait, arguments.limit, arguments.sms).run()
    if failed is not None:
        raise FailedError(f"{service.name}: drill failed at the step: {failed}")
    print(f"{service.name}: drill passed")


def run_doctor(config: Config, arguments: argparse.Namespace) -> None:
    code = doctor(config, arguments.nagios_cfg or config.monitoring["nagios_cfg"])
    sys.stdout.flush()
    sys.exit(code)


def _show(*lines: str) -> None:
    """Print lines that contain texts from elsewhere."""
    print(printable("\n".join(lines), kept="\n"))
