"""Servers that replicate by themselves: a run compares and records, and copies nothing.

The data counts as equal at the start of a run if the receiving server has all that the source server had then: every
contextCSN (``method = "syncrepl"``), the WAL location (``postgresql``) or the GTIDs (``mariadb``). A database server
that is behind had equal data at the time of the newest transaction that it has.

So sync age, refusals and the fail-back checklist work as they do for copied data: while the standby serves, each run
of the timer compares in reverse, and a fail-back waits until the primary had the standby's changes within
``sync_back_valid`` (``sync_back = "unnecessary"``: it does not wait).

PostgreSQL says the WAL location that it has (written or replayed), MariaDB the last GTID of each domain. The receiver
gets ``_GRACE`` seconds to reach what the source had; only then it is behind, so an idle source is no lag.
"""

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from check_failover.bounded import Budget, cause, connect, reason, securing
from check_failover.checks import ProbeError, QueryError, secret
from check_failover.checks.talk import server_name, tls_context
from check_failover.model import Endpoint, Service, SyncSpec, Target, TooMuchError, clean
from check_failover.sync.guard import SyncRefusedError, check_direction, ends
from check_failover.sync.hosts import SyncStepError
from check_failover.sync.job import Job
from check_failover.syncstate import Refusal, Size, SyncDirection, SyncState, duration

_GRACE = 1.0  # seconds in which a replica may catch up
_PATIENCE = 6.0  # seconds in which it may connect again: PostgreSQL tries every 5 s
_ROOM = 1 << 20  # bytes that a server may send; an answer has about 3,000

Rows = list[dict[str, Any]]
Query = Callable[[str], Rows]


@dataclass(frozen=True, slots=True)
class _Server:
    """What a server says of itself."""

    writable: bool
    has: Mapping[str, int]  # WAL location, or the sequence number of each GTID domain
    clock: float = 0.0
    cluster: str = ""
    lag: float | None = None  # age of the newest transaction that it has, by the source's clock; None: unknown
    fault: str = ""  # why it does not replicate
    own: str = ""  # why it may have writes that the source lacks
    remark: str = ""


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
        if job.spec.method in METHODS:
            lag, note = databases(job.service, job.spec, job.direction, limit)
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


def databases(service: Service, spec: SyncSpec, direction: SyncDirection, limit: float) -> tuple[float | None, str]:
    """How long ago both servers had the same data (seconds; None: unknown), and what a person should know of it.

    Raises SyncRefusedError when replication does not run; SyncStepError, ProbeError when a server cannot be asked.
    """
    (source, receiver), ask, budget = ends(direction), METHODS[spec.method], Budget(limit, _ROOM)
    with _connected(spec, service.server(source), f"the {source}", budget) as query:
        here = ask(query, None)
    if not here.writable:
        raise SyncRefusedError(Refusal.BROKEN, f"the {source} serves, but it is read only: promote it")
    with _connected(spec, service.server(receiver), f"the {receiver}", budget) as query:
        began = time.monotonic()
        while True:
            there = ask(query, here)
            missing = _lacks(there.has, here.has)
            wait = _PATIENCE if there.fault else _GRACE if missing else 0.0
            if there.own or time.monotonic() >= min(began + wait, budget.end - _GRACE):
                break
            time.sleep(0.1)
    if there.own:
        text = f"each server may have writes that the other one lacks: the {source} serves, and the {receiver}"
        raise SyncRefusedError(Refusal.BOTH_SERVED, f"{text} {there.own}")
    if there.fault or there.cluster != here.cluster:
        text = there.fault or f"its system identifier {there.cluster} is not the {source}'s"
        raise SyncRefusedError(Refusal.BROKEN, f"the {receiver} does not replicate: {text}")
    if not missing:
        return 0.0, there.remark
    unit = "bytes of WAL" if here.cluster else "transactions"
    text = f"the {receiver} is {missing} {unit} behind" + (f" ({there.remark})" if there.remark else "")
    if direction is SyncDirection.REVERSE:
        raise SyncStepError(text)
    return there.lag, text


_POSTGRESQL = """
SELECT pg_is_in_recovery() AS standby, (pg_control_system()).system_identifier::text AS cluster,
  (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint AS at,
  extract(epoch FROM clock_timestamp())::float8 AS clock,
  extract(epoch FROM pg_last_xact_replay_timestamp())::float8 AS replayed,
  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
  EXISTS (SELECT FROM pg_stat_wal_receiver) AS receives
"""


def _postgresql(query: Query, source: _Server | None) -> _Server:
    """The times of transactions are of the primary's clock (manual, "Recovery Information Functions")."""
    row = query(_POSTGRESQL)[0]
    return _Server(
        writable=not row["standby"],
        has={"": row["at"] or 0},
        clock=row["clock"],
        cluster=row["cluster"],
        lag=max(0.0, source.clock - row["replayed"]) if source and row["replayed"] is not None else None,
        fault="" if row["receives"] else "no WAL receiver runs (pg_stat_wal_receiver is empty), its log says why",
        own="" if row["standby"] else "is writable too",
        remark="replay is paused" if row["paused"] else "",
    )


_MARIADB = """
SELECT @@read_only AS ro, @@server_id AS id, @@gtid_current_pos AS current, @@gtid_slave_pos AS replayed,
  @@gtid_binlog_pos AS written
"""


def _mariadb(query: Query, source: _Server | None) -> _Server:
    """Seconds_Behind_Master counts only if the replica has fetched all: it is 0 for what was not fetched."""
    (row,) = query(_MARIADB)
    writable = str(row["ro"]) in ("0", "OFF")
    if source is None:
        return _Server(writable, _gtids(row["current"]))
    has, rows = _gtids(row["replayed"]), query("SHOW SLAVE STATUS")
    if not rows:
        own = "is writable too and no replica" if writable else ""
        return _Server(writable, has, fault="it is no replica (SHOW SLAVE STATUS is empty)", own=own)
    status, written = rows[0], _gtids(row["written"], row["id"])
    threads = [(name, status[f"Slave_{name}_Running"], status[f"Last_{name}_Error"]) for name in ("IO", "SQL")]
    fault = "; ".join(f"Slave_{name}_Running {state}: {error}" for name, state, error in threads if state != "Yes")
    return _Server(
        writable,
        has,
        lag=None if _lacks(_gtids(status["Gtid_IO_Pos"]), source.has) else float(status["Seconds_Behind_Master"] or 0),
        fault=clean(fault),
        own="has transactions of its own" if _lacks(has, written) else "",
        remark="it is not read_only" if writable else "",
    )


_GTID = r"(\d+)-(\d+)-(\d+)"  # domain, server, sequence number


def _gtids(text: str | None, server: int | None = None) -> dict[str, int]:
    """The sequence number of each domain in a list such as ``0-1-270,1-2-9``; only those of ``server``, if given."""
    every = sorted((int(number), domain, int(of)) for domain, of, number in re.findall(_GTID, text or ""))
    return {domain: number for number, domain, of in every if server in (None, of)}


def _lacks(has: Mapping[str, int], wanted: Mapping[str, int]) -> int:
    """How many bytes or transactions are missing."""
    return sum(max(0, at - has.get(domain, 0)) for domain, at in wanted.items())


METHODS = {"postgresql": _postgresql, "mariadb": _mariadb}


@contextlib.contextmanager
def _connected(spec: SyncSpec, server: Endpoint, who: str, budget: Budget) -> Iterator[Query]:
    """A connection for the time of the block, within the budget. Raises SyncStepError, ProbeError."""
    try:
        sock = connect(server.address, server.port, budget)
        with sock, contextlib.closing(_login(spec, server, sock, budget)) as connection:
            yield lambda text: _rows(connection.cursor(), text)
    except ProbeError:
        raise
    except ImportError as error:
        raise ProbeError(f"{error}: pip install 'check_failover[{spec.method}]'") from None
    except Exception as error:  # a corrupt reply makes the libraries raise any exception
        raise SyncStepError(f"{who}: {_reason(error)}") from None


def _rows(cursor: Any, text: str) -> Rows:  # noqa: ANN401
    cursor.execute(text)
    return [dict(zip((column[0] for column in cursor.description), row, strict=True)) for row in cursor.fetchall()]


def _login(spec: SyncSpec, server: Endpoint, sock: socket.socket, budget: Budget) -> Any:  # noqa: ANN401
    """The library's connection (PEP 249)."""
    options = {"ca_file": spec.ca_file, "server_name": spec.server_name}
    password, name = secret(spec.password_file, "database password").encode(), server_name(server, options)
    context = securing(tls_context(options), budget) if spec.tls else None
    if spec.method == "postgresql":
        from pg8000 import dbapi

        made = dbapi.connect(spec.user, name, spec.database, password=password, ssl_context=context or False, sock=sock)
        made.autocommit = True
    else:
        import pymysql

        login = {"user": spec.user, "password": password, "host": name}
        made = pymysql.Connection(**login, ssl=context, ssl_disabled=context is None, defer_connect=True)
        made.connect(sock)
    return made


def _reason(error: BaseException) -> str:
    """The server's own words, or those of the socket or of TLS, in one line."""
    if isinstance(below := cause(error), OSError | TooMuchError):
        return reason(below)
    words = [str(part.get("M")) if isinstance(part, dict) else str(part) for part in error.args]
    return clean(": ".join(words) or type(error).__name__)
