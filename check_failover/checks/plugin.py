"""The frame of every check: arguments, timeout, output, exit code (Monitoring Plugins Development Guidelines).

A check is acquire -> evaluate -> present: its ``check`` builds a parser with ``parser()``, acquires, and returns an
``Outcome``, which ``run`` presents. What the frame takes care of:

- exit codes 0 to 3 only. A wrong option, a bad config, an exception of our own: 3 (UNKNOWN), never argparse's 2, so
  that a typo cannot cause a fail-over. ``-h`` and ``-V`` exit 3 as the guidelines require.
- one first line of at most 80 characters that starts with the state, no ``|`` and no control characters in texts,
  UTF-8 in every locale; perfdata in base units, without exponents.
- ``-t``: one deadline for the whole run. A server that does not answer in time is CRITICAL.

pynag's ``PluginHelper`` is not used: it exits 1 and 2 on errors, escapes nothing, and its import costs 70 ms.
"""

import argparse
import io
import math
import os
import re
import signal
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from check_failover import __version__
from check_failover.model import OneLineError, State, clean
from check_failover.places import HERE

FIRST_LINE = 80  # characters; the rest goes to the long output
MAX_LINE = 4096  # characters of any line
# the guidelines' range format (2.5)
_NUMBER = r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
RANGE = re.compile(rf"@?(?:(?P<start>~|{_NUMBER})?:)?(?P<end>{_NUMBER})?")
_OPTIONS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("options.toml").read_text("utf-8"))
EXIT_HELP = 3  # exit code after -h and -V


class CheckError(OneLineError):
    """The check could not be made: a fault of this machine or of the configuration. UNKNOWN, with this line."""


class TimeoutExpired(BaseException):
    """The deadline of ``-t`` passed. No Exception: a library that goes on after any error must not swallow it."""


@dataclass(frozen=True, slots=True)
class Perf:
    """One value as perfdata. ``unit`` is empty, s, B, % or c; None is left out of the output."""

    label: str
    value: float | None
    unit: str = ""
    warn: str = ""
    crit: str = ""
    minimum: str = ""
    maximum: str = ""

    def __str__(self) -> str:
        value = "U" if self.value is None or not math.isfinite(self.value) else f"{number(self.value)}{self.unit}"
        text = ";".join((value, self.warn, self.crit, self.minimum, self.maximum)).rstrip(";")
        label = f"'{self.label}'" if " " in self.label else self.label
        return f"{label}={text}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a check. ``text`` is one line, ``details`` may have several."""

    state: State
    text: str
    perf: tuple[Perf, ...] = ()
    details: str = ""


class Parser(argparse.ArgumentParser):
    """argparse with a plugin's exit codes: a wrong command line, ``-h`` and ``-V`` are UNKNOWN."""

    def error(self, message: str) -> NoReturn:
        present(Outcome(State.UNKNOWN, f"{self.prog}: {message}, see --help"))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        _say(message or "", EXIT_HELP)


def parser(name: str, description: str | None, *, timeout: float = 10.0) -> argparse.ArgumentParser:
    """A parser with the options of every check, -h -V -t -v -w -c, and its own ones in ``options.toml``."""
    made = Parser(prog=name, description=(description or "").split("\n\n")[0], allow_abbrev=False)
    made.add_argument("-V", "--version", action="version", version=f"{name} {__version__}")
    for section in ("every", name):
        add_options(made, section)
    made.set_defaults(timeout=timeout)
    return made


def add_options(made: argparse._ActionsContainer, section: str) -> None:
    """Add the options of a section of ``options.toml``."""
    for names, settings in _OPTIONS.get(section, {}).items():
        kind = {"type": TYPES[settings["type"]]} if "type" in settings else {}
        made.add_argument(*names.split(), **settings | kind)


def seconds(text: str) -> float:
    """An argument that is a time: above 0, finite."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds (above 0)")
    return value


def port(text: str) -> int:
    """An argument that is a TCP or UDP port."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 1 and 65535")
    return int(text)


def threshold(text: str) -> str:
    """An argument that is a range in the guidelines' format (``10``, ``5:``, ``~:10``, ``@1:2``)."""
    match = RANGE.fullmatch(text)
    start = ((match and match["start"]) or "0").replace("~", "-inf")
    if not match or not text.strip("@:") or float(start) > float(match["end"] or "inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 10, 5: or @1:2")
    return text


TYPES = {"seconds": seconds, "range": threshold, "port": port}  # by their names in options.toml


def judge(value: float | None, warning: str | None, critical: str | None) -> State:
    """The state of a value against two ranges; OK without a value or without ranges."""
    for state, text in ((State.CRITICAL, critical), (State.WARNING, warning)):
        if value is not None and text is not None and _alerts(value, text):
            return state
    return State.OK


def _alerts(value: float, text: str) -> bool:
    """Whether the value is outside the range; with ``@``: inside it."""
    match = RANGE.fullmatch(text)
    if match is None:
        raise CheckError(f"{text!r} is not a range such as 10, 5: or @1:2")
    start = float((match["start"] or "0").replace("~", "-inf"))
    return (start <= value <= float(match["end"] or "inf")) is text.startswith("@")


def socket_of(config: str | None, name: str) -> Path:
    """A daemon's socket: in the config's run_dir, or in the default run_dir without a config. Raises ConfigError."""
    if config is None:
        return Path(HERE["run_dir"], name)
    from check_failover.config import load, run_dir

    path = run_dir(config) / name
    if not os.access(path, os.F_OK):
        load(config, quick=True)  # a mistake in the config may be the reason: name it; otherwise save the time
    return path


def worst(*states: State) -> State:
    """CRITICAL over WARNING over UNKNOWN over OK (guidelines, 2.4)."""
    return max(states, key=(State.OK, State.UNKNOWN, State.WARNING, State.CRITICAL).index)


def together(parts: Sequence[Outcome]) -> Outcome:
    """One outcome of all parts; the text of the worst part comes first."""
    state = worst(*(part.state for part in parts))
    ordered = sorted(parts, key=lambda part: worst(part.state, State.OK) is not state)
    return Outcome(
        state,
        "; ".join(part.text for part in ordered if part.text),
        tuple(perf for part in parts for perf in part.perf),
        "\n".join(part.details for part in parts if part.details),
    )


def number(value: float) -> str:
    """A number without exponent and without trailing zeros."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text


def render(outcome: Outcome) -> str:
    """The plugin's whole output."""
    line = clean(f"{outcome.state.name}: {outcome.text}", MAX_LINE)
    details = [clean(row, MAX_LINE) for row in outcome.details.splitlines()]
    if len(line) > FIRST_LINE:
        details.insert(0, line)
        line = line[: FIRST_LINE - 3].rstrip() + "..."
    perf = " ".join(str(value) for value in outcome.perf)
    return "\n".join([f"{line} | {perf}" if perf else line, *details])


def present(outcome: Outcome) -> NoReturn:
    """Print and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    _say(render(outcome) + "\n", int(outcome.state))


def _say(text: str, code: int) -> NoReturn:
    """Print and exit; where nothing can be printed (closed, disk full): UNKNOWN, and no second attempt at the end."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        os._exit(int(State.UNKNOWN))
    sys.exit(code)


def run(check: Callable[[Sequence[str]], Outcome], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a check to its exit code. ``check`` raises OneLineError, TimeoutExpired, or returns an Outcome."""
    words = sys.argv[1:] if argv is None else argv
    try:
        for word in words:
            if any("\ud800" <= c <= "\udfff" for c in word):  # Python keeps bytes that it could not decode as these
                raise CheckError(f"{word!r} is no text in the locale's encoding or UTF-8, see --help")
        try:
            outcome = check(words)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # else it may end the program after its output
    except OneLineError as error:
        outcome = Outcome(State.UNKNOWN, str(error))
    except TimeoutExpired as error:
        outcome = Outcome(State.CRITICAL, str(error) or "no answer in time")
    except Exception as error:  # a fault of this program: no traceback to the core, no exit code that causes a flip
        outcome = Outcome(State.UNKNOWN, f"internal error: {type(error).__name__}: {error}")
    present(outcome)


def deadline(timeout: float, what: str) -> None:
    """Raise TimeoutExpired in the main thread after ``timeout`` seconds, in a blocking call too, until ``run`` ends."""

    def expired(_number: int, _frame: object) -> None:
        raise TimeoutExpired(f"{what}: no answer within {number(timeout)} s")

    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, timeout, 0.5)
