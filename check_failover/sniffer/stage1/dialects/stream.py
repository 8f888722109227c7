"""Messages out of a byte stream in which each message tells its own length. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_HEADER = 1024  # bytes of a message's beginning that are waited for, at most


class NotAMessageError(Exception):
    """These bytes do not begin a message."""


class Stream(Generic[T]):
    """One direction of a connection.

    ``header(data, last)`` gives (length of the whole message, what it is), or None when it needs more bytes; ``last``
    says that there will be none. It raises NotAMessageError for nonsense. Only the beginning of a message is looked
    at, the rest is counted and skipped, so short captures lose nothing. Out of step (``synced`` False) the next segment
    must begin with a message.
    """

    __slots__ = ("_buffer", "_header", "_skip", "synced")

    def __init__(self, header: Callable[[bytes, bool], tuple[int, T] | None]) -> None:
        self._header = header
        self._buffer = b""
        self._skip = 0
        self.synced = False

    @property
    def out_of_sync(self) -> bool:
        """Bytes are coming and nobody can tell what they are."""
        return not self.synced and not self._buffer

    def resync(self) -> None:
        """Bytes were lost."""
        self._buffer, self._skip, self.synced = b"", 0, False

    def feed(self, data: bytes, missing: int = 0) -> list[T]:
        """The messages that begin in this segment."""
        found: list[T] = []
        if self._skip:
            taken = min(self._skip, len(data))
            self._skip -= taken
            data = data[taken:]
        data = self._buffer + data
        self._buffer = b""
        while data:
            last = missing > 0 or len(data) >= MAX_HEADER
            try:
                message = self._header(data, last)
            except NotAMessageError:
                self.resync()
                return found
            if message is None:
                if last:
                    self.resync()
                    return found
                self._buffer = data
                break
            length, what = message
            found.append(what)
            self.synced = True
            self._skip = max(0, length - len(data))
            data = data[length:]
        if missing > self._skip:
            self.resync()  # a message may have begun in what was not captured
        else:
            self._skip -= missing
        return found
