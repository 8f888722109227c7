"""The steps of one run, in order; read this second.

1. refused?      ``guard`` checks the direction against the daemons' answers; a switch that a killed run left half
                 done, on either server, is finished or taken back, so that each server serves what its link names
2. before        on the source server: export or snapshot; ``count`` prints the number of entries
3. survey        a listing of the source: how large it is, and whether it has files that are unsafe to copy
   changed?      ``lineage``: what clients wrote to the receiving server is overwritten only if a person decides so, and
                 is put aside then
4. relay         if both servers are remote: rsync copies the source's data to a directory on this machine first
5. look          a dry run shows what differs; a source that shrank is refused before anything is written
6. stage         rsync fills an empty directory beside the serving copy until a pass finds no difference
7. verify        the site's own command; it may build what the service needs inside the staged copy
8. switch        one rename moves the link; ``after`` reloads the service; if ``after`` fails, the link moves back

No step writes to the receiving server's serving copy, so a run may fail at any moment and that copy is still complete.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from check_failover.sync import lineage, replicated
from check_failover.sync.guard import Standing, check_direction, check_size
from check_failover.sync.hosts import Host, SyncStepError, remote, run
from check_failover.sync.job import Job, fill, timed
from check_failover.sync.rsync import NO_SPACE, Place, TransferReport, copy
from check_failover.sync.survey import inspect, nothing, survey
from check_failover.sync.switching import leased, renewed, resume, switch
from check_failover.syncstate import Phase, Size, SyncDirection, SyncState

FULL = 1024  # KiB of free space: a program that needed more has failed for that reason
MAX_PASSES = 4  # over a source that changes while rsync reads it; if that is not enough, it needs a snapshot


def sync(job: Job, state: SyncState, started: float) -> SyncState:
    """All steps; returns the new record. Raises SyncRefusedError, SyncStepError; the serving copy stays complete."""
    if job.spec.method != "rsync":
        return replicated.watch(job, state, started)
    standing = lineage.standing(job)
    if not job.take:
        check_direction(job.direction, standing)
    how = lineage.ways(job, standing, state)
    with leased(job):
        return copied(job, state, standing, started, how)


def copied(job: Job, state: SyncState, standing: Standing, started: float, how: str) -> SyncState:
    """The steps of a run that was not refused, under the lease; ``how``: see ``lineage.ways``."""
    full = job.full or job.take or job.merge
    full = full or state.equal_at is None or (standing.since or 0.0) > state.equal_at
    found = inspect(job)
    pending = [on for on in (job.source, job.receiver) if "pending" in found[on]]
    if pending:
        full = sum(resume(job, on) for on in pending) > 0 or full
        found = inspect(job)
    serving = found[job.receiver].get("current")
    if job.merge:
        from check_failover.sync import merging  # imports ldap3, 20 MiB

        merging.merge(job, state, serving, {on.role: export(job, on) for on in (job.source, job.receiver)})
    began = job.access.now()
    entries = export(job, job.source)
    listed = survey(job, contents=lineage.exact(job, how))
    digests, changed = lineage.examine(job, state, how, listed.digest, serving)
    full = full or changed
    if job.take:
        lineage.put_aside(job, serving)
    origin = bring(job, state, serving, entries)

    destination = job.copy_place(serving) if serving else None
    look = compare(job, origin, destination) if destination else None
    if look is not None:
        guard_size(job, state, look, entries, serving)
    switched = look is None or look.different or full
    if look is None or switched:
        look = renew(job, state, origin, serving, entries, look, listed.bytes if look is None else look.differed_bytes)
    else:
        job.say("nothing differs: the receiving server stays unchanged")
        remote(job.receiver, "discard", job.spec.copy_path)
    now_equal = replace(
        state,
        equal_at=began,
        direction=job.direction,
        took=job.access.now() - started,
        changed=look.different,
        differed_files=look.differed_files,
        differed_bytes=look.differed_bytes,
        sent=job.sent,
        size=Size(look.files, look.bytes, entries),
        skew=job.skew,
        note=job.note,
        digests=lineage.left(job, state, digests, switched=switched),
        problem=None,
    )
    if job.direction is SyncDirection.FORWARD and not job.take:
        return now_equal
    return replace(now_equal, synced_back=began, synced_back_end=job.access.now())


def export(job: Job, on: Host) -> int | None:
    """Run ``before`` and ``count`` on a server; the number of entries, or None without ``count``."""
    spec = job.spec
    if spec.before:
        timed(job, "before", lambda: run(on, fill(job, spec.before), spec.timeout))
    if not spec.count:
        return None
    out = run(on, fill(job, spec.count), spec.timeout)
    try:
        return int(out)
    except ValueError:
        raise SyncStepError(f"{on}: count: printed {out[:40]!r}, not a number") from None


def bring(job: Job, state: SyncState, serving: str | None, entries: int | None) -> Place:
    """The directory for the next rsync to read: on the source server, or the updated relay directory here."""
    source = Place(job.source, job.spec.source_path)
    relay = job.relay
    if relay is None:
        return source
    look = copy(source, relay, job.spec, checksum=False, dry=True, keeps=job.keeps)
    job.sent += look.wire
    guard_size(job, state, look, entries, serving)  # a wiped source must not overwrite the relay either
    passes(job, source, relay)
    return relay


def compare(job: Job, origin: Place, destination: Place) -> TransferReport:
    """What differs, by a dry run; nothing is written."""
    report = copy(origin, destination, job.spec, checksum=job.spec.checksum, dry=True, keeps=job.keeps)
    job.sent += report.wire
    job.say(f"{report.differed_files} of {report.files} files differ ({report.differed_bytes} bytes)")
    return report


def differences(job: Job, serving: str | None) -> tuple[int, int, int]:
    """Differing files, differing bytes, files in all; changes neither server. An upper bound if there is a relay."""
    source, relay = Place(job.source, job.spec.source_path), job.relay
    destination = job.copy_place(serving) if serving else nothing(job)
    legs = [(source, destination)]
    if relay is not None:
        filled = any(Path(relay.path).iterdir())
        legs = [(source, relay), *([(relay, destination)] if filled else [])]
    reports = [copy(a, b, job.spec, checksum=job.spec.checksum, dry=True, keeps=job.keeps) for a, b in legs]
    return sum(r.differed_files for r in reports), sum(r.differed_bytes for r in reports), reports[0].files


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
    job: Job,
    state: SyncState,
    origin: Place,
    serving: str | None,
    entries: int | None,
    look: TransferReport | None,
    needed: int,
) -> TransferReport:
    """Stage, verify, switch; ``needed``: bytes on disk. Returns what differed before and the size of the new copy."""
    job.enter(Phase.TRANSFER)
    made = renewed(job, "prepare", secrets.token_hex(2), str(needed))
    name = made["copy"]
    staged = job.copy_place(f"staging-{name}")
    bases = [job.copy_place(b).path for b in (serving, made.get("leftover")) if b]
    verifying = False
    try:
        done = timed(job, "transfer", lambda: passes(job, origin, staged, bases))
        if look is None:
            look = done
        look.files, look.bytes = done.files, done.bytes
        guard_size(job, state, look, entries, serving)  # the source may have been wiped during the transfer
        if job.spec.verify:
            verify, verifying = fill(job, job.spec.verify, staged.path, entries), True
            timed(job, "verify", lambda: run(job.receiver, verify, job.spec.timeout))
    except SyncStepError as error:
        raise SyncStepError(f"{error}{cleared(job, verifying or NO_SPACE in str(error))}") from None
    job.enter(Phase.SWITCH)
    standing = lineage.standing(job)
    if not job.take:
        check_direction(job.direction, standing)  # after a flip during this run the direction would be wrong
    lineage.unreached(job, standing)
    timed(job, "switch", lambda: switch(job, name))
    try:
        remote(job.receiver, "prune", job.spec.copy_path, str(job.spec.keep))
    except SyncStepError as error:
        job.say(str(error))  # the new copy serves; the next run removes the old ones
    return look


def cleared(job: Job, useless: bool) -> str:
    """Remove a useless staged copy, whose space the service may need; returns words for the error's text."""
    if not useless:
        return ""  # the next run goes on with it
    try:
        free = int(remote(job.receiver, "discard", job.spec.copy_path).get("free", "-1"))
    except (SyncStepError, ValueError):
        return ""
    return f"; the disk was full ({free} KiB free)" if 0 <= free < FULL else ""


def passes(job: Job, origin: Place, to: Place, basis: Sequence[str] = ()) -> TransferReport:
    """Run rsync until a pass finds no difference; with ``checksum`` the last pass compared all contents."""
    partial = f"{to.path}.partial" if to.host.role == "relay" else f"{job.spec.copy_path}.sync/partial"
    for number in range(MAX_PASSES):
        exact = job.spec.checksum and number > 0
        report = copy(
            origin, to, job.spec, checksum=exact, basis=basis, partial=partial, keeps=job.keeps, progress=job.progress
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
