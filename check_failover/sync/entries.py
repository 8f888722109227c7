"""Entries of two LDAP servers, and where each one changed since both were equal.

An entry has the same entryUUID on both servers (RFC 4530); its entryCSN is the time of its last change by the clock of
the server that made it, so it shows on which server the entry changed. Entries that changed on both are conflicts.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from check_failover.checks import ProbeError, replication
from check_failover.checks.replication import Entry, QueryError
from check_failover.model import Service, Target
from check_failover.sync.hosts import SyncStepError
from check_failover.syncstate import SKEW

Entries = Mapping[str, Entry]  # by entryUUID


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry, and the server on which it changed."""

    dn: str
    on: Target | None  # None: a conflict
    what: str

    def __str__(self) -> str:
        return f"{self.dn}: {self.what}" + (f" on the {self.on}" if self.on else "")


def read(service: Service, limit: float) -> tuple[Entries, Entries]:
    """The entries of the primary and of the standby. Raises SyncStepError."""
    try:
        primary, standby = (replication.entries(service, target, time.monotonic() + limit) for target in Target)
    except (QueryError, ProbeError) as error:
        raise SyncStepError(str(error)) from None
    return primary, standby


def compare(primary: Entries, standby: Entries, equal_at: float) -> list[Difference]:
    """What differs. Both were equal at ``equal_at`` (Unix time); times within ``SKEW`` of it show nothing. Pure."""
    found = [_both(primary[uuid], standby[uuid], equal_at) for uuid in primary.keys() & standby.keys()]
    for on, mine, theirs in ((Target.PRIMARY, primary, standby), (Target.STANDBY, standby, primary)):
        named = {entry.dn.lower(): entry for entry in theirs.values()}
        only = [mine[uuid] for uuid in mine.keys() - theirs.keys()]
        found += [_alone(entry, on, named.get(entry.dn.lower()), equal_at) for entry in only]
    return sorted((one for one in found if one is not None), key=lambda one: one.dn)


def _both(ours: Entry, theirs: Entry, equal_at: float) -> Difference | None:
    if ours.csn == theirs.csn or ours.same(theirs):
        return None
    if ours.dn.lower() != theirs.dn.lower():
        return Difference(ours.dn, None, f"is {theirs.dn} on the standby")
    old, new = sorted((ours, theirs), key=lambda entry: entry.changed)
    if old.changed < equal_at - SKEW and new.changed > equal_at + SKEW:
        return Difference(new.dn, Target.PRIMARY if new is ours else Target.STANDBY, "changed")
    return Difference(ours.dn, None, "changed on both servers")


def _alone(entry: Entry, on: Target, twin: Entry | None, equal_at: float) -> Difference | None:
    """An entry that only one server has; ``twin``: another one of the same name on the other server."""
    if twin is not None:
        return None if twin.same(entry) else Difference(entry.dn, None, "added on both servers")
    if entry.created > equal_at + SKEW:
        return Difference(entry.dn, on, "added")
    if entry.changed < equal_at - SKEW:
        return Difference(entry.dn, on.other, "deleted")
    return Difference(entry.dn, None, f"changed on the {on}, deleted on the {on.other}")
