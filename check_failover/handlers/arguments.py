"""Parses the handlers' ``--name value`` options: argparse would take a quarter of the event handler's time (9 ms).

Nagios's macros may be empty or begin with a dash, so the word after a name is always its value. An abbreviated or
unknown name is an error, because a handler that guesses could act on the wrong service.
"""

from __future__ import annotations

from check_failover import __version__
from check_failover.places import HERE, REDIRECTOR_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ANSWERED = 3  # exit code of -h, -V and a usage error: UNKNOWN to the core, never CRITICAL


class UsageError(Exception):
    """An error in the command line: one line for the administrator."""


def answered(argv: Sequence[str], program: str) -> bool:
    """Print help or version if these are asked for. The help is the file PROGRAM.txt beside this module."""
    if not argv or argv[0] not in ("-h", "--help", "-V", "--version"):
        return False
    if argv[0] in ("-V", "--version"):
        print(program, __version__)
    else:
        from pathlib import Path

        text = Path(__file__).with_name(f"{program}.txt").read_text("utf-8")
        print(text.format(config=HERE["config"], socket=REDIRECTOR_SOCKET), end="")
    return True


def parse(argv: Sequence[str], options: Mapping[str, str], flags: Sequence[str] = ()) -> dict[str, str]:
    """Options as a dict, with defaults from ``options``; a given flag has the value ``"yes"``. Raises UsageError."""
    values = dict(options)
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        key = name.removeprefix("--")
        if key == name:
            raise UsageError(f"{word!r}: not an option (--name VALUE), see --help")
        if key in flags and not equals:
            values[key] = "yes"
        elif key not in options:
            raise UsageError(f"unknown option {name}, see --help")
        else:
            given = value if equals else next(rest, None)
            if given is None:
                raise UsageError(f"{name} needs a value")
            values[key] = given
    return values


def drill_id(output: str) -> str | None:
    """The ID in the output of "NAME drill" (``CRITICAL: drill ID: nothing moves``); None if it has none."""
    words = output.split()
    return words[2].rstrip(":") if words[1:2] == ["drill"] and len(words) > 2 else None


def one_line(text: str) -> str:
    """The text for the core's log: without control characters and line ends."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
