"""The target across restarts: one small JSON file per service, safe against a power cut.

Write to a temporary file, fsync, rename, fsync the directory (rename(2) is atomic; fsync(2) of the directory makes it
last). A file that cannot be read is reported, never guessed at: the caller keeps what the kernel has.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from check_failover.damping import Damping
from check_failover.model import Hold, Target


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
    since: float | None = None
    hold: Hold | None = None
    pending: str | None = None
    drain: Drain | None = None
    damping: Damping = field(default_factory=Damping)
    moved_by_person: bool = False  # the last flip
    downtime: tuple[str, ...] = ()  # the core's objects whose downtime began and did not end


def load(directory: Path, name: str) -> ServiceState | None:
    """The saved state; None when there is none yet. Raises StateError when there is one that makes no sense."""
    path = directory / f"{name}.json"
    try:
        raw = json.loads(path.read_bytes())
        hold, drain = raw.get("hold"), raw.get("drain")
        return ServiceState(
            target=Target(raw["target"]),
            since=None if raw.get("since") is None else float(raw["since"]),
            hold=None if hold is None else Hold(str(hold["by"]), float(hold["at"]), str(hold["reason"])),
            pending=None if raw.get("pending") is None else str(raw["pending"]),
            drain=None
            if drain is None
            else Drain(Target(drain["old"]), float(drain["at"]), _number(drain["deadline"])),
            damping=Damping(**raw.get("damping", {})),
            moved_by_person=bool(raw.get("moved_by_person")),
            downtime=tuple(str(name) for name in raw.get("downtime", ())),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StateError(f"{path}: damaged; the kernel's rule is kept; flip once or remove the file to heal") from None


def _number(value: object) -> float | None:
    """A number or null. Raises ValueError."""
    return None if value is None else float(str(value))


def save(directory: Path, name: str, state: ServiceState) -> None:
    """Replace the saved state. Raises StateError; the old one stands then."""
    path = directory / f"{name}.json"
    temporary = directory / f".{name}.json.new"
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(asdict(state)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StateError(f"{path}: cannot write: {error.strerror}: check space and rights") from None
