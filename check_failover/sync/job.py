"""One run of failover-sync: its servers, its options and what it found out. The steps share it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from check_failover.model import Service, SyncSpec
from check_failover.sync.controller_access import ControllerAccess
from check_failover.sync.hosts import Host
from check_failover.sync.rsync import Place
from check_failover.syncstate import Phase, SyncDirection, directory

T = TypeVar("T")


@dataclass(slots=True)
class Job:
    """One run: source and receiving server, access, options. ``full``: load and switch even if nothing differs."""

    service: Service
    spec: SyncSpec
    direction: SyncDirection
    source: Host
    receiver: Host
    access: ControllerAccess
    state_dir: Path
    may_chown: bool  # whether this process is root, which may set the owners of relayed files
    accept_shrink: bool = False
    full: bool = False
    take: bool = False  # a person decided that the source's data counts, whatever the receiving server has
    merge: bool = False  # the receiving server's changes go into the source's data before
    say: Callable[[str], None] = lambda _text: None
    progress: Callable[[str], None] | None = None
    enter: Callable[[Phase], None] = lambda _phase: None  # records the phase
    sent: int = 0  # bytes on the wire so far, comparisons included
    keeps: Sequence[str] = ()  # rsync's options for what it keeps of each file; ``inspect`` finds out
    note: str = ""  # what it cannot keep, for the record
    looked: float = 0.0  # since when clients must not have reached the receiving server
    kept: str = ""  # where its data was put aside
    skew: float = 0.0  # seconds by which the source server's clock is ahead of the controller's
    apart: float = 0.0  # seconds between the controller's clock and that of the server that differs more

    @property
    def name(self) -> str:
        return self.service.name

    def noted(self, text: str) -> None:
        """Add to the text of this run."""
        self.say(text)
        self.note = f"{self.note}; {text}" if self.note else text

    @property
    def relay(self) -> Place | None:
        """Local directory for the data if both servers are remote; kept, so that only changes are transferred."""
        if self.source.target is None or self.receiver.target is None:
            return None
        path = directory(self.state_dir) / f"{self.name}.relay" / self.direction
        return Place(Host("relay"), str(path))

    def copy_place(self, name: str) -> Place:
        """The directory of a copy on the receiving server."""
        return Place(self.receiver, f"{self.spec.copy_path}.sync/{name}")


def fill(job: Job, command: Sequence[str], staged: str = "", entries: int | None = None) -> list[str]:
    """A configured command with its placeholders replaced inside each argument."""
    words = {
        "{name}": job.name,
        "{direction}": job.direction.value,
        "{source}": job.spec.source_path,
        "{staged}": staged,
        "{current}": job.spec.copy_path,
        "{entries}": "" if entries is None else str(entries),
    }

    for word, value in words.items():
        command = [argument.replace(word, value) for argument in command]
    return list(command)


def timed(job: Job, what: str, step: Callable[[], T]) -> T:
    """Run a step, and report its name and duration."""
    job.say(f"{what} ...")
    began = time.monotonic()
    result = step()
    job.say(f"{what}: {time.monotonic() - began:.1f} s")
    return result
