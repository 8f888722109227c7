"""A private MariaDB with one database, for Icinga's web programs.

    with Mariadb(directory, "icinga", ["/usr/share/icinga2-ido-mysql/schema/mysql.sql"]) as database:
        ...  # at database.socket

It listens on a socket below its directory and has no accounts: the directory is for one user alone. With ``accounts``
it has MariaDB's own, root by its socket, and everybody may reach the socket. ``more``: options in place of no network.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Program

MARIADBD = "/usr/sbin/mariadbd"


class Mariadb(Program):
    """``schemas``: files with the tables to make in it; ``user``: the user that it runs as and that may read it."""

    out = "mariadbd.log"
    limit, patience, every = 60.0, 15.0, 0.1

    def __init__(
        self,
        directory: Path,
        name: str,
        schemas: Sequence[str] = (),
        user: str = "nagios",
        accounts: bool = False,
        more: Sequence[str] = ("--skip-networking",),
    ) -> None:
        self.directory, self.name, self.user, self.accounts = directory, name, user, accounts
        self.more = list(more)
        self.socket, self.log = directory / "socket", directory / self.out
        (directory / "data").mkdir(parents=True)
        tables = "\n".join(Path(schema).read_text() for schema in schemas)
        create = f"CREATE DATABASE {name} CHARACTER SET utf8mb4;\nUSE {name};\n"
        (directory / "init.sql").write_text(create + tables)
        for path in (directory, directory / "data"):
            shutil.chown(path, user)
            path.chmod(0o755 if accounts else 0o700)
        if accounts:
            install = ["/usr/bin/mariadb-install-db", "--no-defaults", f"--datadir={directory}/data", f"--user={user}"]
            done = subprocess.run([*install, "--skip-test-db"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    def argv(self) -> list[str]:
        places = {"datadir": "data", "tmpdir": "data", "socket": "socket", "pid-file": "pid", "init-file": "init.sql"}
        argv = [MARIADBD, "--no-defaults", f"--user={self.user}", *self.more]
        argv += [] if self.accounts else ["--skip-grant-tables"]
        argv += [f"--{key}={self.directory / path}" for key, path in places.items()]
        argv += ["--debug-no-sync", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"]  # it may be lost
        return argv

    def start(self) -> None:
        self.log.unlink(missing_ok=True)  # an earlier start was ready too
        super().start()

    def serves(self) -> bool:
        """Whether the tables are there."""
        return "ready for connections" in self.log.read_text("utf-8", "replace")

    def sql(self, statements: str, database: str = "mysql", user: str = "root", password: str = "") -> str:
        """The answer, fields apart by tabs; ``ERROR ...`` where it refuses."""
        argv = ["/usr/bin/mariadb", "--no-defaults", "--default-character-set=utf8mb4", "-BN", "-S", str(self.socket)]
        done = subprocess.run(
            [*argv, "-u", user, f"--password={password}", database],
            input=statements,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()
