"""The target across restarts: one small JSON file per service, safe against a kill and a power cut.

A new state is first *intended*: written to a file beside the old one, which a kill leaves whole in the page cache.
*Settled*, it is on the disk and in the old one's place: fsync, rename, fsync of the directory (rename(2) is atomic;
fsync(2) of the directory makes it last). A flip moves the kernel's rule between the two, so that clients do not wait
for a disk, which takes 1 to 10 ms here and seconds when it is busy: a restart finds the intent and follows it; a power
cut takes the kernel's rule along and may leave no intent, and then the old state stands. A file that cannot be read is
reported, never guessed at: the caller keeps what the kernel has.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from check_failover import reach
from check_failover.damping import Damping
from check_failover.model import Hold, Target
from check_failover.records import Moment, Reach, RecordError, from_json


class StateError(Exception):
    """The state file cannot be read or written: one line."""


@dataclass(frozen=True, slots=True)
class Drain:
    """New connections go elsewhere, those open to ``old`` finish there; cut at ``deadline`` (None: never)."""

    old: Target
    at: float
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What must survive a restart. Wall clock times; ``pending`` is the core's order that still stands, as text."""

    target: Target = Target.PRIMARY
    since: Moment | None = None
    hold: Hold | None = None
    pending: str | None = None
    drain: Drain | None = None
    damping: Damping = field(default_factory=Damping)
    moved_by_person: bool = False  # the last flip
    downtime: tuple[str, ...] = ()  # the core's objects whose downtime began and did not end
    reached: tuple[Reach, ...] = ()  # by clients: see ``check_failover.reach``
    flips: int = 0  # how many there were, and changes of any kind: which of two controllers knows more
    changes: int = 0


def load(directory: Path, name: str) -> ServiceState | None:
    """The settled state; None when there is none yet. Raises StateError when there is one that makes no sense."""
    path = directory / f"{name}.json"
    try:
        return parsed(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read the state ({error.strerror}): check {path}") from None
    except (ValueError, RecursionError):
        raise StateError(f"state damaged, the kernel's rule is kept; to heal flip once or remove {path}") from None


def intended(directory: Path, name: str) -> ServiceState | None:
    """What an earlier process meant to settle; None: nothing, or a power cut left no whole file."""
    try:
        return parsed(json.loads(_intent(directory, name).read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None


def intend(directory: Path, name: str, state: ServiceState) -> None:
    """Write what is about to become true. Raises StateError; what was intended before stands then."""
    intent = _intent(directory, name)
    whole = intent.with_suffix(".writing")
    try:
        whole.write_bytes(json.dumps(asdict(state)).encode() + b"\n")
        whole.rename(intent)
    except OSError as error:
        raise _cannot_write(directory, name, error) from None


def withdraw(directory: Path, name: str) -> None:
    """What was intended did not come true. Raises StateError."""
    try:
        _intent(directory, name).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(directory, name, error) from None


def settle(directory: Path, name: str) -> None:
    """What was intended is true and must last. Raises StateError; the intent is still there then."""
    path, intent = directory / f"{name}.json", _intent(directory, name)
    try:
        _sync(intent, os.O_RDONLY)
        intent.rename(path)
        _sync(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _cannot_write(directory, name, error) from None


def _intent(directory: Path, name: str) -> Path:
    return directory / f".{name}.json.new"


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(directory: Path, name: str, error: OSError) -> StateError:
    return StateError(f"cannot write the state ({error.strerror}): check space and rights of {directory / name}.json")


def outranks(theirs: ServiceState, mine: ServiceState) -> bool:
    """Whether the other controller of a pair knows more: it has seen more flips, or as many and more changes since.

    Where both changed something at once the text decides, so that both come to the same. Targets that differ after as
    many flips have no order: nobody may move the traffic for that.
    """
    if theirs.flips == mine.flips and theirs.target is not mine.target:
        return False
    return _rank(theirs) > _rank(mine)


def _rank(state: ServiceState) -> tuple[int, int, str]:
    common = replace(state, drain=None, reached=())  # what each controller sees for itself
    return state.flips, state.changes, json.dumps(asdict(common))


def parsed(raw: object) -> ServiceState:
    """From what JSON made of a state. Raises RecordError, also where no target is said: none may be assumed."""
    if not isinstance(raw, dict) or "target" not in raw:
        raise RecordError("a state names its target")
    state = from_json(ServiceState, raw)
    return state if state.reached else replace(state, reached=reach.derived(state.target, state.since))
