"""The audit journal: one JSON line for each attempt to flip, refusals included, flushed to disk before the answer.

    journal.jsonl          the newest entries; with more than ``LIMIT`` bytes it becomes
    journal.jsonl.1        of which later only the flips stay, in
    journal.jsonl.flips    so that refused orders, however many, erase no flip
    journal.jsonl.damaged  lines that cannot be read, for a person

None grows far beyond ``LIMIT``, so the journal never fills the disk. After a power cut the last line may be incomplete:
``write`` ends it with a newline first.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from check_failover.records import JournalEntry, RecordError, read_json, to_json

LIMIT = 8 << 20  # bytes
FLIPS = 5000
BLOCK = 1 << 16  # bytes that are read at once
log = logging.getLogger(__name__)


class Journal:
    """Appends and reads entries. Of ``write``, the caller holds the lock that serialises attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._older, self._flips, self._damaged = (
            path.with_name(path.name + end) for end in (".1", ".flips", ".damaged")
        )
        self._lock = threading.Lock()  # of ``.damaged``

    def write(self, entry: JournalEntry) -> None:
        """Append one entry and fsync. Raises OSError."""
        if self.path.exists() and self.path.stat().st_size > LIMIT:
            self._rotate()
        _append(self.path, [json.dumps(to_json(entry)).encode()])

    def read(self, limit: int, before: str | None = None) -> list[JournalEntry]:
        """The last entries, or those before the entry with that ID, oldest first. Damaged lines are set aside."""
        entries: list[JournalEntry] = []
        damaged = []
        for number, line in enumerate(self._backwards()):
            if before is not None:
                if json.dumps(before).encode() in line and (entry := _parse(line)) and entry.id == before:
                    before = None
            elif (entry := _parse(line)) is not None:
                entries.append(entry)
            elif line and number:  # the very last one may be half written
                damaged.append(line)
            if len(entries) == limit:
                break
        self._set_aside(damaged)
        return entries[::-1]

    def _backwards(self) -> Iterator[bytes]:
        """All lines, the newest first."""
        for path in (self.path, self._older, self._flips):
            with contextlib.suppress(OSError):
                yield from _backwards(path)

    def _rotate(self) -> None:
        """Keep the flips of the file that goes. A kill in the middle loses no line and repeats none."""
        flips: list[bytes] = []
        for path in (self._older, self._flips):
            with contextlib.suppress(FileNotFoundError):
                flips += [line for line in _backwards(path) if b'"flipped": true' in line]
        new = self._flips.with_suffix(".new")
        new.unlink(missing_ok=True)
        _append(new, list(dict.fromkeys(flips))[FLIPS::-1])
        new.replace(self._flips)
        self.path.replace(self._older)

    def _set_aside(self, lines: list[bytes]) -> None:
        with self._lock, contextlib.suppress(OSError):
            known = set(_backwards(self._damaged)) if lines and self._damaged.exists() else set()
            new = [line for line in lines if line not in known]
            if new and sum(map(len, known)) < LIMIT:
                _append(self._damaged, new)
                log.error("%s: %d damaged lines are left out: see %s", self.path, len(new), self._damaged)


def _append(path: Path, lines: list[bytes]) -> None:
    """Append lines and fsync; an incomplete last line ends first. Raises OSError."""
    with path.open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _backwards(path: Path) -> Iterator[bytes]:
    """A file's lines, the last one first: b"", if the file ends in a newline. Raises OSError."""
    with path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END), b""
        while at:
            size = min(BLOCK, at)
            at -= size
            file.seek(at)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest


def _parse(line: bytes) -> JournalEntry | None:
    try:
        return read_json(JournalEntry, line)
    except RecordError:
        return None
