"""Run ipnat, and say in one line what went wrong and what to do.

What the tool says means what ``faults.toml`` says. Exit code 0 is not enough: an unknown host is only printed. ``-R``
keeps it from asking a directory for the names of ports, which may be the very service that just died.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from check_failover import programs
from check_failover.model import TooMuchError
from check_failover.redirector import RedirectError
from check_failover.redirector.ipfilter.rules import Rule, lines
from check_failover.redirector.ipfilter.sessions import Listing, listing

TIMEOUT = 3.0  # seconds; a call takes milliseconds
MAX_LISTING = 64 << 20  # bytes

FAULTS: dict[str, str] = tomllib.loads(Path(__file__).with_name("faults.toml").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the tool said; ``call`` is how it was called, for texts."""

    call: str
    exit: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.exit == 0 and "Unknown host" not in self.err

    def fault(self, about: Rule | None = None) -> RedirectError:
        """The one line for a person; ``about`` is the rule in question."""
        said = " / ".join(line.strip() for line in (self.err or self.out).splitlines()[:2]) or "nothing"
        advice = next((text for pattern, text in FAULTS.items() if re.search(pattern, self.err)), "see ipnat(8)")
        what = f" [{about}]" if about else ""
        return RedirectError(f"{self.call}: exit {self.exit}, said: {said}{what}: {advice}")


@dataclass(frozen=True, slots=True)
class Ipnat:
    """One system's ipnat. Its methods raise RedirectError.

    One rule per call: a file of rules is no transaction, the first error stops it in the middle.
    """

    path: str
    purges: bool = True  # whether it knows ``-p`` (IPFilter 5)
    timeout: float = TIMEOUT

    def read(self, *, verbose: bool = False) -> Listing:
        """Rules in the order in which the kernel applies them, and sessions; with their counters where ``verbose``."""
        answer = call([self.path, "-lvR" if verbose else "-lR"], timeout=self.timeout)
        if not answer.ok or not answer.out.startswith("List of "):
            raise answer.fault()
        return listing(answer.out)

    def add(self, rule: Rule) -> None:
        """Append a rule; one that is there already stays where it is. Tried dry first: a bad rule changes nothing."""
        for options in (("-nf", "-"), ("-f", "-")):
            answer = call([self.path, *options], lines([rule]), self.timeout)
            if not answer.ok and "already exists" not in answer.err:
                raise answer.fault(rule)

    def remove(self, rule: Rule, *, purge: bool) -> None:
        """Remove a rule, with ``purge`` its sessions too (others' stay); one that is gone already is no fault."""
        options = ("-r", "-p", "-f", "-") if purge and self.purges else ("-r", "-f", "-")
        answer = call([self.path, *options], lines([rule]), self.timeout)
        if not answer.ok and "could not be found" not in answer.err:
            raise answer.fault(rule)


def call(argv: Sequence[str], stdin: str = "", timeout: float = TIMEOUT) -> Answer:
    """Run a tool to its end. Raises RedirectError when it is not there or does not end in time."""
    text = " ".join(argv)
    try:
        done = programs.run(argv, timeout, stdin=stdin.encode(), size=MAX_LISTING, strict=True)
    except OSError as error:
        raise RedirectError(
            f"{argv[0]}: cannot run: {error.strerror}: is IPFilter installed? Its place is [controller.ipfilter] ipnat"
        ) from None
    except TooMuchError as error:
        raise RedirectError(f"{text}: {error}") from None
    except programs.LateError:
        raise RedirectError(
            f"{text}: no end within {timeout:g} s, given up: is the machine overloaded? The next attempt goes on "
            "from what the kernel has then"
        ) from None
    return Answer(text, done.code, done.out.decode(errors="replace"), done.err.decode(errors="replace"))
