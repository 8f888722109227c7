"""The sync record: failover-sync writes how fresh the standby's data is; daemons, checks and failoverctl read it.

Each step of a run replaces ``state_dir/sync/NAME.json`` atomically, so a reader never sees half a record. A run locks
``NAME.lock`` until its process ends, so a killed run does not count as running.
Times in the record are wall clock (Unix time), because they must survive a restart.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
import time
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from check_failover.model import Facts, Service, State, Target
from check_failover.records import Count, Moment, RecordError, Seconds, read_json, read_own

CLOCK_SLACK = 60.0  # seconds by which a time may be ahead of our clock and still be valid
LIMIT = 1 << 20  # bytes that are read of a record; a valid one has about a thousand
PEER_SILENT = 15.0  # seconds without a word from a pair's other controller until its run does not count
SKEW = 5.0  # seconds between two clocks that a person should know of


class SyncDirection(StrEnum):
    """The source of the data: the primary (``forward``) or the standby (``reverse``)."""

    FORWARD = "forward"
    REVERSE = "reverse"


class Phase(StrEnum):
    """The progress of a run. The receiving server's data changes in ``SWITCH`` only, which takes seconds."""

    PREPARE = "prepare"
    TRANSFER = "transfer"
    SWITCH = "switch"


class Refusal(StrEnum):
    """Why a run was refused or failed. Records, texts and tests contain these words: never rename one."""

    RUNNING = "already-running"
    TARGET_UNKNOWN = "target-unknown"
    TARGET_STANDBY = "target-is-standby"
    TARGET_PRIMARY = "target-is-primary"
    PRIMARY_FAILING = "primary-failing"
    SHRUNK = "source-shrank"
    NOT_ADOPTED = "not-adopted"
    UNSAFE = "unsafe-files"
    BOTH_SERVED = "both-served"  # clients may have written to both servers
    OTHER_DIRECTION = "other-direction"  # only the receiving server has changed
    STILL_REACHED = "still-reached"  # clients may write to the receiving server now
    BROKEN = "replication-broken"  # between servers that replicate by themselves
    FAILED = "failed"  # a step failed


# A person must decide which server's writes may go.
DIVIDED = frozenset({Refusal.BOTH_SERVED, Refusal.OTHER_DIRECTION})


@dataclass(frozen=True, slots=True)
class Digests:
    """Digest of each server's data when both were equal. None: unknown; empty: the server had no data."""

    primary: str | None = None
    standby: str | None = None

    def of(self, server: Target) -> str | None:
        return self.primary if server is Target.PRIMARY else self.standby

    def put(self, server: Target, digest: str | None) -> Digests:
        return replace(self, **{server.value: digest})


@dataclass(frozen=True, slots=True)
class Size:
    """How much data a server has. ``entries`` is the number that the configured ``count`` command printed."""

    files: Count
    bytes: Count
    entries: Count | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A run in progress."""

    pid: Count
    since: Moment
    direction: SyncDirection
    phase: Phase
    until: float | None = None  # from then on it no longer holds up a flip


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the last run did not succeed."""

    at: Moment
    reason: Refusal
    text: str


@dataclass(frozen=True, slots=True)
class SyncState:
    """The record of one service. In a time, ``None`` means that the event never happened."""

    equal_at: Moment | None = None  # start of the last good run's export: both servers had the same data then
    direction: SyncDirection = SyncDirection.FORWARD  # of that run
    took: Seconds = 0.0  # seconds of that run
    changed: bool = False  # whether that run found differences
    differed_files: Count = 0  # before that run
    differed_bytes: Count = 0
    sent: Count = 0  # bytes on the wire
    size: Size | None = None  # of the source server's data
    synced_back: Moment | None = None  # start of the export of the last good run in reverse
    synced_back_end: Moment | None = None  # end of that run
    skew: float = 0.0  # seconds by which the source server's clock was ahead of the controller's
    note: str = ""  # what a good run could not copy, or noticed, for people
    digests: Digests = Digests()  # as of that run
    kept: str = ""  # where the last run with --take put the other server's data
    running: Running | None = None
    problem: Problem | None = None
    damaged: str | None = None  # why the record cannot be read

    @property
    def undecided(self) -> str:
        """What a person must decide about clients' writes; empty: nothing."""
        return self.problem.text if self.problem is not None and self.problem.reason in DIVIDED else ""

    def standby_serves(self, now: float, lately: float) -> bool:
        """Whether the last run, at most ``lately`` seconds ago, was refused because the standby serves."""
        problem = self.problem
        return problem is not None and problem.reason is Refusal.TARGET_STANDBY and now - problem.at <= lately

    def age(self, now: float) -> float | None:
        """The sync age at ``now`` (wall clock): seconds since the data was equal; ``None``: unknown."""
        if self.equal_at is None or self.equal_at > now + CLOCK_SLACK:
            return None
        return max(0.0, now - self.equal_at)

    def blocks(self, now: float) -> bool:
        """Whether a flip must wait (``Facts.sync_running``) because a run is changing the data of the flip's target.

        A forward run fills a staging directory until its switch; the standby stays consistent and may take over. A
        reverse run changes the primary, the target of a fail-back, so it blocks from its start. A switch blocks for
        ``SyncSpec.after_timeout`` at most, even if ``after`` hangs.
        """
        running = self.running
        if running is None or (running.until is not None and now >= running.until):
            return False
        return running.direction is SyncDirection.REVERSE or running.phase is Phase.SWITCH

    def brought_back(self, since: float | None, now: float, valid: float) -> bool:
        """Whether the primary has the data written to the standby since the flip at ``since``.

        The export must have begun after the flip. Clients may write again afterwards, so the run counts for ``valid``
        seconds from its end (``Situation.synced_back``).
        """
        at = self.synced_back
        if at is None or (since is not None and at < since):
            return False
        end = at if self.synced_back_end is None else self.synced_back_end
        return now - valid <= end <= now + CLOCK_SLACK


def parse(text: str, now: float = math.inf, *, own: bool = False) -> SyncState:
    """The record that ``text`` holds as JSON. Raises RecordError for a wrong type, and for a time after ``now``.

    ``own``: from a file of ours; without a key that each version writes, or with an unknown one, it is damaged.
    """
    found = (read_own if own else read_json)(SyncState, text.encode())
    if own and not {"equal_at", "synced_back", "running", "problem"} <= set(json.loads(text)):
        raise RecordError("a key is missing")
    times = {name: getattr(found, name) for name in ("equal_at", "synced_back", "synced_back_end")}
    times |= {"running.since": found.running and found.running.since, "problem.at": found.problem and found.problem.at}
    for name, at in times.items():
        if at is not None and at > now + CLOCK_SLACK:
            raise RecordError(f"{name} is {at - now:.0f} s in the future: compare the controller's clock with it")
    return found


def dump(state: SyncState) -> str:
    """The record as one JSON line; ``parse`` reads it back."""
    return json.dumps(asdict(replace(state, damaged=None))) + "\n"


def directory(state_dir: Path) -> Path:
    """The directory of the records. Its owner is the user that failover-sync runs as."""
    return state_dir / "sync"


def peer_record(state_dir: Path, name: str) -> Path:
    """A pair's redirector keeps the other controller's record there; the file's time is that of the last word."""
    return state_dir / "peer" / f"{name}.json"


def read(state_dir: Path, name: str) -> SyncState:
    """The record of a service; of a pair's two controllers the one that copied last. Errors are in ``damaged``."""
    mine, theirs = own(state_dir, name), theirs_of(state_dir, name)
    if mine.damaged is not None or theirs.damaged is not None:
        return replace(mine, note=mine.note or theirs.damaged or "")
    # The last good run, then the last problem since: one that must be decided by a person is shown by both.
    newest = max(
        (mine, theirs), key=lambda r: (max(r.equal_at or 0.0, r.synced_back or 0.0), r.problem.at if r.problem else 0.0)
    )
    return replace(newest, running=mine.running or theirs.running)


def theirs_of(state_dir: Path, name: str) -> SyncState:
    """The record of the other controller's runs. One that is not heard has ended, or holds nothing up from then on."""
    path = peer_record(state_dir, name)
    state = _load(path)
    known = state.running is None or state.running.until is not None
    return state if known or time.time() - path.stat().st_mtime <= PEER_SILENT else replace(state, running=None)


def own(state_dir: Path, name: str) -> SyncState:
    """The record of this controller's runs, empty before the first one. The kernel releases a killed run's lock."""
    state = _load(directory(state_dir) / f"{name}.json")
    return replace(state, running=state.running if state.running and locked(state_dir, name) else None)


def _load(path: Path) -> SyncState:
    try:
        return parse(read_file(path).decode(), time.time(), own=True)
    except FileNotFoundError:
        return SyncState()
    except OSError as error:
        return SyncState(damaged=f"{path}: cannot read: {error.strerror}")
    except ValueError as error:
        return SyncState(damaged=f"{path}: damaged: {error}")


def read_file(path: Path, limit: int = LIMIT) -> bytes:
    """The beginning of a file. Raises OSError, and ValueError for what is none: a FIFO would block the daemons."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a file")
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def locked(state_dir: Path, name: str) -> bool:
    """Whether a running failover-sync holds the lock of that service (flock(2))."""
    path = directory(state_dir) / f"{name}.lock"
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)  # no permission to test the lock: trust the record
    return False


def known(state_dir: Path, service: Service, facts: Facts, now: float) -> Facts:
    """The facts with sync age and sync activity from the record; unchanged if the service has no sync."""
    if service.sync is None:
        return facts
    record = read(state_dir, service.name)
    return replace(
        facts, sync_age=record.age(now), sync_running=record.blocks(now), sync_undecided=bool(record.undecided)
    )


def limits(service: Service) -> tuple[float, float]:
    """Ages in seconds for WARNING and CRITICAL, from the policy; default: two and three missed runs at ten minutes."""
    crit = service.policy.max_sync_age or 1800.0
    return crit * 2 / 3, crit


def judge(state: SyncState, now: float, warn: float, crit: float) -> tuple[State, str]:
    """State and text of "NAME sync", for the active check and for the passive result after each run."""
    problem, age = state.problem, state.age(now)
    if state.damaged is not None:
        return State.UNKNOWN, state.damaged
    if state.standby_serves(now, crit):
        return State.OK, "the standby serves: nothing is copied to it"
    if problem is not None:
        known = "never in step" if age is None else f"in step {duration(age)} ago"
        severe = age is None or age > crit or problem.reason in (Refusal.SHRUNK, Refusal.BROKEN, *DIVIDED)
        return State.CRITICAL if severe else State.WARNING, f"{known}; {problem.text}"
    if age is None:
        return State.CRITICAL, "the standby's data was never in step"
    level = State.CRITICAL if age > crit else State.WARNING if age > warn else State.OK
    text = f"the standby's data was in step {duration(age)} ago"
    if abs(state.skew) > SKEW:
        source = "primary" if state.direction is SyncDirection.FORWARD else "standby"
        ahead = "ahead of" if state.skew > 0 else "behind"
        text += f"; the {source}'s clock is {duration(abs(state.skew))} {ahead} the controller's"
    return level, f"{text}; {state.note}" if state.note else text


def perfdata(state: SyncState, now: float, warn: float, crit: float) -> str:
    """The record's numbers as performance data, without those that were never measured."""
    age, size = state.age(now), state.size
    parts = [] if age is None else [f"sync_age={age:.0f}s;{warn:.0f};{crit:.0f};0"]
    if size is not None:
        parts += [f"files={size.files};;;0", f"bytes={size.bytes}B;;;0"]
        parts += [] if size.entries is None else [f"entries={size.entries};;;0"]
        parts += [f"differed_files={state.differed_files};;;0", f"differed_bytes={state.differed_bytes}B;;;0"]
        parts += [f"sent={state.sent}B;;;0", f"took={state.took:.1f}s;;;0"]
    return " ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person reads them in a text message: ``40 s``, ``12 min``, ``3 h``, ``2 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
