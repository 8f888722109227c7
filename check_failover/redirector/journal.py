"""The audit journal: one JSON line for each attempt to flip, refusals included, flushed to disk before the answer.

After a power cut the last line may be incomplete: ``read`` skips it, and ``write`` ends it with a newline first. At
``LIMIT`` bytes the file is renamed to ``.1``, so the journal never fills the disk.
"""

import json
import os
from pathlib import Path

from check_failover.records import JournalEntry, from_json, to_json

LIMIT = 8 << 20  # bytes


class JournalError(Exception):
    """The journal cannot be written: one line."""


class Journal:
    """Appends and reads entries; the caller holds the lock that serialises attempts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, entry: JournalEntry) -> None:
        """Append one entry and fsync. Raises JournalError."""
        try:
            if self._path.exists() and self._path.stat().st_size > LIMIT:
                self._path.rename(self._path.with_suffix(self._path.suffix + ".1"))
            with self._path.open("ab+") as file:
                if file.tell() and _last_byte(file.fileno(), file.tell()) != b"\n":
                    file.write(b"\n")
                file.write(json.dumps(to_json(entry)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise JournalError(
                f"cannot write the journal ({error.strerror}): check space and rights of {self._path}"
            ) from None

    def read(self, limit: int) -> list[JournalEntry]:
        """The last entries, oldest first, without damaged lines; empty if there is no journal yet."""
        entries: list[JournalEntry] = []
        for path in (self._path.with_suffix(self._path.suffix + ".1"), self._path):
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            entries += [entry for entry in map(_parse, lines[-limit:]) if entry is not None]
        return entries[-limit:]


def _last_byte(descriptor: int, size: int) -> bytes:
    return os.pread(descriptor, 1, size - 1)


def _parse(line: bytes) -> JournalEntry | None:
    try:
        return from_json(JournalEntry, json.loads(line))
    except (ValueError, RecursionError):  # RecordError is a ValueError
        return None
