"""The spool: a directory with one file per text, so that a gateway that is down neither blocks Nagios nor loses texts.

    queue/KEY.json    waits for the gateway
    awaited/KEY.json  accepted by the gateway; its delivery receipt is outstanding
    sent/KEY.json     delivered, or accepted by a gateway without receipts; kept for a day to detect duplicates
    failed/KEY.json   refused for good by the gateway; kept for a month, for a person
    lock              flock(2), held by the only sender
    log.jsonl         one line for each attempt and each receipt

KEY is derived from event and number, so two handlers of the same event use one file name: ``link(2)`` succeeds for
only one of them, and the sender drops a text that is already in ``awaited`` or ``sent``. A text is written under a
temporary name, synced and linked, so no file is incomplete. Delivery is at least once: a sender killed between the
gateway's answer and the rename sends the text again, because a duplicate text is better than a lost one.

Times are Unix times, because they must survive a restart.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from check_failover.records import Moment, RecordError, read_json
from check_failover.syncstate import read_file

SENT_KEPT, FAILED_KEPT, HALF_KEPT = 86400.0, 30 * 86400.0, 3600.0  # seconds
LOG_LIMIT = 1 << 20  # bytes; then log.jsonl becomes log.jsonl.1
QUEUE, AWAITED, SENT, FAILED = "queue", "awaited", "sent", "failed"


class SpoolError(Exception):
    """The spool cannot be read or written (disk full, no such directory, no permission): one line."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text for one number, and its history."""

    key: str  # name of its file, derived from event and number
    number: str
    text: str
    at: Moment  # when it was requested
    window: float = 0.0  # seconds; a text with the same key, sent within this time before, makes it a duplicate
    attempts: int = 0
    problem: str = ""  # of the last attempt
    gateway: str = ""  # that accepted it
    sent_at: Moment = 0.0
    token: str = ""  # random part of the receipt's URL
    receipt: str = ""  # delivered, or why not
    unconfirmed: bool = False  # the first gateway accepted it, but did not confirm delivery: the second one's turn
    digest: bool = False  # replaces texts that the rate limit held back

    def dump(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


def key_of(*event: str) -> str:
    """The file name for an event and a number; without an event a new name for each call."""
    if not event:
        return f"{time.time_ns():x}-{os.urandom(4).hex()}"
    return hashlib.sha256("\0".join(event).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Spool:
    """A spool directory, created on first use; every member of its group may write and send."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, text: Text) -> bool:
        """Store a text; False if it already waits, or was sent within its window. Raises SpoolError."""
        with self._faults():
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
        return True

    def try_writing(self) -> None:
        """Write a file and remove it again. Raises SpoolError if the spool cannot store a text."""
        with self._faults():
            self._make()
            self._write(Text(key="", number="", text="", at=0.0), QUEUE).unlink()

    def pending(self, folder: str = QUEUE, since: float = 0.0) -> list[Text]:
        """The texts in a folder (``since`` a Unix time), oldest first; damaged files are moved to ``failed``.

        Raises SpoolError.
        """
        found = []
        with self._faults():
            for path in self._files(folder):
                if since and _changed(path) < since:
                    continue
                try:
                    text = read_json(Text, read_file(path))
                    if text.key != path.stem:  # it names the files that this text becomes
                        raise RecordError("its name is not its key")
                    found.append(text)
                except FileNotFoundError:
                    continue
                except ValueError as error:
                    self.log(problem=f"{path.name}: damaged: {error}")
                    path.replace(self.directory / FAILED / path.name)
        return sorted(found, key=lambda text: text.at)

    def update(self, text: Text) -> None:
        """Store attempts and problem of a queued text; a full disk is ignored."""
        with contextlib.suppress(OSError):
            self._write(text, QUEUE).replace(self._path(QUEUE, text))

    def needless(self, text: Text) -> bool:
        """Whether this number already got a text of the same event; then remove the text from the queue unsent."""
        sent = self._already_sent(text)
        if sent:
            self._path(QUEUE, text).unlink(missing_ok=True)
        return sent

    def settle(self, text: Text, folder: str, source: str = QUEUE) -> None:
        """Move a text from one folder to another. Raises SpoolError."""
        with self._faults():
            try:
                self._write(text, folder).replace(self._path(folder, text))
                self._path(source, text).unlink(missing_ok=True)
            except OSError:  # no space for the new record: moving the old one needs none
                self._path(source, text).replace(self._path(folder, text))
                os.utime(self._path(folder, text))
            self._sync(folder)

    def count(self, folder: str, since: float = 0.0) -> int:
        """How many texts are in a folder (``since`` a Unix time), damaged ones included. Raises SpoolError."""
        with self._faults():
            return sum(not since or _changed(path) >= since for path in self._files(folder))

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Try to become the only sender: True if this process got the lock, otherwise False. Raises SpoolError."""
        with self._faults():
            self._make()
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        with contextlib.closing(os.fdopen(handle, "rb")):
            _for_group(handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def prune(self, now: float) -> None:
        """Remove old files of sent and failed texts, and incomplete files of killed handlers."""
        with contextlib.suppress(OSError):
            for pattern, kept in (
                (f"{SENT}/*.json", SENT_KEPT),
                (f"{FAILED}/*.json", FAILED_KEPT),
                ("*/.new-*", HALF_KEPT),
            ):
                for path in self.directory.glob(pattern):
                    with contextlib.suppress(OSError):  # gone, or no file: it keeps no other
                        if path.stat().st_mtime < now - kept:
                            path.unlink()

    def log(self, **entry: object) -> None:
        """Append a line to the log, for people and for reports. A full disk loses the line, but never a text."""
        path = self.directory / "log.jsonl"
        line = json.dumps({"at": round(time.time(), 3), **entry}, ensure_ascii=False) + "\n"
        with contextlib.suppress(OSError):
            if path.exists() and path.stat().st_size > LOG_LIMIT:
                path.replace(path.with_suffix(".jsonl.1"))
            with path.open("a", encoding="utf-8") as file:
                _for_group(file.fileno())
                file.write(line)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Report a file's error as SpoolError."""
        try:
            yield
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror or error}") from None

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
                    path.chmod(0o2770)  # despite the umask: the core's user sends an operator's text

    def _write(self, text: Text, folder: str) -> Path:
        """Write a text to a temporary file and sync it. Removes the file on failure."""
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
    with contextlib.suppress(PermissionError):  # a file of another member already has this mode
        os.fchmod(handle, 0o660)


def _changed(path: Path) -> float:
    """The time of a file's last change; 0 if the file does not exist."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
