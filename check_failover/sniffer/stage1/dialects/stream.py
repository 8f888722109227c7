"""Messages of a byte stream in which each message starts with its length. Pure."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_HEADER = 1024  # bytes of a message's start that are buffered, at most


class NotAMessageError(Exception):
    """These bytes are not the start of a message."""


class Stream(Generic[T]):
    """One direction of a connection.

    ``header(data, last)`` returns (length of the whole message, parsed header), or None when it needs more bytes;
    ``last``: no more bytes follow. It raises NotAMessageError for other bytes. A length of None is unknown: the next
    segment that starts with a message ends it. ``feed`` parses only the start of a message and skips the rest by its
    length, so short captures suffice. Without ``synced`` the next segment must start with a message.
    """

    __slots__ = ("_buffer", "_header", "_most", "_skip", "synced")

    def __init__(self, header: Callable[[bytes, bool], tuple[int | None, T] | None], most: int = MAX_HEADER) -> None:
        self._header, self._most = header, most
        self.resync()

    @property
    def out_of_sync(self) -> bool:
        """Whether the last bytes could not be parsed."""
        return not self.synced and not self._buffer

    def resync(self) -> None:
        """Bytes were lost: wait for a segment that starts with a message."""
        self._buffer, self._skip, self.synced = b"", 0, False

    def feed(self, data: bytes, missing: int = 0) -> list[T]:
        """The messages that start in this segment."""
        found: list[T] = []
        if self._skip:
            taken = min(self._skip, len(data))
            self._skip -= taken
            data = data[taken:]
        data = self._buffer + data
        self._buffer = b""
        while data:
            last = missing > 0 or len(data) >= self._most
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
            if length is None:
                self.resync()
                return found
            self.synced = True
            self._skip = max(0, length - len(data))
            data = data[length:]
        if missing > self._skip:
            self.resync()  # a message may start in the bytes that were not captured
        else:
            self._skip -= missing
        return found
