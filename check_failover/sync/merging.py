"""failover-sync --merge: applies the receiving server's changes to the serving one, entry by entry (LDAP).

Both servers took in writes since they were in step. Where each entry changed on one server only, both keep theirs: this
module applies the receiving server's changes to the source, which serves; the rest of the run then copies the source's
data to the receiving server. If any two changes conflict, nothing is written. Each change asserts that the entry is
still as it was read (RFC 4528), so no client's write is lost meanwhile. After an error a second run goes on.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ldap3
from ldap3.operation.search import compile_filter, parse_filter
from pyasn1.codec.ber.encoder import encode

from check_failover.checks import QueryError, replication
from check_failover.checks.ldap import result_text
from check_failover.checks.replication import Entry
from check_failover.model import Target, clean
from check_failover.sync import entries, lineage
from check_failover.sync.entries import Entries, InStep
from check_failover.sync.guard import SyncRefusedError, ends
from check_failover.sync.hosts import SyncStepError
from check_failover.sync.job import Job
from check_failover.syncstate import Refusal, SyncState

_RELAX = ("1.3.6.1.4.1.4203.666.5.12", True, None)  # slapd accepts entryUUID and createTimestamp in an add
_ASSERT, _ASSERTION_FAILED = "1.3.6.1.1.12", 122  # RFC 4528
_SHOWN = 20  # conflicts
_DECIDE = "decide by --take primary --yes or --take standby --yes"


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
    service = entries.whole(job.service, limit)
    found = dict(zip(Target, entries.read(service, limit), strict=True))
    for target, there in found.items():
        if exported[target] not in (None, len(there)):
            text = f"{len(there)} of {exported[target]} entries are seen: may the bind_dn read all? if so, try again"
            raise SyncStepError(f"the {target}: {text}")
    changes, conflicts = plan(receiver, found, entries.in_step(state, job.apart))
    if conflicts:
        begin = f"{len(conflicts)} conflicts, nothing was written; {_DECIDE}"
        more = [f"and {len(conflicts) - _SHOWN} more"] if len(conflicts) > _SHOWN else []
        raise SyncRefusedError(Refusal.BOTH_SERVED, "\n".join([begin, *map(clean, conflicts[:_SHOWN]), *more]))
    lineage.put_aside(job, serving)
    with entries.failing(), replication.opened(service, source, time.monotonic() + limit) as (to, _):
        to.read_only = False
        for change in changes:
            apply(to, source, change)
    job.noted(f"{len(changes)} changes of the {receiver} were applied to the {source}")


def plan(giver: Target, found: Mapping[Target, Entries], equal: InStep) -> tuple[list[Change], list[str]]:
    """The changes of ``giver`` that the other server lacks, in an order that works; and the conflicts. Pure."""
    mine, theirs = found[giver], found[giver.other]
    differences = entries.compare(found[Target.PRIMARY], found[Target.STANDBY], equal)
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
    added = sorted((one for one in changes if one.have is None), key=_depth)
    deleted = sorted((one for one in changes if one.wanted is None), key=_depth, reverse=True)
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


def _depth(change: Change) -> int:
    return change.dn.count(",")


def _parent(dn: str) -> str:
    return re.split(r"(?<!\\),", dn.lower(), maxsplit=1)[-1]
