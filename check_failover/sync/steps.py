"""The steps of one run, in order; read this second.

1. refused?      ``guard`` checks the direction against the daemons' answers
2. before        on the source server: export or snapshot; ``count`` prints the number of entries
3. relay         if both servers are remote: rsync copies the source's data to a directory on this machine first
4. look          a dry run shows what differs; a source that shrank is refused before anything is written
5. stage         rsync fills an empty directory beside the serving copy until a pass finds no difference
6. verify        the site's own command; it may build what the service needs inside the staged copy
7. switch        one rename moves the link; ``after`` reloads the service; if ``after`` fails, the link moves back

No step writes to the receiving server's serving copy, so a run may fail at any moment and that copy is still complete.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from check_failover.model import Service, SyncSpec
from check_failover.sync.controller_access import ControllerAccess
from check_failover.sync.guard import Standing, SyncRefusedError, check_direction, check_size
from check_failover.sync.hosts import Host, SyncStepError, remote, run
from check_failover.sync.rsync import Place, TransferReport, copy
from check_failover.syncstate import Phase, Refusal, Size, SyncDirection, SyncState, directory

T = TypeVar("T")

MAX_PASSES = 4  # over a source that changes while rsync reads it; if that is not enough, it needs a snapshot


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
    may_chown: bool  # whether this process is root and may set the owners of relayed files
    accept_shrink: bool = False
    full: bool = False
    say: Callable[[str], None] = lambda _text: None
    progress: Callable[[str], None] | None = None
    enter: Callable[[Phase], None] = lambda _phase: None  # records the phase
    sent: int = 0  # bytes on the wire so far, comparisons included

    @property
    def name(self) -> str:
        return self.service.name

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


def sync(job: Job, state: SyncState, started: float) -> SyncState:
    """All steps; returns the new record. Raises SyncRefusedError, SyncStepError; the serving copy stays complete."""
    standing = job.access.standing()
    check_direction(job.direction, standing)
    if job.spec.method == "syncrepl":
        return watch(job, state, started)
    full = job.full or state.equal_at is None or (standing.since is not None and standing.since > state.equal_at)
    found = inspect(job)
    if "pending" in found:
        full = resume(job) or full
        found = inspect(job)
    serving = found.get("current")
    entries = export(job)
    origin = bring(job, state, serving, entries)

    destination = job.copy_place(serving) if serving else None
    look = compare(job, origin, destination) if destination else None
    if look is not None:
        guard_size(job, state, look, entries, serving)
    if look is None or look.different or full:
        look = renew(job, state, origin, serving, entries, look)
    else:
        job.say("nothing differs: the receiving server stays unchanged")
        remote(job.receiver, "discard", job.spec.copy_path)
    now_equal = replace(
        state,
        equal_at=started,
        direction=job.direction,
        took=time.time() - started,
        changed=look.different,
        differed_files=look.differed_files,
        differed_bytes=look.differed_bytes,
        sent=job.sent,
        size=Size(look.files, look.bytes, entries),
        problem=None,
    )
    return replace(now_equal, synced_back=started) if job.direction is SyncDirection.REVERSE else now_equal


def watch(job: Job, state: SyncState, started: float) -> SyncState:
    """Compare servers that replicate by themselves."""
    from check_failover.sync import replicated  # imports ldap3, 20 MiB

    shrink = 1.0 if job.accept_shrink else job.spec.max_shrink
    limit = min(job.spec.timeout, 60.0)
    return replicated.compare(job.service, job.direction, state, started, max_shrink=shrink, limit=limit)


def inspect(job: Job) -> dict[str, str]:
    """State of the receiving server's copies. Raises SyncRefusedError if failover-sync did not make them."""
    found = remote(job.receiver, "inspect", job.spec.copy_path)
    path = job.spec.copy_path
    if "directory" in found:
        text = f"{path} on the {job.receiver} is an ordinary directory; run once: failover-sync --adopt {job.name}"
        raise SyncRefusedError(Refusal.NOT_ADOPTED, text)
    if "foreign" in found:
        text = f"{path} on the {job.receiver} is foreign ({found['foreign']}); set another path in [service.sync] to"
        raise SyncRefusedError(Refusal.NOT_ADOPTED, text)
    return found


def export(job: Job) -> int | None:
    """Run ``before`` and ``count`` on the source server; the number of entries, or None without ``count``."""
    spec = job.spec
    if spec.before:
        timed(job, "before", lambda: run(job.source, fill(job, spec.before), spec.timeout))
    if not spec.count:
        return None
    out = run(job.source, fill(job, spec.count), spec.timeout)
    try:
        return int(out)
    except ValueError:
        raise SyncStepError(f"{job.source}: count: printed {out[:40]!r}, not a number") from None


def bring(job: Job, state: SyncState, serving: str | None, entries: int | None) -> Place:
    """The directory for the next rsync to read: on the source server, or the updated relay directory here."""
    source = Place(job.source, job.spec.source_path)
    relay = job.relay
    if relay is None:
        return source
    Path(relay.path).mkdir(parents=True, exist_ok=True, mode=0o700)
    look = copy(source, relay, job.spec, checksum=False, dry=True, own_owners=job.may_chown)
    job.sent += look.wire
    guard_size(job, state, look, entries, serving)  # a wiped source must not overwrite the relay either
    passes(job, source, relay)
    return relay


def compare(job: Job, origin: Place, destination: Place) -> TransferReport:
    """What differs, by a dry run; nothing is written."""
    report = copy(
        origin, destination, job.spec, checksum=job.spec.checksum, dry=True, own_owners=job.may_chown or not job.relay
    )
    job.sent += report.wire
    job.say(f"{report.differed_files} of {report.files} files differ ({report.differed_bytes} bytes)")
    return report


def differences(job: Job, serving: str | None) -> tuple[int, int, int]:
    """Differing files, differing bytes, files in all; changes neither server. An upper bound if there is a relay."""
    source, relay = Place(job.source, job.spec.source_path), job.relay
    destination = job.copy_place(serving) if serving else nothing(job)
    legs = [(source, destination)]
    if relay is not None:
        Path(relay.path).mkdir(parents=True, exist_ok=True, mode=0o700)
        filled = any(Path(relay.path).iterdir())
        legs = [(source, relay), *([(relay, destination)] if filled else [])]
    checksum, owners = job.spec.checksum, job.may_chown or relay is None
    reports = [copy(a, b, job.spec, checksum=checksum, dry=True, own_owners=owners) for a, b in legs]
    return sum(r.differed_files for r in reports), sum(r.differed_bytes for r in reports), reports[0].files


def nothing(job: Job) -> Place:
    """An empty directory; a dry run against it counts all files of a server."""
    empty = directory(job.state_dir) / ".empty"
    empty.mkdir(exist_ok=True, mode=0o700)
    return Place(Host("relay"), str(empty))


def guard_size(job: Job, state: SyncState, look: TransferReport, entries: int | None, serving: str | None) -> None:
    """Refuse a source that shrank since the last good run; without one, compare with the receiving server."""
    if job.accept_shrink:
        return
    good = state.size
    if good is None and serving is not None:
        have = copy(job.copy_place(serving), nothing(job), job.spec, checksum=False, dry=True)
        good = Size(have.files, have.bytes)
    check_size(Size(look.files, look.bytes, entries), good, job.spec.max_shrink)


def renew(
    job: Job, state: SyncState, origin: Place, serving: str | None, entries: int | None, look: TransferReport | None
) -> TransferReport:
    """Stage, verify, switch. Returns what differed before and the size of the new copy."""
    job.enter(Phase.TRANSFER)
    made = remote(job.receiver, "prepare", job.spec.copy_path, secrets.token_hex(2))
    name = made["copy"]
    staged = job.copy_place(f"staging-{name}")
    bases = [job.copy_place(b).path for b in (serving, made.get("leftover")) if b]
    done = timed(job, "transfer", lambda: passes(job, origin, staged, bases))
    if look is None:
        look = done
    look.files, look.bytes = done.files, done.bytes
    guard_size(job, state, look, entries, serving)  # the source may have been wiped during the transfer
    if job.spec.verify:
        verify = fill(job, job.spec.verify, staged.path, entries)
        timed(job, "verify", lambda: run(job.receiver, verify, job.spec.timeout))
    job.enter(Phase.SWITCH)
    standing: Standing = job.access.standing()
    check_direction(job.direction, standing)  # after a flip during this run the direction would be wrong
    timed(job, "switch", lambda: switch(job, name))
    try:
        remote(job.receiver, "prune", job.spec.copy_path, str(job.spec.keep))
    except SyncStepError as error:
        job.say(str(error))  # the new copy serves; the next run removes the old ones
    return look


def passes(job: Job, origin: Place, destination: Place, basis: Sequence[str] = ()) -> TransferReport:
    """Run rsync until a pass finds no difference; with ``checksum`` the last pass compared all contents."""
    partial = (
        f"{job.spec.copy_path}.sync/partial" if destination.host.role != "relay" else f"{destination.path}.partial"
    )
    owners = job.may_chown or job.relay is None
    for number in range(MAX_PASSES):
        report = copy(
            origin,
            destination,
            job.spec,
            checksum=job.spec.checksum and number > 0,
            basis=basis,
            partial=partial,
            own_owners=owners,
            progress=job.progress,
        )
        job.sent += report.wire
        if number == 0:
            first = report
        elif not report.different and not report.touched:  # a new time means a write since the pass before
            report.differed_files, report.other = first.differed_files, first.other
            report.differed_bytes = first.differed_bytes
            return report
    moving = report.differed_files + report.touched
    raise SyncStepError(
        f"{origin.host}: {origin.path} keeps changing while rsync reads it ({moving} files in pass "
        f"{MAX_PASSES}): export or snapshot it with before = [...]"
    )


def switch(job: Job, name: str) -> None:
    """Move the link and run ``after``; if ``after`` fails, move the link back."""
    remote(job.receiver, "switch", job.spec.copy_path, name)
    settle(job)


def resume(job: Job) -> bool:
    """Finish a run that was killed after its switch. True if that failed: this run must make a new copy then."""
    job.say("an earlier run was killed after its switch: finishing it")
    try:
        settle(job)
    except SyncStepError as error:
        job.say(str(error))
        return True
    return False


def settle(job: Job) -> None:
    """Run ``after`` for the copy that the link points to, and make the switch final."""
    if job.spec.after:
        try:
            run(job.receiver, fill(job, job.spec.after), job.spec.timeout)
        except SyncStepError as error:
            raise SyncStepError(f"{error}; {put_back(job)}") from None
    remote(job.receiver, "settle", job.spec.copy_path)


def put_back(job: Job) -> str:
    """Switch back to the previous copy; returns the outcome for the error's text."""
    try:
        remote(job.receiver, "back", job.spec.copy_path)
        run(job.receiver, fill(job, job.spec.after), job.spec.timeout)
    except SyncStepError as error:
        return f"and switching back failed too, check the {job.receiver}: {error}"
    return "the previous copy serves again"


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

    def put(argument: str) -> str:
        for word, value in words.items():
            argument = argument.replace(word, value)
        return argument

    return [put(argument) for argument in command]


def timed(job: Job, what: str, step: Callable[[], T]) -> T:
    """Run a step, and report its name and duration."""
    job.say(f"{what} ...")
    began = time.monotonic()
    result = step()
    job.say(f"{what}: {time.monotonic() - began:.1f} s")
    return result
