"""Entries of two LDAP servers, and where each one changed since both were equal.

An entry has the same entryUUID on both servers (RFC 4530); its entryCSN is the time of its last change by the clock of
the server that made it, so it shows on which server the entry changed. Entries that changed on both are conflicts.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from check_failover.checks import ProbeError, QueryError, replication
from check_failover.checks.replication import Entry
from check_failover.model import Service, Target
from check_failover.sync.hosts import SyncStepError
from check_failover.syncstate import SKEW, SyncState

Entries = Mapping[str, Entry]  # by entryUUID


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry, and the server on which it changed."""

    uuid: str
    dn: str
    on: Target | None  # None: a conflict
    what: str

    def __str__(self) -> str:
        return f"{self.dn}: {self.what}" + (f" on the {self.on}" if self.on else "")


@dataclass(frozen=True, slots=True)
class InStep:
    """When both servers became equal, as exactly as clocks and the run's length show it; times between show nothing."""

    begin: float
    end: float


def in_step(state: SyncState, apart: float) -> InStep:
    """The last good run; ``apart``: how far a server's clock is from the controller's, or was then. Seconds."""
    at, unsure = state.equal_at or 0.0, SKEW + max(apart, abs(state.skew))
    return InStep(at - unsure, at + state.took + unsure)


def whole(service: Service, limit: float) -> Service:
    """The service with the identity of ``[service.sync]``, and with all that its database holds as the base.

    Raises SyncStepError.
    """
    options, sync = dict(service.check.options), service.sync
    if sync is not None and sync.bind_dn is not None:
        options |= {"bind_dn": sync.bind_dn, "bind_password_file": sync.bind_password_file}
    found = replace(service, check=replace(service.check, options=options))
    with failing():
        options["base"] = replication.suffix(found, Target.PRIMARY, time.monotonic() + limit)
    return replace(service, check=replace(service.check, options=options))


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """An LDAP server's error is that of the step: SyncStepError."""
    try:
        yield
    except (QueryError, ProbeError) as error:
        raise SyncStepError(str(error)) from None


def read(service: Service, limit: float) -> tuple[Entries, Entries]:
    """The entries of the primary and of the standby. Raises SyncStepError."""
    with failing():
        primary, standby = (replication.entries(service, target, time.monotonic() + limit) for target in Target)
    return primary, standby


def compare(primary: Entries, standby: Entries, equal: InStep) -> list[Difference]:
    """What differs. Pure."""
    found = [_both(uuid, primary[uuid], standby[uuid], equal) for uuid in primary.keys() & standby.keys()]
    for on, mine, theirs in ((Target.PRIMARY, primary, standby), (Target.STANDBY, standby, primary)):
        named = {entry.dn.lower(): entry for entry in theirs.values()}
        for uuid in mine.keys() - theirs.keys():
            found.append(_alone(uuid, mine[uuid], on, named.get(mine[uuid].dn.lower()), equal))
    return sorted((one for one in found if one is not None), key=lambda one: one.dn)


def _both(uuid: str, ours: Entry, theirs: Entry, equal: InStep) -> Difference | None:
    if ours.csn == theirs.csn or ours.same(theirs):
        return None
    if ours.dn.lower() != theirs.dn.lower():
        return Difference(uuid, ours.dn, None, f"is {theirs.dn} on the standby")
    old, new = sorted((ours, theirs), key=lambda entry: entry.changed)
    if old.changed < equal.begin and new.changed > equal.end:
        return Difference(uuid, new.dn, Target.PRIMARY if new is ours else Target.STANDBY, "changed")
    return Difference(uuid, ours.dn, None, "changed on both servers")


def _alone(uuid: str, entry: Entry, on: Target, twin: Entry | None, equal: InStep) -> Difference | None:
    """An entry that only one server has; ``twin``: another one of the same name on the other server."""
    if twin is not None:
        return None if twin.same(entry) else Difference(uuid, entry.dn, None, "added on both servers")
    if entry.created > equal.end:
        return Difference(uuid, entry.dn, on, "added")
    if entry.changed < equal.begin:
        return Difference(uuid, entry.dn, on.other, "deleted")
    return Difference(uuid, entry.dn, None, f"changed on the {on}, deleted on the {on.other}")
