"""Two PostgreSQL servers with streaming replication: what a run records, and what it says of each fault."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from check_failover.syncstate import Refusal, SyncDirection
from tests.lab.netns import poll
from tests.lab.postgresql import PASSWORD, Postgresql
from tests.lab.replicas import POSTGRESQL_ROLES, age, running
from tests.lab.replicas import PostgresqlReplicas as Replicas
from tests.lab.sshd import ADDRESSES
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component


@pytest.fixture(name="replicas")
def replicas_fixture(syncing: Syncing) -> Iterator[Replicas]:
    """A standby that has all of its primary's data."""
    with running(Replicas, syncing) as made:
        yield made


def test_a_standby_in_step(syncing: Syncing, replicas: Replicas) -> None:
    """With and without writes; an idle primary is no lag, however old its last transaction is."""
    ok(syncing.sync())
    first = syncing.state()
    replicas.write(replicas.primary)
    ok(syncing.sync())
    assert replicas.standby.sql("SELECT count(*) FROM t") == "1"
    time.sleep(2)  # the last transaction ages
    ok(syncing.sync())
    state = syncing.state()
    assert state.note == ""
    assert state.equal_at is not None
    assert first.equal_at is not None
    assert state.equal_at > first.equal_at + 2
    assert age(syncing) < 10


def test_a_paused_replay_is_a_lag(syncing: Syncing, replicas: Replicas) -> None:
    """The data is as old as the last replayed transaction; the text says why; afterwards it is in step again."""
    replicas.write(replicas.primary)
    poll(lambda: replicas.standby.sql("SELECT count(*) FROM t") == "1", 15, "replication")
    assert replicas.standby.sql("SELECT pg_wal_replay_pause()") == ""
    began = time.time()
    replicas.write(replicas.primary, 1000)
    said = ok(syncing.sync())
    assert "bytes of WAL behind (replay is paused)" in said
    state = syncing.state()
    assert state.equal_at is not None
    assert state.equal_at <= began
    assert age(syncing) < 60
    assert replicas.standby.sql("SELECT pg_wal_replay_resume()") == ""
    ok(syncing.sync())
    assert syncing.state().note == ""
    assert age(syncing) < 10


def test_broken_replication_is_critical(syncing: Syncing, replicas: Replicas) -> None:
    """At once, although the data was in step a moment ago; a server that is down, by its name."""
    ok(syncing.sync())
    assert replicas.standby.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'") == ""
    assert replicas.standby.sql("SELECT pg_reload_conf()") == "t"
    poll(lambda: replicas.standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0", 15, "the end of the stream")
    done = syncing.sync()
    refused(syncing, done, Refusal.BROKEN, "the standby does not replicate: no WAL receiver runs")
    assert done.returncode == 2
    replicas.standby.stop()
    refused(syncing, syncing.sync(), Refusal.FAILED, "the standby: connection refused")


def test_after_a_fail_over(syncing: Syncing, replicas: Replicas) -> None:
    """Not promoted: critical. The old primary comes back writable: a person decides. Made a standby: in step, and the
    fail-back need not wait.
    """
    ok(syncing.sync())
    syncing.target, syncing.since = "standby", time.time()
    done = syncing.sync()
    refused(syncing, done, Refusal.BROKEN, "the standby serves, but it is read only: promote it")
    assert done.returncode == 2
    replicas.primary.stop()
    replicas.standby.promote()
    replicas.write(replicas.standby)
    refused(syncing, syncing.sync(), Refusal.TARGET_STANDBY, "the standby serves")
    problem = syncing.state().problem
    assert problem is not None
    assert problem.text.endswith("the primary: connection refused")
    replicas.primary.start()
    done = syncing.sync()
    refused(syncing, done, Refusal.BOTH_SERVED, "each server may have writes that the other one lacks: the standby")
    assert done.returncode == 2
    assert not syncing.state().brought_back(syncing.since, time.time(), 900)
    replicas.primary.replicate(replicas.standby, "replicator")
    ok(syncing.sync())
    state = syncing.state()
    assert state.direction is SyncDirection.REVERSE
    assert state.brought_back(syncing.since, time.time(), 900)
    assert replicas.primary.sql("SELECT count(*) FROM t") == "1"


def test_what_the_administrator_forgot(syncing: Syncing, replicas: Replicas) -> None:
    """A wrong password, an empty file, another cluster: one line with the server's own words."""
    secret = syncing.place / "secret"
    secret.write_text("wrong\n")
    text = 'the primary: password authentication failed for user "monitor"'
    refused(syncing, syncing.sync(), Refusal.FAILED, text)
    secret.write_text("")
    refused(syncing, syncing.sync(), Refusal.FAILED, f"{secret}: is empty")
    secret.write_text(PASSWORD)
    replicas.standby.stop()
    other = Postgresql(replicas.standby.directory.with_name("other"), ADDRESSES["standby"], replicas.standby.port)
    try:
        other.start()
        assert other.sql(POSTGRESQL_ROLES) == ""
        refused(syncing, syncing.sync(), Refusal.BOTH_SERVED, "and the standby is writable too")
    finally:
        other.stop()
