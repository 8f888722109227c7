"""Two servers of a database that replicate by themselves, for the tests of what failover-sync says of them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from tests.lab.apache import certificate
from tests.lab.mariadb import Mariadb
from tests.lab.netns import poll
from tests.lab.postgresql import HBA, PASSWORD, Postgresql
from tests.lab.sshd import ADDRESSES
from tests.lab.syncing import SHM, Syncing

TLS_NAME = "db.example.org"  # in the certificate of both servers


class _Server(Protocol):
    def stop(self) -> None: ...


class Replicas(Protocol):
    @property
    def primary(self) -> _Server: ...

    @property
    def standby(self) -> _Server: ...

    def begin(self) -> None: ...


R = TypeVar("R", bound=Replicas)


@contextlib.contextmanager
def running(made: Callable[[Path, Syncing], R], syncing: Syncing) -> Iterator[R]:
    """A standby that has all of its primary's data; both end with the block."""
    with tempfile.TemporaryDirectory(dir=SHM, prefix="cfr") as place:
        Path(place).chmod(0o711)
        found = made(Path(place), syncing)
        try:
            found.begin()
            yield found
        finally:
            found.standby.stop()
            found.primary.stop()


def age(syncing: Syncing) -> float:
    """The sync age in the record, in seconds."""
    found = syncing.state().age(time.time())
    assert found is not None
    return found


class _Replicas:
    """Account, config, port and certificate (``tls``) of both servers. ``user``: the servers' user."""

    method: str
    user: str

    def __init__(self, place: Path, syncing: Syncing) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        self.syncing, self.tls = syncing, place / "tls"
        (syncing.place / "secret").write_text(f"{PASSWORD}\n")
        self.configure()
        self.tls.mkdir(mode=0o755)
        certificate(self.tls, "server", f"DNS:{TLS_NAME}")
        shutil.chown(self.tls / "server.key", self.user)

    def configure(self, more: str = "") -> None:
        """Write the config, with more keys for ``[service.sync]``."""
        sync = f'method = "{self.method}"\nuser = "monitor"\npassword_file = "{self.syncing.place}/secret"\n{more}'
        self.syncing.configure(sync, port=str(self.port))


POSTGRESQL_ROLES = f"""
CREATE ROLE monitor LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_monitor;
CREATE ROLE replicator LOGIN REPLICATION PASSWORD '{PASSWORD}';
CREATE TABLE t (n int);
"""
MARIADB_ROLES = f"""
SET sql_log_bin = 0;
CREATE USER monitor@'127.%' IDENTIFIED BY '{PASSWORD}'; GRANT REPLICA MONITOR ON *.* TO monitor@'127.%';
CREATE USER replicator@'127.%' IDENTIFIED BY '{PASSWORD}'; GRANT REPLICATION SLAVE ON *.* TO replicator@'127.%';
"""
_FOLLOW = (
    "CHANGE MASTER TO MASTER_HOST='{host}', MASTER_PORT={port}, MASTER_USER='replicator', MASTER_PASSWORD='secret', "
    "MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos{more}; SET GLOBAL read_only = 1; START SLAVE"
)


class PostgresqlReplicas(_Replicas):
    """The primary, and the standby that follows it."""

    method, user = "postgresql", "postgres"

    def __init__(self, place: Path, syncing: Syncing) -> None:
        super().__init__(place, syncing)
        self.primary = Postgresql(place / "primary", ADDRESSES["primary"], self.port)
        self.standby = Postgresql(place / "standby", ADDRESSES["standby"], self.port, empty=True)

    def begin(self) -> None:
        """Start both."""
        with (self.primary.data / "postgresql.conf").open("a") as file:
            file.write("wal_log_hints = on\nwal_keep_size = 64MB\n")
        self.primary.start()
        assert self.primary.sql(POSTGRESQL_ROLES) == ""
        self.standby.replicate(self.primary, "replicator")

    def write(self, server: Postgresql, number: int = 1) -> None:
        """That many rows."""
        assert server.sql(f"INSERT INTO t SELECT generate_series(1, {number})") == ""

    def rows(self, server: Postgresql) -> str:
        """How many it has."""
        return server.sql("SELECT count(*) FROM t")

    def offer_tls(self, on: bool) -> None:
        """Whether both servers can speak TLS."""
        for server in (self.primary, self.standby):
            for key, value in (("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key")):
                assert server.sql(f"ALTER SYSTEM SET {key} = '{self.tls / value}'") == ""
            assert server.sql(f"ALTER SYSTEM SET ssl = {'on' if on else 'off'}") == ""
        for server in (self.primary, self.standby):
            self._reload(server, "SHOW ssl", "on" if on else "off")

    def require_tls(self, on: bool) -> None:
        """Whether our account must use TLS."""
        for server in (self.primary, self.standby):
            text = HBA.replace("host all", "hostnossl all monitor all reject\nhost all") if on else HBA
            (server.data / "pg_hba.conf").write_text(text)
            rules = "SELECT count(*) FROM pg_hba_file_rules WHERE type = 'hostnossl'"
            self._reload(server, rules, str(int(on)))

    @staticmethod
    def _reload(server: Postgresql, question: str, answer: str) -> None:
        assert server.sql("SELECT pg_reload_conf()") == "t"
        poll(lambda: server.sql(question) == answer, 15, question)


class MariadbReplicas(_Replicas):
    """The primary, and the standby that follows it."""

    method, user = "mariadb", "nagios"

    def __init__(self, place: Path, syncing: Syncing) -> None:
        super().__init__(place, syncing)
        self.primary, self.standby = (self._server(place, who, number) for number, who in enumerate(ADDRESSES, 1))

    def _server(self, place: Path, who: str, number: int) -> Mariadb:
        more = [f"--bind-address={ADDRESSES[who]}", f"--port={self.port}", f"--server-id={number}"]
        more += ["--log-bin=log", "--log-slave-updates", "--skip-name-resolve"]
        more += [f"--ssl-cert={self.tls}/server.pem", f"--ssl-key={self.tls}/server.key"]
        made = Mariadb(place / who, "example", accounts=True, more=more)
        (place / who / "init.sql").write_text("")
        return made

    def begin(self) -> None:
        """Start both; the standby follows."""
        for server in (self.primary, self.standby):
            server.start()
            assert server.sql(MARIADB_ROLES) == ""
        assert self.primary.sql("CREATE DATABASE example; CREATE TABLE example.t (n int)") == ""
        self.follow("standby")
        poll(lambda: self.rows(self.standby) == "0", 15, "replication")

    def follow(self, who: str, more: str = "") -> None:
        """Make that server a replica of the other one."""
        replica, host = (self.standby, "primary") if who == "standby" else (self.primary, "standby")
        assert replica.sql(_FOLLOW.format(host=ADDRESSES[host], port=self.port, more=more)) == ""

    def write(self, server: Mariadb, number: int = 1) -> None:
        """That many transactions."""
        assert server.sql("INSERT INTO example.t VALUES (1);" * number) == ""

    def rows(self, server: Mariadb) -> str:
        """How many it has."""
        return server.sql("SELECT count(*) FROM example.t")

    def offer_tls(self, on: bool) -> None:
        """Whether both servers can speak TLS."""
        for server in (self.primary, self.standby):
            if on == ("--skip-ssl" in server.more):
                server.stop()
                server.more = [option for option in server.more if option != "--skip-ssl"]
                server.more += [] if on else ["--skip-ssl"]
                server.start()
        poll(lambda: self.standby.sql("SHOW SLAVE STATUS").count("Yes") == 2, 15, "replication")

    def require_tls(self, on: bool) -> None:
        """Whether our account must use TLS."""
        for server in (self.primary, self.standby):
            change = f"ALTER USER monitor@'127.%' REQUIRE {'SSL' if on else 'NONE'}"
            assert server.sql(f"SET sql_log_bin = 0; {change}") == ""
