"""The spool: a directory with one file per text, so that a gateway that is down delays nothing and loses nothing.

    queue/KEY.json    waits for the gateway
    awaited/KEY.json  the gateway has it, the receipt of its delivery has not come yet
    sent/KEY.json     delivered, or the gateway has it and gives no receipts; kept for a day: an event is told once
    failed/KEY.json   the gateway will never take it; kept for a month, for a person
    lock              flock(2), held by the one process that sends
    log.jsonl         a line for each text that left or failed

KEY is made from the event and the number, so two handlers for the same event meet on one file name: ``link(2)`` lets
only one in, and whoever sends drops what ``awaited`` or ``sent`` has already. A text is written under another name,
synced and linked, so there is never half of one. It leaves at least once: a sender killed between the gateway's
"accepted" and our rename sends it again, for a text too much is better than one too few.

Standard library only. Times are Unix times, because they must outlive a restart.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

SENT_KEPT, FAILED_KEPT, HALF_KEPT = 86400.0, 30 * 86400.0, 3600.0  # seconds
LOG_LIMIT = 1 << 20  # bytes; then log.jsonl becomes log.jsonl.1
QUEUE, AWAITED, SENT, FAILED = "queue", "awaited", "sent", "failed"


class SpoolError(Exception):
    """The text could not be written down: disk full, no such directory, no right. One line."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text for one number, and what became of it so far."""

    key: str  # name of its file: the event and the number
    number: str
    text: str
    at: float  # when it was asked for
    window: float = 0.0  # seconds; a text of the same key sent less than this before makes it needless
    attempts: int = 0
    problem: str = ""  # of the last attempt
    gateway: str = ""  # that took it
    sent_at: float = 0.0
    token: str = ""  # stands in the address that a receipt is sent to, so that nobody can guess it
    receipt: str = ""  # delivered, or why not
    unconfirmed: bool = False  # the first gateway took it and no receipt came: for the second one
    digest: bool = False  # stands for texts that the rate limit held back

    def dump(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


def parse(data: bytes) -> Text:
    """A text from its file. Raises ValueError."""
    raw = json.loads(data)
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    known = {field.name for field in fields(Text)}
    try:
        return Text(**{name: value for name, value in raw.items() if name in known})
    except TypeError as error:
        raise ValueError(str(error)) from None


def key_of(*event: str) -> str:
    """The file name that stands for an event and a number; a new one each time when there is no event."""
    if not event:
        return f"{time.time_ns():x}-{os.urandom(4).hex()}"
    return hashlib.sha256("\0".join(event).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Spool:
    """A spool directory. It is made on first use; members of its group may all write and send."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, text: Text) -> bool:
        """Write a text down; False: it waits already, or was sent within its window. Raises SpoolError."""
        try:
            self._make()
            if self._already_sent(text):
                return False
            new = self._write(text, QUEUE)
            try:
                self._path(QUEUE, text).hardlink_to(new)
            except FileExistsError:
                return False
            finally:
                new.unlink()
            self._sync(QUEUE)
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror or error}") from None
        return True

    def try_writing(self) -> None:
        """Write a text and take it away again. Raises SpoolError when none could be written down."""
        try:
            self._make()
            self._write(Text(key="", number="", text="", at=0.0), QUEUE).unlink()
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror or error}") from None

    def pending(self, folder: str = QUEUE, since: float = 0.0) -> list[Text]:
        """What waits (or stands in another folder ``since`` a Unix time), oldest first. A damaged file is put aside.

        Raises SpoolError.
        """
        found = []
        try:
            for path in self._files(folder):
                if since and _changed(path) < since:
                    continue
                try:
                    found.append(parse(path.read_bytes()))
                except FileNotFoundError:
                    continue
                except ValueError as error:
                    self.log(problem=f"{path.name}: damaged: {error}")
                    path.replace(self.directory / FAILED / path.name)
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror or error}") from None
        return sorted(found, key=lambda text: text.at)

    def update(self, text: Text) -> None:
        """Note attempts and problem; with a full disk it stays unnoted."""
        with contextlib.suppress(OSError):
            self._write(text, QUEUE).replace(self._path(QUEUE, text))

    def needless(self, text: Text) -> bool:
        """Whether the event was told to this number already; then the text leaves the queue unsent."""
        sent = self._already_sent(text)
        if sent:
            self._path(QUEUE, text).unlink(missing_ok=True)
        return sent

    def settle(self, text: Text, folder: str, source: str = QUEUE) -> None:
        """Out of one folder into another. Raises SpoolError when not even that can be done."""
        try:
            try:
                self._write(text, folder).replace(self._path(folder, text))
                self._path(source, text).unlink(missing_ok=True)
            except OSError:  # no room for the new record: the old one takes none
                self._path(source, text).replace(self._path(folder, text))
                os.utime(self._path(folder, text))
            self._sync(folder)
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror or error}") from None

    def count(self, folder: str, since: float = 0.0) -> int:
        """How many texts stand in a folder (``since`` a Unix time), damaged ones included. Raises SpoolError."""
        try:
            return sum(not since or _changed(path) >= since for path in self._files(folder))
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror or error}") from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """True for the one process that may send; False when another does. Raises SpoolError."""
        try:
            self._make()
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError as error:
            raise SpoolError(f"{self.directory}/lock: {error.strerror}") from None
        with contextlib.closing(os.fdopen(handle, "rb")):
            _for_group(handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def prune(self, now: float) -> None:
        """Forget what was sent or failed long ago, and halves that a killed handler left."""
        with contextlib.suppress(OSError):
            for folder, kept in ((SENT, SENT_KEPT), (FAILED, FAILED_KEPT)):
                for path in self._files(folder):
                    _remove_older(path, now - kept)
            for path in self.directory.glob("*/.new-*"):
                _remove_older(path, now - HALF_KEPT)

    def log(self, **entry: object) -> None:
        """A line for people and for an incident's report. A full disk loses the line, never a text."""
        path = self.directory / "log.jsonl"
        line = json.dumps({"at": round(time.time(), 3), **entry}, ensure_ascii=False) + "\n"
        with contextlib.suppress(OSError):
            if path.exists() and path.stat().st_size > LOG_LIMIT:
                path.replace(path.with_suffix(".jsonl.1"))
            with path.open("a", encoding="utf-8") as file:
                _for_group(file.fileno())
                file.write(line)

    # ------------------------------------------------------------ files

    def _path(self, folder: str, text: Text) -> Path:
        return self.directory / folder / f"{text.key}.json"

    def _files(self, folder: str) -> list[Path]:
        try:
            return [path for path in (self.directory / folder).iterdir() if path.suffix == ".json"]
        except FileNotFoundError:
            return []

    def _already_sent(self, text: Text) -> bool:
        last = max(_changed(self._path(folder, text)) for folder in (AWAITED, SENT))
        return text.window > 0 and last > text.at - text.window

    def _make(self) -> None:
        for folder in (QUEUE, AWAITED, SENT, FAILED):
            path = self.directory / folder
            if not path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(PermissionError):
                    path.chmod(0o2770)  # the group's, whatever the umask: an operator's text is sent by the core's user

    def _write(self, text: Text, folder: str) -> Path:
        """The text under a name that nobody reads, on the disk. Leaves nothing behind when it fails."""
        path = self.directory / folder / f".new-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            with path.open("xb") as file:
                _for_group(file.fileno())
                file.write(text.dump())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _sync(self, folder: str) -> None:
        handle = os.open(self.directory / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _for_group(handle: int) -> None:
    with contextlib.suppress(PermissionError):  # another member's file has it already
        os.fchmod(handle, 0o660)


def _changed(path: Path) -> float:
    """When a file was written last; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_older(path: Path, at: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mtime < at:
            path.unlink()
