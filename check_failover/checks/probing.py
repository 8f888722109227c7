"""The ``check`` of a check that probes a server: it finds the server and presents the outcome.

The server comes from the command line (``-H``, ``-p`` and the probe's own options) or from the config:
``--config FILE --service NAME --target primary|standby|service``, so that Nagios checks exactly what the sniffer
probes. Options of the command line override the config's.
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

from check_failover import config_shape
from check_failover.bounded import is_address, lookup
from check_failover.checks import ProbeFunction
from check_failover.checks.plugin import CheckError, Outcome, Perf, add_options, deadline, judge, number, parser, worst
from check_failover.model import Endpoint, State
from check_failover.places import HERE

_RESERVE = 0.2  # seconds of -t kept for printing the outcome


def options(kind: str) -> dict[str, dict[str, object]]:
    """argparse's settings for each option of a probe, which is a key of the config: from the config's schema."""
    found: dict[str, dict[str, object]] = {}
    for key, rule in config_shape.schema()["$defs"][f"check_{kind}"]["properties"].items():
        usual = f" ({rule['default']})" if "default" in rule else ""
        found[key] = {"help": rule["description"] + usual}
        if "enum" in rule:
            found[key]["choices"] = tuple(rule["enum"])
        elif rule.get("type") == "boolean":
            found[key] |= {"action": "store_const", "const": True}
        elif rule.get("type") == "array":
            found[key]["type"] = _statuses
    return found


def _statuses(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch("[1-5][0-9][0-9]", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of statuses such as 200,401")
    return [int(part) for part in parts]


def command_line(name: str, doc: str | None, add: Mapping[str, Mapping[str, object]]) -> argparse.ArgumentParser:
    """The parser of a check: the options of every check, those that select the server, and ``add``, the probe's own."""
    made = parser(name, doc)
    add_options(made.add_argument_group("which server"), "server")
    made.set_defaults(config=HERE["config"])
    own = made.add_argument_group("what to ask")
    for key, settings in add.items():
        own.add_argument(f"--{key.replace('_', '-')}", **settings)  # type: ignore[arg-type]
    return made


def check(
    kind: str,
    doc: str | None,
    probe: ProbeFunction,
    add: Mapping[str, Mapping[str, object]],
    *,
    default_port: int | None = None,
    tls_port: int | None = None,
    needed: Sequence[str] = (),
) -> Callable[[Sequence[str]], Outcome]:
    """What check_failover_KIND runs. ``add``: argparse's settings for each option of the probe (a config key);
    ``tls_port``: the default with ``--tls``.
    """

    def run(argv: Sequence[str]) -> Outcome:
        made = command_line(f"check_failover_{kind}", doc, add)
        arguments = made.parse_args(argv)
        end = time.monotonic() + arguments.timeout - _RESERVE
        deadline(arguments.timeout, "server")
        usual_port = tls_port if tls_port and arguments.tls else default_port
        server, options, timeout = _what(made, arguments, kind, usual_port, end)
        options |= {key: value for key in add if (value := getattr(arguments, key)) is not None}
        if "server_name" in add and arguments.hostname and not is_address(arguments.hostname):  # a certificate's name
            options.setdefault("server_name", arguments.hostname)
        for key in needed:
            if key not in options:
                made.error(f"--{key.replace('_', '-')} is missing (or --service, to take it from the config)")
        return _ask(probe, server, options, min(timeout, end - time.monotonic()), arguments)

    return run


def _what(
    made: argparse.ArgumentParser, arguments: argparse.Namespace, kind: str, default_port: int | None, end: float
) -> tuple[Endpoint, dict[str, object], float]:
    """Server, options and time limit: from the config, from the command line, or from both."""
    options: dict[str, object] = {}
    timeout = arguments.timeout
    server: Endpoint | None = None
    if arguments.service is not None:
        server, options, timeout = _from_config(arguments, kind)
    elif arguments.target is not None:
        made.error("--target needs --service")
    elif arguments.hostname is None:
        made.error("say which server: -H ADDRESS, or --service NAME")
    address = server.address if server and arguments.hostname is None else _resolve(str(arguments.hostname), end)
    at = arguments.port or (server.port if server else default_port)
    if at is None:
        made.error("--port is missing")
    return Endpoint(address, int(at)), options, max(0.1, timeout)


def _from_config(arguments: argparse.Namespace, kind: str) -> tuple[Endpoint, dict[str, object], float]:
    from check_failover.config import load

    service = load(arguments.config, quick=True).service(arguments.service)
    if service.check.type != kind:
        text = f"{arguments.config}: service {service.name!r} has check type {service.check.type!r}, not {kind}"
        raise CheckError(text)
    server = service.endpoint(arguments.target or "primary")
    return server, dict(service.check.options), max(service.check.timeout, arguments.timeout - _RESERVE)


def _resolve(host: str, end: float) -> str:
    try:
        return lookup(host, max(0.1, end - time.monotonic()))[0]
    except OSError as error:
        raise CheckError(f"cannot look up {host!r}: {error}") from None


def _ask(
    probe: ProbeFunction, server: Endpoint, options: Mapping[str, object], timeout: float, arguments: argparse.Namespace
) -> Outcome:
    found = probe(server, options, max(0.1, timeout))
    perf = Perf("time", found.seconds, "s", arguments.warning or "", arguments.critical or "", "0")
    state = State.OK if found.passed else State.CRITICAL
    text = f"{server}: {found.text}"
    if found.passed:
        state = worst(state, judge(found.seconds, arguments.warning, arguments.critical))
        text += f", {number(round(found.seconds, 4))} s"
    shown = "".join(f"\n{key}: {value}" for key, value in options.items() if arguments.verbose)
    return Outcome(state, text, (perf,), shown.strip(os.linesep))
