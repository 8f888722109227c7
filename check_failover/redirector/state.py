"""The target across restarts: one small JSON file per service, safe against a kill and a power cut.

``intend`` writes the new state to a file beside the old one; after a kill the file is still in the page cache.
``settle`` makes it durable in the old one's place: fsync, rename (atomic, rename(2)), fsync(2) of the directory.
A flip changes the kernel's rule between the two, so that clients do not wait for the disk, which takes 1 to 10 ms, or
seconds when it is busy. After a kill, the restart finds the intent and follows it. A power cut removes the kernel's
rule and perhaps the intent; then the old state is valid. A damaged file is reported, and the caller keeps the kernel's
target.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from check_failover import reach
from check_failover.damping import Damping
from check_failover.model import Hold, Target
from check_failover.records import Drain, Moment, Reach, RecordError, from_json, read_json, read_own


class StateError(Exception):
    """The state file cannot be read or written: one line."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A service's state across restarts. Wall clock times.

    A refused automatic fail-over stands until a flip or a recovery, by the refusal's reason: ``pending`` where fresh
    evidence decides it anew, ``refused`` where not.
    """

    target: Target = Target.PRIMARY
    since: Moment | None = None
    hold: Hold | None = None
    pending: str | None = None
    drain: Drain | None = None
    damping: Damping = field(default_factory=Damping)
    moved_by_person: bool = False  # an operator ordered the last flip
    downtime: tuple[str, ...] = ()  # the core's objects that are in downtime
    reached: tuple[Reach, ...] = ()  # by clients: see ``check_failover.reach``
    generation: int = 0  # see ``next_generation``; of two controllers the one with more is followed, then by changes
    changes: int = 0
    refused: str | None = None

    @property
    def standing(self) -> str | None:
        """Why an automatic fail-over stands refused; None: none does."""
        return self.refused or self.pending


def load(directory: Path, name: str) -> ServiceState | None:
    """The settled state; None if there is none yet. Raises StateError if the file is unreadable or damaged."""
    path = directory / f"{name}.json"
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read the state ({error.strerror}): check {path}") from None
    except RecordError:
        raise StateError(f"state damaged, the kernel's rule is kept; to heal flip once or remove {path}") from None


def intended(directory: Path, name: str) -> ServiceState | None:
    """An earlier process's intent; None: there is none, or a power cut left no complete file."""
    try:
        return _read(_intent(directory, name))
    except (OSError, RecordError):
        return None


def intend(directory: Path, name: str, state: ServiceState) -> None:
    """Write an intent. Raises StateError; then an earlier intent stays."""
    intent = _intent(directory, name)
    whole = intent.with_suffix(".writing")
    with _writing(directory, name):
        whole.write_bytes(json.dumps(asdict(state)).encode() + b"\n")
        whole.rename(intent)


def withdraw(directory: Path, name: str) -> None:
    """Remove the intent of a failed flip. Raises StateError."""
    with _writing(directory, name):
        _intent(directory, name).unlink(missing_ok=True)


def settle(directory: Path, name: str) -> None:
    """Make the intent the durable state. Raises StateError; then the intent stays."""
    path, intent = directory / f"{name}.json", _intent(directory, name)
    with _writing(directory, name):
        sync(intent)
        intent.rename(path)
        sync(directory)


def _intent(directory: Path, name: str) -> Path:
    return directory / f".{name}.json.new"


def sync(path: Path) -> None:
    """fsync(2) of a file or a directory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(directory: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = directory / f"{name}.json"
        raise StateError(f"cannot write the state ({error.strerror}): check space and rights of {path}") from None


def next_generation(before: int, now: float) -> int:
    """The generation after a flip that is ordered here: above the one it follows, and the clock's milliseconds.

    A hybrid logical clock (Kulkarni et al. 2014): a controller that followed the other one outranks it with its next
    flip, whatever its clock says; of flips that neither knew of, the later one counts, not the side with more flips.
    """
    return max(before + 1, int(now * 1000))


def outranks(theirs: ServiceState, mine: ServiceState) -> bool:
    """Whether the other controller's state is more recent: a later generation, or the same one and more changes.

    After simultaneous changes the states' texts decide, so that both controllers agree. Different targets of the same
    generation have no order: then neither controller flips.
    """
    if theirs.generation == mine.generation and theirs.target is not mine.target:
        return False
    return _rank(theirs) > _rank(mine)


def disagreement(theirs: ServiceState, mine: ServiceState, *, failed: bool) -> str | None:
    """Why this controller does not follow to another target, for people. ``failed``: that server fails a probe here."""
    where = f"the other controller sends it to the {theirs.target}"
    if theirs.target is mine.target:
        return None
    if theirs.generation == mine.generation:
        return f"{where}: flip once by hand to agree"
    if failed and outranks(theirs, mine):
        return f"{where}, which fails a probe from here: not followed; repair that server or flip it there by hand"
    return None


def _rank(state: ServiceState) -> tuple[int, int, str]:
    common = replace(state, drain=None, reached=())  # what each controller sees for itself
    return state.generation, state.changes, json.dumps(asdict(common))


def _read(path: Path) -> ServiceState:
    """The state in a file. Raises OSError, RecordError."""
    text = path.read_bytes()
    read_own(ServiceState, text, former="flips")
    return parsed(read_json(dict[str, Any], text))


def parsed(raw: object) -> ServiceState:
    """The state in parsed JSON. Raises RecordError, also without a target: none may be assumed."""
    if not isinstance(raw, dict) or "target" not in raw:
        raise RecordError("a state names its target")
    state = from_json(ServiceState, raw)
    if "generation" not in raw and state.since is not None:  # an earlier version's
        state = replace(state, generation=next_generation(0, state.since))
    return state if state.reached else replace(state, reached=reach.derived(state.target, state.since))
