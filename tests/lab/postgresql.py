"""A private PostgreSQL cluster, reached by a socket in its directory; it may lose its data when the machine stops.

With ``address`` it listens there too, and may be replicated: ``replicate`` makes it a standby of another one.

``postgres`` comes in from its own account; others need a password (``sql(..., user="app")`` is an application).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Daemon

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql/none/bin"))
PASSWORD = "secret"
HBA = "local all postgres peer\nlocal all all scram-sha-256\nhost all,replication all samehost scram-sha-256\n"
CLEAR = """
SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database WHERE datname ~ '^example'\\gexec
SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE rolname <> 'postgres' AND rolname !~ '^pg_'\\gexec
"""


class Postgresql(Daemon):
    """One cluster. ``directory`` is made here; ``postgres`` must be able to go through what is above it."""

    def __init__(self, directory: Path, address: str = "", port: int = 5432, empty: bool = False) -> None:
        self.directory, self.address, self.port = directory, address, port
        directory.mkdir()
        shutil.chown(directory, "postgres")
        if empty:
            return  # ``replicate`` follows
        self._run([PROGRAMS / "initdb", "-D", self.data, "--no-sync", "-A", "trust", "--locale=C.UTF-8"])
        (self.data / "pg_hba.conf").write_text(HBA)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    def _run(self, argv: Sequence[str | Path]) -> None:
        with (self.directory / "out").open("ab") as out:
            done = subprocess.run(
                ["/usr/sbin/runuser", "-u", "postgres", "--", *argv], stdout=out, stderr=out, cwd="/", check=False
            )
        assert done.returncode == 0, f"{argv[0]}: {(self.directory / 'out').read_text()[-2000:]}"

    def start(self) -> None:
        """Start and wait until it answers."""
        options = f"-k {self.directory} -c listen_addresses={self.address} -p {self.port} -c max_connections=20 -F"
        self._run([PROGRAMS / "pg_ctl", "-D", self.data, "-w", "-o", options, "start"])

    def stop(self, mode: str = "immediate") -> None:
        """End it (``fast``: in order); nothing where it does not run."""
        if (self.data / "postmaster.pid").exists():
            self._run([PROGRAMS / "pg_ctl", "-D", self.data, "-m", mode, "-w", "stop"])

    def replicate(self, source: Postgresql, user: str) -> None:
        """Stop; become a standby of that cluster, by streaming replication as that user; start."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)
        source_info = f"host={source.address} port={source.port} user={user} password={PASSWORD}"
        self._run([PROGRAMS / "pg_basebackup", "-D", self.data, "-c", "fast", "--no-sync", "-R", "-d", source_info])
        self.start()

    def promote(self) -> None:
        """End its recovery: it becomes writable."""
        self._run([PROGRAMS / "pg_ctl", "-D", self.data, "-w", "promote"])

    def clear(self) -> None:
        """Drop every database named example... and every role but ``postgres``."""
        assert self.sql(CLEAR) == ""

    def sql(self, statements: str, database: str = "postgres", user: str = "postgres") -> str:
        """The answer, fields apart by ``|``; ``ERROR: ...`` where it refuses."""
        argv = ["/usr/bin/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        argv += ["-h", str(self.directory), "-p", str(self.port)]
        prefix = ["/usr/sbin/runuser", "-u", "postgres", "--"] if user == "postgres" else []
        done = subprocess.run(
            [*prefix, *argv, "-d", database, "-U", user],
            input=statements,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "PGPASSWORD": PASSWORD},
        )
        return done.stdout.strip() if done.returncode == 0 else "ERROR: " + done.stderr.strip()
