"""A private MariaDB with one database, for Icinga's web programs.

    with Mariadb(directory, "icinga", ["/usr/share/icinga2-ido-mysql/schema/mysql.sql"]) as database:
        ...  # at database.socket

It listens on a socket below its directory and has no accounts: the directory is for one user alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Program

MARIADBD = "/usr/sbin/mariadbd"


class Mariadb(Program):
    """``schemas``: files with the tables to make in it; ``user``: who may look into it, and whom it runs as."""

    out = "mariadbd.log"
    limit, patience, every = 60.0, 15.0, 0.1

    def __init__(self, directory: Path, name: str, schemas: Sequence[str] = (), user: str = "nagios") -> None:
        self.directory, self.name, self.user = directory, name, user
        self.socket, self.log = directory / "socket", directory / self.out
        (directory / "data").mkdir(parents=True)
        tables = "\n".join(Path(schema).read_text() for schema in schemas)
        create = f"CREATE DATABASE {name} CHARACTER SET utf8mb4;\nUSE {name};\n"
        (directory / "init.sql").write_text(create + tables)
        for path in (directory, directory / "data"):
            shutil.chown(path, user)
            path.chmod(0o700)

    def argv(self) -> list[str]:
        places = {"datadir": "data", "tmpdir": "data", "socket": "socket", "pid-file": "pid", "init-file": "init.sql"}
        argv = [MARIADBD, "--no-defaults", f"--user={self.user}", "--skip-networking", "--skip-grant-tables"]
        argv += [f"--{key}={self.directory / path}" for key, path in places.items()]
        argv += ["--debug-no-sync", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"]  # it may be lost
        return argv

    def serves(self) -> bool:
        """Whether the tables are there."""
        return "ready for connections" in self.log.read_text("utf-8", "replace")
