"""The verbs of ``failoverctl``, one function each. ``ctl.VERBS`` has their names and arguments.

A function raises FailedError if an order is refused or impossible; errors of other modules (ControlError, ConfigError,
...) pass through to ``ctl.main``.
"""

import argparse
import json
import os
import sys
import time
from typing import Any

from check_failover import control, syncstate
from check_failover.admin import FailedError, remote, reports, show
from check_failover.admin.director import basket
from check_failover.admin.doctor import doctor
from check_failover.admin.finding import LOOK_TIMEOUT, journal
from check_failover.admin.icinga2_objects import icinga2
from check_failover.admin.objects import nagios
from check_failover.config import Config
from check_failover.control import MAX_HISTORY, ControlError
from check_failover.model import Service, printable
from check_failover.records import JournalEntry, service_statuses, to_json
from check_failover.rights import user_name

REPLY_TIMEOUT = 20.0  # seconds; a flip may wait for a probe of either server
PROGRESS_EVERY = 0.5  # seconds between two lines during a drain


def status(config: Config, arguments: argparse.Namespace) -> None:
    services = _chosen(config, arguments.service)
    reply = control.ask(config.controller.redirector_socket, {"verb": "status"}, LOOK_TIMEOUT)
    redirector = service_statuses(reply)
    try:
        sniffer = control.ask(config.controller.sniffer_socket, {"verb": "status"}, LOOK_TIMEOUT)["services"]
        away = None
    except ControlError as error:
        sniffer, away = {}, str(error)
    if arguments.json:
        names, replies = [service.name for service in services], reply["services"]
        print(json.dumps({n: {"redirector": replies.get(n), "sniffer": sniffer.get(n)} for n in names}, indent=2))
        return
    for service in services:
        if service.name not in redirector:
            raise FailedError(f"{service.name}: the redirector does not know it: restart failover-redirector")
        found = redirector[service.name]
        _show(*show.status(service, found, sniffer.get(service.name), away, time.time()))
        if service.sync is not None:
            now, record = time.time(), syncstate.read(config.controller.state_dir, service.name)
            level, text = syncstate.judge(record, now, *syncstate.limits(service))
            _show(f"  sync: {level.name}: {text}")


def fail_over(config: Config, arguments: argparse.Namespace) -> None:
    service = config.service(arguments.service)
    message: dict[str, Any] = {"verb": "fail-over", "service": service.name, "by": _by(), "manual": True}
    reply = _ask(config, message)
    if reply["reason"] == "standby-not-probed":  # the sniffer is away: probe here
        from check_failover.checks import ProbeError, probe_function

        check = service.check
        try:
            probe = probe_function(check)(service.standby, check.options, check.timeout)
        except ProbeError as error:
            raise FailedError(f"cannot probe the standby: {error}") from None
        reply = _ask(config, {**message, "facts": {"standby_ok": probe.passed}})
    _print_text(reply)


def drain(config: Config, arguments: argparse.Namespace) -> None:
    """``drain`` and ``fail-back``: give the order and show the open connections, once or until none is left.

    Ctrl-C ends only the display.
    """
    name = config.service(arguments.service).name
    order = {"verb": arguments.verb, "service": name, "by": _by(), "manual": True, "deadline": arguments.deadline}
    _print_text(_ask(config, order))
    shown = None
    while (going_on := service_statuses(_ask(config, {"verb": "status"}))[name].drain) is not None:
        if going_on.left != shown:
            print(show.drain(name, going_on), flush=True)
            shown = going_on.left
        if not arguments.wait:
            return
        time.sleep(PROGRESS_EVERY)
    print(f"{name}: no open connection is left to wait for")


def hold(config: Config, arguments: argparse.Namespace) -> None:
    """``hold`` and ``release``."""
    order = {"verb": arguments.verb, "service": config.service(arguments.service).name, "by": _by()}
    _show(_ask(config, {**order, "reason": vars(arguments).get("reason")})["text"])


def history(config: Config, arguments: argparse.Namespace) -> None:
    chosen = {service.name for service in _chosen(config, arguments.service)}
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
    for entry in [entry for entry in entries if entry.service in chosen][-arguments.limit :]:
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

    service, by = config.service(arguments.service), _by()
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


def check_config(config: Config, _arguments: argparse.Namespace) -> None:
    print("\n".join(show.config(config)))


def nagios_config(config: Config, arguments: argparse.Namespace) -> None:
    print(nagios(config, templates=not arguments.services_only))


def icinga2_config(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.director:
        print(basket(config), end="")
        return
    print(icinga2(config, templates=not arguments.services_only, endpoint=arguments.endpoint))


def remote_config(config: Config, arguments: argparse.Namespace) -> None:
    site = remote.Site(arguments.controller, arguments.plugins)
    print(remote.WAYS[arguments.way][arguments.on](config, site))


def _show(*lines: str) -> None:
    """Print lines that contain texts from elsewhere."""
    print(printable("\n".join(lines), kept="\n"))


def _chosen(config: Config, name: str | None) -> tuple[Service, ...]:
    return config.services if name is None else (config.service(name),)


def _ask(config: Config, message: dict[str, Any]) -> dict[str, Any]:
    return control.ask(config.controller.redirector_socket, message, timeout=REPLY_TIMEOUT)


def _print_text(reply: dict[str, Any]) -> None:
    """Print the outcome of an order; a refusal is a failure, "already there" is not."""
    if reply.get("flipped"):
        print(reply.get("line") or reply.get("text"))
        if reply.get("error"):
            raise FailedError(f"flipped, but {reply['error']}")
    elif reply["reason"] == "already-there":
        print(reply["text"])
    else:
        raise FailedError(f"refused, {reply['reason']}: {reply['text']}")


def _by() -> str:
    """The operator's user name, also behind sudo (sudo(8), SUDO_USER)."""
    if os.getuid() == 0 and "SUDO_USER" in os.environ:
        return os.environ["SUDO_USER"]
    return user_name(os.getuid())
