"""Servers that replicate by themselves (``method = "syncrepl"``): a run compares and records, and copies nothing.

The data counts as equal at the start of a run if the receiving server has every contextCSN that the source server had
then. So sync age, refusals and the fail-back checklist work as they do for copied data: while the standby serves, each
run of the timer compares in reverse, and a fail-back waits until the primary had the standby's contextCSN within
``sync_back_valid`` (``sync_back = "unnecessary"``: it does not wait).
"""

import time
from dataclasses import replace

from check_failover.checks import ProbeError, replication
from check_failover.model import Service, Target
from check_failover.sync.guard import SyncRefusedError
from check_failover.sync.hosts import SyncStepError
from check_failover.syncstate import Refusal, Size, SyncDirection, SyncState, duration


def compare(
    service: Service, direction: SyncDirection, state: SyncState, started: float, *, max_shrink: float, limit: float
) -> SyncState:
    """The new record. Raises SyncRefusedError when the source lost entries, SyncStepError when the servers differ."""
    source = Target.PRIMARY if direction is SyncDirection.FORWARD else Target.STANDBY
    began = time.monotonic()
    try:
        found = replication.compare(service, source, limit)
    except (replication.QueryError, ProbeError) as error:
        raise SyncStepError(str(error)) from None
    counts = found.entries or {}
    have, there = counts.get(source), counts.get(source.other)
    had = state.size.entries if state.size else None
    if have == 0 or (have is not None and had and have < had * (1 - max_shrink)):
        text = "is empty" if have == 0 else f"shrank to {have} of {had} entries"
        raise SyncRefusedError(Refusal.SHRUNK, f"the {source} {text}; replication copies that to the {source.other}")
    if found.missing:
        raise SyncStepError(
            f"the {source.other} has no contextCSN of server {', '.join(found.missing)}: does it replicate?"
        )
    if found.lag is None:
        raise SyncStepError(f"the {source} keeps no contextCSN: is the overlay syncprov loaded, and may we read it?")
    if found.lag:
        raise SyncStepError(f"the {source.other} is behind: contextCSN {duration(found.lag)} older than the {source}'s")
    if have != there:
        raise SyncStepError(f"same contextCSN, but {have} entries on the {source} and {there} on the {source.other}")
    equal = replace(
        state,
        equal_at=started,
        direction=direction,
        took=time.monotonic() - began,
        changed=False,
        differed_files=0,
        differed_bytes=0,
        sent=0,
        size=None if have is None else Size(0, 0, have),
        problem=None,
    )
    if direction is SyncDirection.FORWARD:
        return equal
    return replace(equal, synced_back=started, synced_back_end=started + equal.took)
