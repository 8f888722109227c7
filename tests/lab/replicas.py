"""Two servers of a database that replicate by themselves, for the tests of what failover-sync says of them."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from tests.lab.syncing import SHM, Syncing


class _Server(Protocol):
    def stop(self) -> None: ...


class Replicas(Protocol):
    @property
    def primary(self) -> _Server: ...

    @property
    def standby(self) -> _Server: ...

    def begin(self) -> None: ...


R = TypeVar("R", bound=Replicas)


@contextlib.contextmanager
def running(made: Callable[[Path, Syncing], R], syncing: Syncing) -> Iterator[R]:
    """A standby that has all of its primary's data; both end with the block."""
    with tempfile.TemporaryDirectory(dir=SHM, prefix="cfr") as place:
        Path(place).chmod(0o711)
        found = made(Path(place), syncing)
        try:
            found.begin()
            yield found
        finally:
            found.standby.stop()
            found.primary.stop()


def age(syncing: Syncing) -> float:
    """The sync age in the record, in seconds."""
    found = syncing.state().age(time.time())
    assert found is not None
    return found
