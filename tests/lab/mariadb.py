"""A private MariaDB with one database, for Icinga's web programs.

    with Mariadb(directory, "icinga", ["/usr/share/icinga2-ido-mysql/schema/mysql.sql"]) as database:
        ...  # at database.socket

It listens on a socket below its directory and has no accounts: the directory is for one user alone.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.daemon import Daemon
from tests.lab.netns import end, poll

MARIADBD = "/usr/sbin/mariadbd"


class Mariadb(Daemon):
    """``schemas``: files with the tables to make in it; ``user``: who may look into it, and whom it runs as."""

    def __init__(self, directory: Path, name: str, schemas: Sequence[str] = (), user: str = "nagios") -> None:
        self.directory, self.name, self.user = directory, name, user
        self.socket, self.log = directory / "socket", directory / "log"
        self._process: subprocess.Popen[Any] | None = None
        (directory / "data").mkdir(parents=True)
        tables = "\n".join(Path(schema).read_text() for schema in schemas)
        create = f"CREATE DATABASE {name} CHARACTER SET utf8mb4;\nUSE {name};\n"
        (directory / "init.sql").write_text(create + tables)
        for path in (directory, directory / "data"):
            shutil.chown(path, user)
            path.chmod(0o700)

    def start(self) -> None:
        """Start and wait until the tables are there."""
        places = {"datadir": "data", "tmpdir": "data", "socket": "socket", "pid-file": "pid", "init-file": "init.sql"}
        argv = [MARIADBD, "--no-defaults", f"--user={self.user}", "--skip-networking", "--skip-grant-tables"]
        argv += [f"--{key}={self.directory / path}" for key, path in places.items()]
        argv += ["--debug-no-sync", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"]  # it may be lost
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

        def there() -> bool:
            assert self._process is not None
            said = self.log.read_text("utf-8", "replace")
            assert self._process.poll() is None, f"mariadbd ended at its start:\n{said[-4000:]}"
            return "ready for connections" in said

        poll(there, 60.0, "mariadbd has its tables", every=0.1)

    def stop(self) -> None:
        if self._process is not None:
            end(self._process, patience=15.0)
            self._process = None
