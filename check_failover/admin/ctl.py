"""failoverctl: show the fail-over controller's state and steer it by hand.

It works through the daemons' sockets and needs no privilege. Exit code: 0 done, 1 refused or impossible (one line on
stderr says why; of an order for many services, one for each reason), 2 wrong command line. ``doctor`` has its own exit
codes. A new verb is a function, an entry in ``VERBS`` and its command line in commands.toml.
"""

import argparse
import ipaddress
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_failover import __version__
from check_failover.admin import FailedError, orders, remote, show, verbs
from check_failover.admin.director import basket
from check_failover.admin.objects import icinga2, nagios
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.control import ControlError
from check_failover.places import HERE
from check_failover.records import RecordError

VERBS: dict[str, Callable[[Config, argparse.Namespace], None]] = {
    "status": verbs.status,
    "fail-over": orders.fail_over,
    "drain": orders.drain,
    "fail-back": orders.drain,
    "release": orders.hold,
    "hold": orders.hold,
    "history": verbs.history,
    "reports": verbs.write_reports,
    "drill": verbs.drill,
    "doctor": verbs.run_doctor,
    "check-config": lambda config, _: print("\n".join(show.config(config))),
    "nagios-config": lambda config, said: print(nagios(config, templates=not said.services_only)),
    "icinga2-config": lambda config, said: print(
        basket(config) if said.director else icinga2(config, templates=not said.services_only, endpoint=said.endpoint)
    ),
    "remote-config": lambda config, said: print(
        remote.WAYS[said.way][said.on](config, remote.Site(said.controller, said.plugins))
    ),
}


def main() -> None:
    """Entry point of ``failoverctl``."""
    arguments = _parser().parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # whatever the terminal's encoding lacks
    try:
        config = load(arguments.config, quick=arguments.verb != "check-config")
        arguments.act(config, arguments)
        sys.stdout.flush()
    except (ConfigError, ControlError, FailedError, RecordError) as error:
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
    lines = tomllib.loads(Path(__file__).with_name("commands.toml").read_text("utf-8"))
    for name, act in VERBS.items():
        line = lines[name]
        made = commands.add_parser(name, help=line["help"], description=line["help"], allow_abbrev=False)
        made.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        made.set_defaults(act=act, verb=name)
        if "one_of" in line:
            _add(made.add_mutually_exclusive_group(required=True), line["one_of"])
        _add(made, line.get("arguments", {}))
    return parser


def _add(parser: argparse._ActionsContainer, arguments: dict[str, dict[str, Any]]) -> None:
    for name, settings in arguments.items():
        if "type" in settings:
            settings["type"] = TYPES[settings["type"]]
        if "place" in settings:
            settings["default"] = HERE[settings.pop("place")]
        parser.add_argument(name, **settings)


def _address(text: str) -> str:
    try:
        return ipaddress.ip_address(text).compressed
    except ValueError:
        raise argparse.ArgumentTypeError(f"want an IP address, not {text!r}") from None


TYPES: dict[str, Callable[[str], object]] = {"int": int, "float": float, "path": Path, "address": _address}


if __name__ == "__main__":
    main()
