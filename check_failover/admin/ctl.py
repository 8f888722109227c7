"""failoverctl: look at the fail-over controller and steer it by hand.

What it does goes through the daemons' sockets; it has no privilege of its own. Exit code: 0 done, 1 refused or not
possible (one line on stderr says why), 2 wrong command line. ``doctor`` has its own, see there.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_failover import __version__, control
from check_failover.admin import remote, reports, show
from check_failover.admin.director import basket
from check_failover.admin.doctor import NAGIOS_CFG, doctor
from check_failover.admin.icinga2_objects import icinga2
from check_failover.admin.objects import ObjectsError, nagios
from check_failover.admin.reports import ReportsError
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.control import ControlError
from check_failover.model import Service, Target
from check_failover.records import JournalEntry, RecordError, journal_entries, service_statuses, to_json

REPLY_TIMEOUT = 20.0  # seconds; a flip may wait for a probe of either server
PROGRESS_EVERY = 0.5  # seconds between two looks at a drain


class FailedError(Exception):
    """Refused or impossible: one line, exit code 1."""


def main() -> None:
    """Entry point of ``failoverctl``."""
    arguments = _parser().parse_args()
    try:
        config = load(arguments.config)
        arguments.act(config, arguments)
        sys.stdout.flush()
    except (ConfigError, ControlError, ObjectsError, ReportsError, RecordError, FailedError) as error:
        sys.exit(f"failoverctl: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the pager was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="failoverctl", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--config", type=Path, default=Path(DEFAULT_PATH), help="default: %(default)s")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, act: Callable[[Config, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        made.set_defaults(act=act)
        return made

    made = command(
        "status", _status, "where the traffic goes, what is held or pending, whether a fail-back is possible"
    )
    made.add_argument("service", nargs="?", help="one service; all without it")
    made.add_argument("--json", action="store_true", help="everything, as JSON")
    for name, act, text in (
        ("fail-over", _fail_over, "send a service's traffic to its standby, now"),
        ("drain", _drain, "send new connections to the standby and let open ones finish on the primary"),
        ("fail-back", _fail_back, "drain the other way: a service's traffic back to its primary, when it is safe"),
        ("release", _release, "allow flips again"),
    ):
        made = command(name, act, text)
        made.add_argument("service")
        if name in ("drain", "fail-back"):
            made.add_argument(
                "--deadline", type=float, metavar="SECONDS", help="then cut the connections that are left"
            )
            made.add_argument("--wait", action="store_true", help="show how many are left until none is")
    made = command("hold", _hold, "forbid any flip of a service until it is released")
    made.add_argument("service")
    made.add_argument("--reason", default="", help="stands in status, journal and refusals")
    made = command("history", _history, "what was ordered, done and refused, newest last")
    made.add_argument("service", nargs="?")
    made.add_argument("--limit", type=int, default=20, metavar="N", help="how many entries (%(default)s)")
    made.add_argument("--show", metavar="ID", help="everything about one entry")
    made.add_argument("--report", metavar="ID", help="print one HTML page of that incident")
    made.add_argument("--json", action="store_true", help="as JSON lines")
    made = command("reports", _reports, "bring the pages of incidents in report_dir up to date")
    made.add_argument("--follow", action="store_true", help="stay, and do so with each flip and refusal")
    made = command("drill", _drill, "try the whole chain with one test client, touching nobody else")
    made.add_argument("service")
    made.add_argument(
        "--from",
        dest="client",
        metavar="ADDRESS",
        help="the test client's (the config's test_client); to make it here needs root",
    )
    made.add_argument("--wait", type=float, metavar="SECONDS", help="no root: a real client there asks by itself")
    made.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="its way to the standby ends then")
    made.add_argument("--sms", action="append", default=[], metavar="NUMBER", help="really send a text there")
    made = command("doctor", _doctor, "find what is missing; exit code 0: nothing, 1: warnings, 2: it would not work")
    made.add_argument("--nagios-cfg", type=Path, default=NAGIOS_CFG, metavar="PATH", help="default: %(default)s")
    command("check-config", _check_config, "read the config and say what it means")
    for name, act, text in (
        ("nagios-config", _nagios_config, "print the Nagios objects for this config"),
        ("icinga2-config", _icinga2_config, "print the Icinga 2 objects for this config"),
    ):
        made = command(name, act, text)
        made.add_argument("--services-only", action="store_true", help="without commands and templates")
    made.add_argument(
        "--endpoint",
        metavar="NAME",
        help="the controller is this agent: checks and handlers run there (put the file below zones.d)",
    )
    made.add_argument("--director", action="store_true", help="all of it as a basket for Icinga Director, in JSON")
    made = command("remote-config", _remote_config, "print the lines that a core on another machine needs")
    made.add_argument("--way", choices=sorted(remote.WAYS), required=True, help="nsca, nrdp: results; nrpe, ssh: back")
    made.add_argument("--on", choices=("controller", "core"), required=True, help="for which machine")
    made.add_argument("--controller", metavar="ADDRESS", default="CONTROLLER", help="where the core finds us")
    made.add_argument("--plugins", metavar="DIR", default=remote.PLUGINS_HERE, help="here; default: %(default)s")
    return parser


# ---------------------------------------------------------------- commands


def _status(config: Config, arguments: argparse.Namespace) -> None:
    services = _chosen(config, arguments.service)
    told = _ask(config, {"verb": "status"})
    redirector = service_statuses(told)
    try:
        sniffer = control.ask(config.controller.sniffer_socket, {"verb": "status"}, timeout=5.0)["services"]
        away = None
    except ControlError as error:
        sniffer, away = {}, str(error)
    if arguments.json:
        names = [service.name for service in services]
        print(
            json.dumps({n: {"redirector": told["services"].get(n), "sniffer": sniffer.get(n)} for n in names}, indent=2)
        )
        return
    for service in services:
        if service.name not in redirector:
            raise FailedError(f"{service.name}: the redirector does not know it: restart failover-redirector")
        print("\n".join(show.status(service, redirector[service.name], sniffer.get(service.name), away)))


def _fail_over(config: Config, arguments: argparse.Namespace) -> None:
    service = config.service(arguments.service)
    message: dict[str, Any] = {"verb": "fail-over", "service": service.name, "by": _by(), "manual": True}
    reply = _ask(config, message)
    if reply["reason"] == "standby-not-probed":  # the sniffer is away: look for ourselves
        reply = _ask(config, {**message, "facts": {"standby_ok": _probe(service, Target.STANDBY)}})
    _print_text(reply)


def _drain(config: Config, arguments: argparse.Namespace) -> None:
    service = config.service(arguments.service)
    _drained(config, service, arguments, "drain")


def _fail_back(config: Config, arguments: argparse.Namespace) -> None:
    service = config.service(arguments.service)
    _drained(config, service, arguments, "fail-back")


def _hold(config: Config, arguments: argparse.Namespace) -> None:
    service = config.service(arguments.service)
    print(_ask(config, {"verb": "hold", "service": service.name, "by": _by(), "reason": arguments.reason})["text"])


def _release(config: Config, arguments: argparse.Namespace) -> None:
    service = config.service(arguments.service)
    print(_ask(config, {"verb": "release", "service": service.name, "by": _by()})["text"])


def _history(config: Config, arguments: argparse.Namespace) -> None:
    chosen = {service.name for service in _chosen(config, arguments.service)}
    if arguments.limit < 1:
        raise FailedError("--limit must be at least 1")
    entries = _entries(config, min(arguments.limit * len(config.services), 10000))
    wanted = arguments.show or arguments.report
    if wanted:
        entries = _entries(config, 10000)
        found = [entry for entry in entries if entry.id == wanted]
        if not found:
            raise FailedError(f"history: no entry {wanted!r}; failoverctl history lists them")
        if arguments.report:
            print(reports.page(config, found[-1], entries), end="")
        else:
            print("\n".join([*show.entry(found[-1]), *_evidence(config, found[-1])]))
        return
    for entry in [entry for entry in entries if entry.service in chosen][-arguments.limit :]:
        print(json.dumps(to_json(entry)) if arguments.json else show.line(entry))


def _evidence(config: Config, entry: JournalEntry) -> list[str]:
    """What the sniffer kept of the verdict behind an attempt."""
    base = reports.evidence_base(config, entry)
    if base is None:
        return []
    try:
        kept = json.loads(base.with_suffix(".json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        return [f"  evidence: {base}.json: cannot read: {reason}"]
    return [*show.evidence(kept), f"  packets: tshark -r {base}.pcap"]


def _reports(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.follow:
        reports.follow(config)
    reports.publish(config)


def _drill(config: Config, arguments: argparse.Namespace) -> None:
    from check_failover.admin.drill import DrillPlan, DrillRun

    service = config.service(arguments.service)
    client = arguments.client or service.test_client
    plan = DrillPlan(client, arguments.wait, arguments.limit, tuple(arguments.sms), _by())
    print(f"{service.name}: drill, ordered by {plan.by}", flush=True)
    failed = DrillRun(config, service, plan).run()
    if failed is not None:
        raise FailedError(f"{service.name}: drill failed at the step: {failed}")
    print(f"{service.name}: drill passed")


def _doctor(config: Config, arguments: argparse.Namespace) -> None:
    code = doctor(config, arguments.nagios_cfg)
    sys.stdout.flush()
    sys.exit(code)


def _check_config(config: Config, _arguments: argparse.Namespace) -> None:
    print("\n".join(show.config(config)))


def _nagios_config(config: Config, arguments: argparse.Namespace) -> None:
    print(nagios(config, templates=not arguments.services_only))


def _icinga2_config(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.director:
        print(basket(config), end="")
        return
    print(icinga2(config, templates=not arguments.services_only, endpoint=arguments.endpoint))


def _remote_config(config: Config, arguments: argparse.Namespace) -> None:
    site = remote.Site(arguments.controller, arguments.plugins)
    print(remote.lines(config, arguments.way, arguments.on, site))


# ---------------------------------------------------------------- help for them


def _chosen(config: Config, name: str | None) -> tuple[Service, ...]:
    return config.services if name is None else (config.service(name),)


def _ask(config: Config, message: dict[str, Any]) -> dict[str, Any]:
    return control.ask(config.controller.redirector_socket, message, timeout=REPLY_TIMEOUT)


def _entries(config: Config, limit: int) -> list[JournalEntry]:
    return journal_entries(_ask(config, {"verb": "history", "limit": limit}).get("entries"))


def _print_text(reply: dict[str, Any]) -> None:
    """Print the outcome of an order; a refusal is a failure, "already there" is not."""
    text = f"{reply.get('line') or reply.get('text')}"
    if reply.get("flipped"):
        print(text)
        if reply.get("error"):
            raise FailedError(f"flipped, but {reply['error']}")
        return
    if reply["reason"] == "already-there":
        print(reply["text"])
        return
    raise FailedError(f"refused, {reply['reason']}: {reply['text']}")


def _drained(config: Config, service: Service, arguments: argparse.Namespace, verb: str) -> None:
    """Order it and show the open connections that are left, once or until none is; Ctrl-C ends the showing only."""
    message = {"verb": verb, "service": service.name, "by": _by(), "manual": True, "deadline": arguments.deadline}
    _print_text(_ask(config, message))
    shown = None
    while (drain := service_statuses(_ask(config, {"verb": "status"}))[service.name].drain) is not None:
        if drain.left != shown:
            print(show.drain(service.name, drain), flush=True)
            shown = drain.left
        if not arguments.wait:
            return
        time.sleep(PROGRESS_EVERY)
    print(f"{service.name}: no open connection is left to wait for")


def _probe(service: Service, target: Target) -> bool:
    from check_failover.checks import ProbeError, probe_function

    try:
        probe = probe_function(service.check)(service.server(target), service.check.options, service.check.timeout)
    except ProbeError as error:
        raise FailedError(f"cannot probe the {target}: {error}") from None
    return probe.passed


def _by() -> str:
    """The person, also behind sudo (sudo(8), SUDO_USER)."""
    if os.getuid() == 0 and "SUDO_USER" in os.environ:
        return os.environ["SUDO_USER"]
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


if __name__ == "__main__":
    main()
