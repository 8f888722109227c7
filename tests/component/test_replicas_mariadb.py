"""Two MariaDB servers with replication: what a run records, and what it says of each fault."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from check_failover.syncstate import Refusal, SyncDirection
from tests.lab.netns import poll
from tests.lab.replicas import MariadbReplicas as Replicas
from tests.lab.replicas import age, running
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component


@pytest.fixture(name="replicas")
def replicas_fixture(syncing: Syncing) -> Iterator[Replicas]:
    """A standby that has all of its primary's data."""
    with running(Replicas, syncing) as made:
        yield made


def test_a_replica_in_step_and_behind(syncing: Syncing, replicas: Replicas) -> None:
    """A delayed replica has fetched all: its data is as old as the server says. An idle primary is no lag."""
    replicas.write(replicas.primary)
    ok(syncing.sync())
    assert replicas.rows(replicas.standby) == "1"
    assert syncing.state().note == ""
    assert age(syncing) < 10
    assert replicas.standby.sql("STOP SLAVE; CHANGE MASTER TO MASTER_DELAY=3600; START SLAVE") == ""
    began = time.time()
    replicas.write(replicas.primary, 3)
    assert "the standby is 3 transactions behind" in ok(syncing.sync())
    equal_at = syncing.state().equal_at
    assert equal_at is not None
    assert equal_at < began + 1  # the server counts whole seconds
    assert replicas.standby.sql("STOP SLAVE; CHANGE MASTER TO MASTER_DELAY=0; START SLAVE") == ""
    poll(lambda: replicas.rows(replicas.standby) == "4", 15, "replication")
    assert replicas.standby.sql("SET GLOBAL read_only = 0") == ""
    assert "it is not read_only" in ok(syncing.sync())


def test_broken_replication_is_critical(syncing: Syncing, replicas: Replicas) -> None:
    """At once, in the server's own words, whichever thread stopped; and where nothing replicates at all."""
    ok(syncing.sync())
    assert replicas.standby.sql("SET sql_log_bin = 0; SET GLOBAL read_only = 0; DROP TABLE example.t") == ""
    replicas.write(replicas.primary)
    done = syncing.sync()
    refused(syncing, done, Refusal.BROKEN, "the standby does not replicate: Slave_SQL_Running No: ")
    assert "Table 'example.t' doesn't exist" in done.stdout
    assert done.returncode == 2
    assert replicas.primary.sql("SET sql_log_bin = 0; DROP USER replicator@'127.%'") == ""
    assert replicas.standby.sql("STOP SLAVE; START SLAVE") == ""
    refused(syncing, syncing.sync(), Refusal.BROKEN, "Slave_IO_Running Connecting: error connecting to master")
    assert replicas.standby.sql("SET GLOBAL read_only = 1; STOP SLAVE; RESET SLAVE ALL") == ""
    refused(syncing, syncing.sync(), Refusal.BROKEN, "the standby does not replicate: it is no replica")
    replicas.standby.stop()
    refused(syncing, syncing.sync(), Refusal.FAILED, "the standby: connection refused")


def test_after_a_fail_over(syncing: Syncing, replicas: Replicas) -> None:
    """Not promoted: critical. The old primary is writable too: a person decides. Made a replica: in step, and the
    fail-back need not wait; one that has a transaction of its own is both-served again.
    """
    ok(syncing.sync())
    syncing.target, syncing.since = "standby", time.time()
    refused(syncing, syncing.sync(), Refusal.BROKEN, "the standby serves, but it is read only: promote it")
    assert replicas.standby.sql("STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0") == ""
    replicas.write(replicas.standby)
    done = syncing.sync()
    refused(syncing, done, Refusal.BOTH_SERVED, "the standby serves, and the primary is writable too and no replica")
    assert done.returncode == 2
    replicas.follow("primary", ", MASTER_DEMOTE_TO_SLAVE=1")
    poll(lambda: replicas.rows(replicas.primary) == "1", 15, "replication")
    ok(syncing.sync())
    state = syncing.state()
    assert state.direction is SyncDirection.REVERSE
    assert state.brought_back(syncing.since, time.time(), 900)
    replicas.write(replicas.primary)  # root may write to a read-only server
    refused(syncing, syncing.sync(), Refusal.BOTH_SERVED, "the primary has transactions of its own")


def test_what_the_administrator_forgot(syncing: Syncing, replicas: Replicas) -> None:
    """A wrong password, an account without the privilege: one line with the server's own words."""
    assert replicas.standby.sql("SET sql_log_bin = 0; REVOKE REPLICA MONITOR ON *.* FROM monitor@'127.%'") == ""
    refused(syncing, syncing.sync(), Refusal.FAILED, "the standby: 1227: Access denied; you need")
    (syncing.place / "secret").write_text("wrong\n")
    refused(syncing, syncing.sync(), Refusal.FAILED, "the primary: 1045: Access denied for user 'monitor'@'127.0.0.1'")
