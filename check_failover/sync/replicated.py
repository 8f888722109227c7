"""Servers that replicate by themselves: a run compares and records, and copies nothing.

The data counts as equal at the start of a run if the receiving server has all that the source server had then: every
contextCSN (``method = "syncrepl"``), the WAL location (``postgresql``) or the GTIDs (``mariadb``). A database server
that is behind had equal data at the time of the newest transaction that it has.

So sync age, refusals and the fail-back checklist work as they do for copied data: while the standby serves, each run
of the timer compares in reverse, and a fail-back waits until the primary had the standby's changes within
``sync_back_valid`` (``sync_back = "unnecessary"``: it does not wait).
"""

import time
from dataclasses import replace

from check_failover.checks import ProbeError, QueryError
from check_failover.model import Target
from check_failover.sync import databases
from check_failover.sync.guard import SyncRefusedError, check_direction, ends
from check_failover.sync.hosts import SyncStepError
from check_failover.sync.job import Job
from check_failover.syncstate import Refusal, Size, SyncDirection, SyncState, duration


def watch(job: Job, state: SyncState, started: float) -> SyncState:
    """The new record, by a comparison that always begins at the serving server. Raises as ``compare`` does."""
    standing = job.access.standing()
    away = job.direction is SyncDirection.FORWARD and standing.target is Target.STANDBY
    if away:
        job.direction = SyncDirection.REVERSE
    check_direction(job.direction, standing)
    try:
        return compare(job, state, started)
    except SyncStepError as error:
        if not away:
            raise
        text = f"the standby serves; the primary does not have its changes: {error}"
        raise SyncRefusedError(Refusal.TARGET_STANDBY, text) from None


def compare(job: Job, state: SyncState, started: float) -> SyncState:
    """The new record. Raises SyncStepError when the servers differ or do not answer, SyncRefusedError when the source
    lost entries or replication does not run.
    """
    began, limit, note, size = time.monotonic(), min(job.spec.timeout, 60.0), "", None
    try:
        if job.spec.method in databases.METHODS:
            lag, note = databases.compare(job.service, job.spec, job.direction, limit)
        else:
            lag, size = 0.0, _directories(job, state, limit)
    except (QueryError, ProbeError) as error:
        raise SyncStepError(str(error)) from None
    took = time.monotonic() - began
    equal_at = state.equal_at if lag is None else max(started - lag, state.equal_at or 0.0)
    good = SyncState(equal_at, job.direction, took, size=size, note=note, kept=state.kept)
    if job.direction is SyncDirection.FORWARD:
        return replace(good, synced_back=state.synced_back, synced_back_end=state.synced_back_end)
    return replace(good, synced_back=started, synced_back_end=started + took)


def _directories(job: Job, state: SyncState, limit: float) -> Size | None:
    """The number of entries, if both LDAP servers have the same contextCSN and entries."""
    from check_failover.checks import replication  # imports ldap3, 20 MiB

    source, receiver = ends(job.direction)
    found = replication.compare(job.service, source, limit)
    counts = found.entries or {}
    have, there = counts.get(source), counts.get(receiver)
    had = state.size.entries if state.size else None
    most = 1.0 if job.accept_shrink else job.spec.max_shrink
    if have == 0 or (have is not None and had and have < had * (1 - most)):
        text = "is empty" if have == 0 else f"shrank to {have} of {had} entries"
        raise SyncRefusedError(Refusal.SHRUNK, f"the {source} {text}; replication copies that to the {receiver}")
    if found.missing:
        raise SyncStepError(
            f"the {receiver} has no contextCSN of server {', '.join(found.missing)}: does it replicate?"
        )
    if found.lag is None:
        raise SyncStepError(f"the {source} keeps no contextCSN: is the overlay syncprov loaded, and may we read it?")
    if found.lag:
        raise SyncStepError(f"the {receiver} is behind: contextCSN {duration(found.lag)} older than the {source}'s")
    if have != there:
        raise SyncStepError(f"same contextCSN, but {have} entries on the {source} and {there} on the {receiver}")
    return None if have is None else Size(0, 0, have)
