"""failoverctl: show the fail-over controller's state and steer it by hand.

It works through the daemons' sockets and needs no privilege. Exit code: 0 done, 1 refused or impossible (one line on
stderr says why), 2 wrong command line. ``doctor`` has its own exit codes. A new verb is a function in ``verbs`` and an
entry in ``VERBS``.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_failover import __version__
from check_failover.admin import FailedError, remote, verbs
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.control import ControlError
from check_failover.places import HERE
from check_failover.records import RecordError

Act = Callable[[Config, argparse.Namespace], None]
Argument = tuple[tuple[str, ...], dict[str, Any]]  # names and settings of argparse's add_argument


def _argument(*names: str, **settings: object) -> Argument:
    return names, settings


_SERVICE = _argument("service")
_MAYBE_SERVICE = _argument("service", nargs="?", help="one service; all without it")
_OF_A_DRAIN = (
    _argument("--deadline", type=float, metavar="SECONDS", help="cut the open connections then"),
    _argument("--wait", action="store_true", help="show the open connections until none is left"),
)
_SERVICES_ONLY = _argument("--services-only", action="store_true", help="without commands and templates")

VERBS: dict[str, tuple[Act, str, tuple[Argument, ...]]] = {
    "status": (
        verbs.status,
        "where the traffic goes, what is held or pending, whether a fail-back is possible",
        (_MAYBE_SERVICE, _argument("--json", action="store_true", help="everything, as JSON")),
    ),
    "fail-over": (verbs.fail_over, "send a service's traffic to its standby, now", (_SERVICE,)),
    "drain": (
        verbs.drain,
        "send new connections to the standby and let open ones finish on the primary",
        (_SERVICE, *_OF_A_DRAIN),
    ),
    "fail-back": (
        verbs.drain,
        "drain the other way: a service's traffic back to its primary, when it is safe",
        (_SERVICE, *_OF_A_DRAIN),
    ),
    "release": (verbs.hold, "allow flips again", (_SERVICE,)),
    "hold": (
        verbs.hold,
        "forbid any flip of a service until it is released",
        (_SERVICE, _argument("--reason", default="", help="shown in status, journal and refusals")),
    ),
    "history": (
        verbs.history,
        "show orders, flips and refusals, newest last",
        (
            _MAYBE_SERVICE,
            _argument("--limit", type=int, default=20, metavar="N", help="how many entries (%(default)s)"),
            _argument("--show", metavar="ID", help="everything about one entry"),
            _argument("--report", metavar="ID", help="print one HTML page of that incident"),
            _argument("--json", action="store_true", help="as JSON lines"),
        ),
    ),
    "reports": (
        verbs.write_reports,
        "update the incidents' pages in report_dir",
        (_argument("--follow", action="store_true", help="keep running and update with each flip and refusal"),),
    ),
    "drill": (
        verbs.drill,
        "test the whole chain with one test client, without touching any other client",
        (
            _SERVICE,
            _argument(
                "--from",
                dest="client",
                metavar="ADDRESS",
                help="the test client's (the config's test_client); to make it here needs root",
            ),
            _argument("--wait", type=float, metavar="SECONDS", help="wait for a real client's requests (no root)"),
            _argument("--limit", type=float, default=60.0, metavar="SECONDS", help="longest time on the standby"),
            _argument("--sms", action="append", default=[], metavar="NUMBER", help="send a real text to it"),
        ),
    ),
    "doctor": (
        verbs.run_doctor,
        "find what is missing; exit code 0: nothing, 1: warnings, 2: a fail-over would not work",
        (_argument("--nagios-cfg", type=Path, metavar="PATH", help="default: [monitoring] nagios_cfg"),),
    ),
    "check-config": (verbs.check_config, "read the config and say what it means", ()),
    "nagios-config": (verbs.nagios_config, "print the Nagios objects for this config", (_SERVICES_ONLY,)),
    "icinga2-config": (
        verbs.icinga2_config,
        "print the Icinga 2 objects for this config",
        (
            _SERVICES_ONLY,
            _argument(
                "--endpoint",
                metavar="NAME",
                help="the controller is this agent: checks and handlers run there (put the file below zones.d)",
            ),
            _argument("--director", action="store_true", help="all of it as a basket for Icinga Director, in JSON"),
        ),
    ),
    "remote-config": (
        verbs.remote_config,
        "print the lines that a core on another machine needs",
        (
            _argument("--way", choices=sorted(remote.WAYS), required=True, help="nsca, nrdp: results; nrpe, ssh: back"),
            _argument("--on", choices=("controller", "core"), required=True, help="for which machine"),
            _argument("--controller", metavar="ADDRESS", default="CONTROLLER", help="its address for the core"),
            _argument("--plugins", metavar="DIR", default=HERE["plugins"], help="here; default: %(default)s"),
        ),
    ),
}


def main() -> None:
    """Entry point of ``failoverctl``."""
    arguments = _parser().parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # whatever the terminal's encoding lacks
    try:
        config = load(arguments.config)
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
    for name, (act, text, arguments) in VERBS.items():
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        made.set_defaults(act=act, verb=name)
        for names, settings in arguments:
            made.add_argument(*names, **settings)
    return parser


if __name__ == "__main__":
    main()
