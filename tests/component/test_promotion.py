"""The way after a fail-over of replicating databases: the commands of nagios-conf/sync/README.md, on real servers."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.config import load
from check_failover.model import Hold, State, Target
from check_failover.records import Drain, JournalEntry, ServiceStatus
from check_failover.redirector.report import outcome, redirect_state
from check_failover.syncstate import Refusal, SyncDirection
from tests.lab.mariadb import Mariadb
from tests.lab.netns import poll
from tests.lab.postgresql import PASSWORD, PROGRAMS, Postgresql
from tests.lab.preset import PRESETS
from tests.lab.replicas import MariadbReplicas, PostgresqlReplicas, running
from tests.lab.sshd import ADDRESSES, Servers
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

PROMOTE = PRESETS / "promote-standby"
README = PRESETS / "README.md"
READ_ONLY = "serves, but it is read only: promote it"
STANDBY = ServiceStatus(Target.STANDBY, Target.STANDBY, since=1000.0, standby="10.0.0.12:5432")
PRIMARY = ServiceStatus(Target.PRIMARY, Target.PRIMARY, since=1000.0, primary="10.0.0.11:5432")


def recipe(begin: str, changes: dict[str, object] | None = None) -> str:
    """The README's command that begins so, with the lab's names and places."""
    (found,) = [
        line.strip()
        for line in README.read_text().splitlines()
        if line.strip().startswith(begin) and line.startswith("    ")
    ]
    for old, new in (changes or {}).items():
        assert old in found, found
        found = found.replace(old, str(new))
    return found


def run(command: str, user: str = "root") -> str:
    """What a shell command prints, as that user; it must succeed."""
    argv = ["/usr/sbin/runuser", "-u", user, "--", "/bin/sh", "-c", command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fail_over(syncing: Syncing, servers: Servers, command: str) -> None:
    """The traffic moves to the standby; the event handler promotes it, twice, by that command of its key."""
    syncing.target, syncing.since = "standby", time.time()
    done = syncing.sync()
    refused(syncing, done, Refusal.BROKEN, f"the standby {READ_ONLY}")
    assert done.returncode == 2
    servers.authorise(f'command="{command}",restrict {(servers.place / "id.pub").read_text()}')
    for _ in range(2):
        handler(servers, *said(STANDBY))
    refused(syncing, syncing.sync(), Refusal.TARGET_STANDBY, "the standby serves: nothing is copied to it")
    problem = syncing.state().problem
    assert problem is not None
    assert problem.text.endswith("the primary: connection refused")


def brought_back(syncing: Syncing) -> None:
    """The primary is in step with the standby, so that the fail-back need not wait."""
    ok(syncing.sync())
    state = syncing.state()
    assert state.direction is SyncDirection.REVERSE
    assert state.brought_back(syncing.since, time.time(), 900)


@pytest.fixture(name="key")
def key_fixture(servers: Servers) -> Iterator[str]:
    """The handler's public key; afterwards it may do everything again."""
    key = (servers.place / "id.pub").read_text()
    servers.disconnect()
    yield key
    servers.authorise(key)
    servers.disconnect()


def handler(servers: Servers, state: str, output: str) -> str:
    """What the event handler prints; it must succeed."""
    ssh = ["-F", str(servers.ssh_config), "-o", "ControlPath=none", f"root@{ADDRESSES['standby']}"]
    done = subprocess.run([PROMOTE, state, output, *ssh], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(status: ServiceStatus, line: str | None = None) -> tuple[str, str]:
    """State and output of "NAME redirect", in the redirector's words."""
    state, text = redirect_state(status)
    return state.name, f"{state.name}: {line or text}"


def test_the_handler_promotes_only_after_a_fail_over(syncing: Syncing, servers: Servers, key: str) -> None:
    """Whatever an operator's reason says; not on the primary, not during a drain, not when an order was refused."""
    servers.authorise(f'command="echo promoted",restrict {key}')
    service = load(syncing.config).services[0]
    flip = JournalEntry("1", 1000.0, "db", "fail-over", "nagios", line="", flipped=True, to=Target.STANDBY, text="gone")
    assert handler(servers, *said(STANDBY)) == "promoted\n"
    assert handler(servers, *said(STANDBY, outcome(service, flip))) == "promoted\n"
    words = "WARNING: on the standby"
    for status in (
        PRIMARY,
        ServiceStatus(Target.PRIMARY, Target.PRIMARY, hold=Hold(by="eve", at=1000.0, reason=f"backup {words} x")),
        ServiceStatus(Target.STANDBY, Target.STANDBY, since=1000.0, drain=Drain(Target.PRIMARY, 1000.0, left=3)),
        ServiceStatus(Target.STANDBY, Target.STANDBY, since=1000.0, problem=f"{words} 10.0.0.12"),
    ):
        assert handler(servers, *said(status)) == ""
    refusal = JournalEntry("2", 1000.0, "db", "drain", "eve", line="", reason="hold", text=f"{words} 10.0.0.12")
    assert handler(servers, "WARNING", f"WARNING: {outcome(service, refusal)}") == ""
    for state in (State.OK, State.CRITICAL, State.UNKNOWN):
        assert handler(servers, state.name, said(STANDBY)[1]) == ""


# ---------------------------------------------------------------- PostgreSQL


def at(server: Postgresql) -> str:
    """The environment of a client that reaches that server."""
    return f"PGHOST={server.directory} PGPORT={server.port}"


def rewind(old: Postgresql, new: Postgresql) -> None:
    """Make the stopped old server a standby of the new one, as the README says."""
    run(f"{at(new)} {recipe('psql -d postgres -c CHECKPOINT')}", "postgres")
    changes = {
        "/usr/lib/postgresql/15/bin": PROGRAMS,
        "/var/lib/postgresql/15/main": old.data,
        "/etc/postgresql/15/main": old.data,
        "10.0.0.12": new.address,
        "port=5432": f"port={new.port}",
        "password=...": f"password={PASSWORD}",
    }
    run(recipe("/usr/lib/postgresql/15/bin/pg_rewind", changes), "postgres")
    old.start()


def test_postgresql_there_and_back(syncing: Syncing, servers: Servers, key: str) -> None:
    """Fail-over, promotion, pg_rewind of the old primary with rows that it had not sent, and the fail-back."""
    with running(PostgresqlReplicas, syncing) as replicas:
        primary, standby = replicas.primary, replicas.standby
        assert primary.sql(recipe("CREATE ROLE rewind", {"...": PASSWORD})) == ""
        assert primary.sql(recipe("GRANT EXECUTE ON FUNCTION pg_ls_dir")) == ""
        replicas.write(primary)
        ok(syncing.sync())
        standby.stop()
        replicas.write(primary, 5)  # never sent
        primary.stop()
        standby.start()

        promote = f"runuser -u postgres -- env {at(standby)} {PROMOTE} postgresql"
        fail_over(syncing, servers, promote)
        replicas.write(standby)
        rewind(primary, standby)
        brought_back(syncing)
        assert replicas.rows(primary) == "2"

        replicas.write(standby)
        brought_back(syncing)
        standby.stop("fast")
        run(f"env {at(primary)} {PROMOTE} postgresql", "postgres")
        assert replicas.rows(primary) == "3"
        syncing.target, syncing.since = "primary", time.time()
        refused(syncing, syncing.sync(), Refusal.FAILED, "the standby: connection refused")
        replicas.write(primary)
        rewind(standby, primary)
        ok(syncing.sync())
        assert syncing.state().direction is SyncDirection.FORWARD
        assert replicas.rows(standby) == "4"


# ---------------------------------------------------------------- MariaDB


def client(server: Mariadb) -> Path:
    """The file with which root's clients reach that server."""
    path = server.directory / "client.cnf"
    path.write_text(f"[client]\nsocket={server.socket}\n")
    return path


def follow(replicas: MariadbReplicas, who: str, other: str, demote: bool = True) -> None:
    """Start that server read only, and make it a replica of the other one, as the README says."""
    server = getattr(replicas, who)
    if "--read-only" not in server.more:
        server.more.append("--read-only")
        server.start()
    changes = {"10.0.0.12": ADDRESSES[other], "MASTER_PORT=3306": f"MASTER_PORT={replicas.port}", "...": PASSWORD}
    changes |= {} if demote else {", MASTER_DEMOTE_TO_SLAVE=1": ""}
    assert server.sql(recipe("CHANGE MASTER TO", changes)) == ""
    assert server.sql(recipe("SET GLOBAL read_only = 1; START SLAVE")) == ""


def stop_sql_thread(replicas: MariadbReplicas) -> None:
    """The standby fetches three transactions and does not apply them; then the primary is killed."""
    assert replicas.standby.sql("STOP SLAVE SQL_THREAD") == ""
    replicas.write(replicas.primary, 3)
    position = replicas.primary.sql("SELECT @@gtid_current_pos")
    poll(lambda: position in replicas.standby.sql("SHOW SLAVE STATUS"), 15, "what is fetched")
    replicas.primary.kill()


def test_mariadb_there_and_back(syncing: Syncing, servers: Servers, key: str) -> None:
    """Fail-over, promotion that loses nothing that was fetched, the old primary as a replica, and the fail-back."""
    with running(MariadbReplicas, syncing) as replicas:
        primary, standby = replicas.primary, replicas.standby
        replicas.write(primary)
        ok(syncing.sync())
        stop_sql_thread(replicas)
        promote = f"env MY_CNF={client(standby)} {PROMOTE} mariadb"
        argv = ["/bin/sh", "-c", promote]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "not promoted: not all that was fetched is applied after 10 s" in done.stderr
        assert standby.sql("SELECT @@read_only") == "1"
        assert standby.sql("START SLAVE SQL_THREAD") == ""

        fail_over(syncing, servers, promote)
        assert replicas.rows(standby) == "4"
        replicas.write(standby)
        follow(replicas, "primary", "standby")
        brought_back(syncing)
        assert replicas.rows(primary) == "5"

        replicas.write(standby)
        brought_back(syncing)
        run(recipe("mariadb-admin", {"mariadb-admin": f"mariadb-admin --defaults-file={client(standby)}"}))
        standby.stop()
        run(f"env MY_CNF={client(primary)} {PROMOTE} mariadb")
        assert replicas.rows(primary) == "6"
        syncing.target, syncing.since = "primary", time.time()
        refused(syncing, syncing.sync(), Refusal.FAILED, "the standby: connection refused")
        replicas.write(primary)
        follow(replicas, "standby", "primary")
        ok(syncing.sync())
        assert syncing.state().direction is SyncDirection.FORWARD
        assert replicas.rows(standby) == "7"


def test_a_mariadb_that_had_not_sent_all(syncing: Syncing, servers: Servers, key: str) -> None:
    """The old primary has transactions of its own: the run says so, and it is filled anew from the standby."""
    with running(MariadbReplicas, syncing) as replicas:
        primary, standby = replicas.primary, replicas.standby
        ok(syncing.sync())
        assert standby.sql("STOP SLAVE IO_THREAD") == ""
        replicas.write(primary, 3)
        primary.kill()
        fail_over(syncing, servers, f"env MY_CNF={client(standby)} {PROMOTE} mariadb")
        replicas.write(standby)
        follow(replicas, "primary", "standby")
        refused(syncing, syncing.sync(), Refusal.BROKEN, "the primary does not replicate: Slave_IO_Running No: ")
        assert "error 1236" in primary.sql("SHOW SLAVE STATUS")
        at_new, at_old = f"--defaults-file={client(standby)} ", f"--defaults-file={client(primary)} "
        dump = syncing.place / "all.sql"
        run(recipe("mariadb-dump ", {"mariadb-dump ": f"mariadb-dump {at_new}", "all.sql": dump}))
        run(recipe("mariadb -e 'STOP SLAVE", {"mariadb ": f"mariadb {at_old}"}))
        run(recipe("mariadb --init-command", {"mariadb ": f"mariadb {at_old}", "all.sql": dump}))
        follow(replicas, "primary", "standby", demote=False)
        brought_back(syncing)
        assert replicas.rows(primary) == "1"
