"""Replication lag between two LDAP servers: contextCSN (RFC 4533, OpenLDAP's slapo-syncprov(5)) and entries.

A contextCSN is the time stamp of the last change, one per server that accepts changes. The difference of two is not
yet the lag: after an hour without changes it is one hour while the newest change travels. So the receiver gets
``GRACE`` seconds to reach the giver's state; only if it does not, the difference counts as the lag.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ldap3

from check_failover.bounded import Budget
from check_failover.checks import ProbeError, QueryError
from check_failover.checks.ldap import DEFAULT_FILTER, connected, result_text, why
from check_failover.model import Service, Target

GRACE = 1.0  # seconds in which a replica may catch up before it counts as behind
MAX_PAGE = 256 << 20  # bytes read of one page of entries
_REFERRALS = "2.16.840.1.113730.3.4.2"  # ManageDsaIT: an entry that is a referral is an entry (RFC 3296)
_PAGE, _PAGED = 1000, "1.2.840.113556.1.4.319"  # entries at a time (RFC 2696)
_CSN = re.compile(r"(\d{14})(?:\.(\d{1,6}))?Z#[0-9a-fA-F]+#([0-9a-fA-F]+)#")
_SIZE_LIMIT, _NO_SUCH_OBJECT = 4, 32


@dataclass(frozen=True, slots=True)
class Comparison:
    """``lag`` in seconds, None without contextCSN; an entry count is None where the server does not allow to count."""

    lag: float | None
    missing: tuple[str, ...] = ()  # server ids without a contextCSN on the receiver
    entries: Mapping[Target, int | None] | None = None


def compare(service: Service, giver: Target, timeout: float, *, count: bool = True, grace: float = GRACE) -> Comparison:
    """Compare both servers of an LDAP service. Raises QueryError, ProbeError."""
    if service.check.type != "ldap":
        raise ProbeError(f"service {service.name!r} has check type {service.check.type!r}; contextCSN needs ldap")
    end = time.monotonic() + timeout
    asked = context_csn(service, giver, end)
    until = min(time.monotonic() + grace, end)
    while True:
        lag, missing = behind(asked, context_csn(service, giver.other, end))
        if (not lag and not missing) or time.monotonic() >= until:
            break
        time.sleep(0.1)
    entries = {target: count_entries(service, target, end) for target in (giver, giver.other)} if count else None
    return Comparison(lag, missing, entries)


def behind(giver: Mapping[str, float], receiver: Mapping[str, float]) -> tuple[float | None, tuple[str, ...]]:
    """The lag in seconds, and the server ids without a contextCSN on the receiver."""
    missing = tuple(sorted(set(giver) - set(receiver)))
    lags = [max(0.0, at - receiver[sid]) for sid, at in giver.items() if sid in receiver]
    return (max(lags) if lags else None), missing


def parse(values: list[str]) -> dict[str, float]:
    """contextCSN values as Unix time per server id; malformed values are left out."""
    found: dict[str, float] = {}
    for value in values:
        match = _CSN.match(value)
        if match:
            at = datetime.strptime(match[1], "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
            found[match[3]] = at + float(f"0.{match[2] or 0}")
    return found


def context_csn(service: Service, target: Target, end: float) -> dict[str, float]:
    """A server's contextCSN as Unix time per server id; empty without contextCSN. Raises QueryError, ProbeError."""
    with opened(service, target, end) as (connection, _):
        base = str(service.check.options["base"])
        connection.search(base, DEFAULT_FILTER, search_scope=ldap3.BASE, attributes=["contextCSN"])
        if connection.result.get("result") == _NO_SUCH_OBJECT:
            return {}  # an empty database
        if connection.result.get("result") != 0:
            raise QueryError(target, f"search: {result_text(connection)}")
        rows = [row["raw_attributes"] for row in connection.response or () if row.get("type") == "searchResEntry"]
        return parse([value.decode("ascii", "replace") for row in rows for value in row.get("contextCSN", ())])


def count_entries(service: Service, target: Target, end: float) -> int | None:
    """The visible entries below the base; None where the server's size limit forbids to count them."""
    try:
        return sum(1 for _ in _rows(service, target, end, [ldap3.NO_ATTRIBUTES]))
    except _LimitError:
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """``changed`` and ``created`` are Unix times; ``attributes`` are those that clients may write."""

    dn: str
    csn: str
    changed: float
    created: float
    attributes: Mapping[str, frozenset[bytes]]

    def same(self, other: Entry) -> bool:
        return self.dn.lower() == other.dn.lower() and self.attributes == other.attributes


def suffix(service: Service, target: Target, end: float) -> str:
    """The naming context that the base is in, which is all that the database holds. Raises QueryError, ProbeError."""
    base = str(service.check.options["base"])
    with opened(service, target, end) as (connection, _):
        connection.search("", DEFAULT_FILTER, search_scope=ldap3.BASE, attributes=["namingContexts"])
        rows = [row["raw_attributes"] for row in connection.response or () if row.get("type") == "searchResEntry"]
    names = [bytes(value).decode(errors="replace") for row in rows for value in row.get("namingContexts", ())]
    for name in sorted(names, key=len, reverse=True):
        if f",{base}".lower().replace(" ", "").endswith(f",{name}".lower().replace(" ", "")):
            return name
    raise QueryError(target, f"it names no naming context that holds {base}")


def entries(service: Service, target: Target, end: float) -> dict[str, Entry]:
    """The visible entries below the base by entryUUID. Raises QueryError, ProbeError."""
    own, found = ["entryUUID", "entryCSN", "createTimestamp"], {}
    for row in _rows(service, target, end, ["*", *own]):
        attributes = {name: frozenset(values) for name, values in row["raw_attributes"].items()}
        try:
            uuid, csn, made = (next(iter(attributes.pop(name))).decode() for name in own)
            created = datetime.strptime(made, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
            found[uuid] = Entry(row["dn"], csn, max(parse([csn]).values()), created, attributes)
        except (KeyError, StopIteration, RuntimeError, ValueError):
            raise QueryError(target, f"{row['dn']}: {', '.join(own)}: may the bind_dn read them?") from None
    return found


class _LimitError(QueryError):
    """The server's size limit."""


def _rows(service: Service, target: Target, end: float, attributes: list[str]) -> Iterator[Mapping[str, Any]]:
    """The visible entries below the base, read in pages."""
    base, cookie = str(service.check.options["base"]), None
    with opened(service, target, end) as (connection, budget):
        while True:
            budget.restart(end - time.monotonic(), MAX_PAGE)
            connection.search(
                base,
                DEFAULT_FILTER,
                search_scope=ldap3.SUBTREE,
                dereference_aliases=ldap3.DEREF_NEVER,
                attributes=attributes,
                controls=[(_REFERRALS, False, None)],
                paged_size=_PAGE,
                paged_cookie=cookie,
            )
            result = connection.result.get("result")
            if result == _NO_SUCH_OBJECT:
                return
            if result != 0:
                kind = _LimitError if result == _SIZE_LIMIT else QueryError
                raise kind(target, f"search: {result_text(connection)}")
            yield from (row for row in connection.response or () if row.get("type") == "searchResEntry")
            cookie = connection.result.get("controls", {}).get(_PAGED, {}).get("value", {}).get("cookie")
            if not cookie:
                return


@contextlib.contextmanager
def opened(service: Service, target: Target, end: float) -> Iterator[tuple[ldap3.Connection, Budget]]:
    """A connection like that of the service's probe, for the time of the block. Raises QueryError, ProbeError."""
    budget = Budget(end - time.monotonic(), MAX_PAGE)
    try:
        with connected(service.server(target), service.check.options, budget) as connection:
            yield connection, budget
    except (QueryError, ProbeError):
        raise
    except Exception as error:  # as in the probe: a corrupt reply makes ldap3 raise any exception
        raise QueryError(target, why(error, budget)) from None
