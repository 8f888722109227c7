"""Entries of two LDAP servers: where each one changed since both were equal; and failover-sync --merge.

An entry has the same entryUUID on both servers (RFC 4530); its entryCSN is the time of its last change by the clock of
the server that made it, so it shows on which server the entry changed. Entries that changed on both are conflicts.

--merge: both servers took in writes since they were in step. Where each entry changed on one server only, both keep
theirs: this module applies the receiving server's changes to the source, which serves; the rest of the run then copies
the source's data to the receiving server. If any two changes conflict, nothing is written. Each change asserts that the
entry is still as it was read (RFC 4528), so no client's write is lost meanwhile. After an error a second run goes on.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ldap3
from ldap3.operation.search import compile_filter, parse_filter
from pyasn1.codec.ber.encoder import encode

from check_failover.checks import ProbeError, QueryError, replication
from check_failover.checks.ldap import result_text
from check_failover.checks.replication import Entry
from check_failover.model import Service, Target, clean
from check_failover.sync import lineage
from check_failover.sync.guard import SyncRefusedError, ends
from check_failover.sync.hosts import SyncStepError
from check_failover.sync.job import Job
from check_failover.syncstate import SKEW, Refusal, SyncState

Entries = Mapping[str, Entry]  # by entryUUID
_RELAX = ("1.3.6.1.4.1.4203.666.5.12", True, None)  # slapd accepts entryUUID and createTimestamp in an add
_ASSERT, _ASSERTION_FAILED = "1.3.6.1.1.12", 122  # RFC 4528
_SHOWN = 20  # conflicts
_DECIDE = "decide by --take primary --yes or --take standby --yes"


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


@dataclass(frozen=True, slots=True)
class Change:
    """One entry to add, change or delete: as it is wanted, and as the serving server has it."""

    uuid: str
    dn: str
    wanted: Entry | None
    have: Entry | None


def merge(job: Job, state: SyncState, serving: str | None, exported: Mapping[str, int | None]) -> None:
    """Do it; ``exported``: entries in each server's export. Raises SyncRefusedError, SyncStepError."""
    source, receiver = ends(job.direction)
    if state.equal_at is None:
        raise SyncRefusedError(Refusal.BOTH_SERVED, f"when both servers were last in step is unknown: {_DECIDE}")
    limit = job.spec.timeout
    service = whole(job.service, limit)
    found = dict(zip(Target, read(service, limit), strict=True))
    for target, there in found.items():
        if exported[target] not in (None, len(there)):
            text = f"{len(there)} of {exported[target]} entries are seen: may the bind_dn read all? if so, try again"
            raise SyncStepError(f"the {target}: {text}")
    changes, conflicts = plan(receiver, found, in_step(state, job.apart))
    if conflicts:
        begin = f"{len(conflicts)} conflicts, nothing was written; {_DECIDE}"
        more = [f"and {len(conflicts) - _SHOWN} more"] if len(conflicts) > _SHOWN else []
        raise SyncRefusedError(Refusal.BOTH_SERVED, "\n".join([begin, *map(clean, conflicts[:_SHOWN]), *more]))
    lineage.put_aside(job, serving)
    with failing(), replication.opened(service, source, time.monotonic() + limit) as (to, _):
        to.read_only = False
        for change in changes:
            apply(to, source, change)
    job.noted(f"{len(changes)} changes of the {receiver} were applied to the {source}")


def plan(giver: Target, found: Mapping[Target, Entries], equal: InStep) -> tuple[list[Change], list[str]]:
    """The changes of ``giver`` that the other server lacks, in an order that works; and the conflicts. Pure."""
    mine, theirs = found[giver], found[giver.other]
    differences = compare(found[Target.PRIMARY], found[Target.STANDBY], equal)
    changes = [
        Change(one.uuid, one.dn, mine.get(one.uuid), theirs.get(one.uuid)) for one in differences if one.on is giver
    ]
    conflicts = [str(one) for one in differences if one.on is None]
    conflicts += [
        f"{mine[uuid].dn}: changed on the {giver} only in attributes that the server itself keeps"
        for uuid in mine.keys() & theirs.keys()
        if mine[uuid].csn != theirs[uuid].csn
        and mine[uuid].same(theirs[uuid])
        and theirs[uuid].changed <= equal.end < mine[uuid].changed
    ]
    by_depth = sorted(changes, key=lambda one: one.dn.count(","))
    added = [one for one in by_depth if one.have is None]
    deleted = [one for one in reversed(by_depth) if one.wanted is None]
    gone = {one.dn.lower() for one in deleted}
    there = {entry.dn.lower() for entry in theirs.values()} | {one.dn.lower() for one in added}
    left = there - gone
    conflicts += [f"{one.dn}: added below an entry that is gone" for one in added if _parent(one.dn) not in left]
    conflicts += [f"{dn}: below an entry that was deleted on the {giver}" for dn in left if _parent(dn) in gone]
    changed = [one for one in changes if one.wanted is not None and one.have is not None]
    return [*added, *changed, *deleted], sorted(set(conflicts))


def apply(to: Any, server: Target, change: Change) -> None:  # noqa: ANN401, ldap3's writing methods have no types
    """Write one change to the ldap3.Connection ``to``. Raises QueryError."""
    wanted, have, dn = change.wanted, change.have, change.dn
    new, old = wanted.attributes if wanted else {}, have.attributes if have else {}
    if have is None:
        made = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(wanted.created if wanted else 0))
        own = {"entryUUID": [change.uuid.encode()], "createTimestamp": [made.encode()]}
        to.add(dn, attributes={name: list(values) for name, values in new.items()} | own, controls=[_RELAX])
    elif wanted is None:
        to.delete(dn, controls=[_unchanged(have)])
    else:
        names = [name for name in new.keys() | old.keys() if new.get(name) != old.get(name)]
        values = {name: [(ldap3.MODIFY_REPLACE, list(new.get(name, ())))] for name in names}
        to.modify(have.dn, values, controls=[_unchanged(have)])
    if to.result["result"] != 0:
        text = "changed there just now" if to.result["result"] == _ASSERTION_FAILED else result_text(to)
        raise QueryError(server, f"{clean(dn)}: {text}; run --merge again")


def _unchanged(entry: Entry) -> tuple[str, bool, bytes]:
    """The control by which the server refuses if the entry is not as it was read."""
    condition: Any = parse_filter(f"(entryCSN={entry.csn})", None, False, False, None, False)  # type: ignore[no-untyped-call]
    return _ASSERT, True, encode(compile_filter(condition.elements[0]))  # type: ignore[no-untyped-call]


def _parent(dn: str) -> str:
    return re.split(r"(?<!\\),", dn.lower(), maxsplit=1)[-1]
