"""``--name value`` for the handlers: argparse alone would cost the event handler a quarter of its whole run (9 ms).

Nagios's macros may be empty or begin with a dash, so what follows a name is its value whatever it looks like; an
abbreviated or unknown name is an error, because a handler that guesses acts on the wrong thing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ANSWERED = 3  # exit code after -h and -V, and of a wrong command line: never one that a core takes for CRITICAL


class UsageError(Exception):
    """One line for the administrator who wrote the command."""


def parse(argv: Sequence[str], options: Mapping[str, str], flags: Sequence[str] = ()) -> dict[str, str]:
    """Options as a dict, defaults from ``options``; a flag that was given is ``"yes"``. Raises UsageError."""
    values = dict(options)
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        key = name.removeprefix("--")
        if key == name:
            raise UsageError(f"{word!r}: only options (--name VALUE) are understood, see --help")
        if key in flags and not equals:
            values[key] = "yes"
        elif key not in options:
            raise UsageError(f"unknown option {name}, see --help")
        elif equals:
            values[key] = value
        else:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{name} needs a value")
            values[key] = following
    return values


def drill_id(output: str) -> str | None:
    """The drill that a result of "NAME drill" belongs to: ``CRITICAL: drill ID: nothing moves``; None: to none."""
    words = output.split()
    return words[2].rstrip(":") if words[1:2] == ["drill"] and len(words) > 2 else None


def one_line(text: str) -> str:
    """Text fit for a core's log: no control characters, no line ends."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
