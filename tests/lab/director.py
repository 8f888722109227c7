"""Icinga Director as Debian packages it, on a private MariaDB: takes baskets, and renders what it would deploy.

    with Director(directory) as director:
        director.restore(basket)
        director.rendered()  # all files in one text, for a core to read

Everything is below one directory: database, socket, Icinga Web's configuration. No web server, no Icinga to deploy to.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.lab.daemon import Daemon
from tests.lab.mariadb import Mariadb

CLIENT = "/usr/bin/mariadb"
PHP, CLI = "/usr/bin/php", "/usr/bin/icingacli"
MODULES = Path("/usr/share/icingaweb2/modules")
WANTED = ("director", "incubator", "reactbundle")

RESOURCE = """\
[director]
type = "db"
db = "mysql"
host = "localhost"
dbname = "director"
username = "root"
charset = "utf8mb4"
"""
FILES = {
    "config.ini": '[global]\nconfig_resource = ""\n[logging]\nlog = "none"\n',
    "resources.ini": RESOURCE,
    "modules/director/config.ini": '[db]\nresource = "director"\n',
}
ZONE = {"object_name": "director-global", "object_type": "external_object", "is_global": True}  # by the Kickstart
RENDERED = """
select f.content from director_generated_config_file as c join director_generated_file as f
on f.checksum = c.file_checksum where c.config_checksum = unhex('{checksum}')
"""


class Director(Daemon):
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._database = Mariadb(directory / "database", "director", user="root")
        for name, text in FILES.items():
            path = directory / "icingaweb2" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        enabled = directory / "icingaweb2" / "enabledModules"
        enabled.mkdir()
        for name in WANTED:
            (enabled / name).symlink_to(MODULES / name)

    def start(self) -> None:
        """The database, and the Director's own schema in it."""
        self._database.start()
        self._cli("migration", "run")
        self._cli("zone", "create", "--json", json.dumps(ZONE))

    def stop(self) -> None:
        self._database.stop()

    def restore(self, basket: str) -> None:
        """As an administrator does it; AssertionError with what the Director did not like."""
        assert "have been restored" in self._cli("basket", "restore", input=basket)

    def rendered(self) -> str:
        """What it would deploy now."""
        checksum = next(word for word in self._cli("config", "render").split() if len(word) == 40)
        return self._sql(RENDERED.format(checksum=checksum))

    def count(self, table: str) -> int:
        return int(self._sql(f"select count(*) from {table}"))

    def _cli(self, *argv: str, input: str = "") -> str:
        setting = f"pdo_mysql.default_socket={self._database.socket}"
        environment = os.environ | {"ICINGAWEB_CONFIGDIR": str(self.directory / "icingaweb2")}
        return self._run(PHP, "-d", setting, CLI, "director", *argv, input=input, env=environment)

    def _sql(self, statement: str) -> str:
        return self._run(
            CLIENT, "--no-defaults", f"--socket={self._database.socket}", "-N", "-r", "-e", statement, "director"
        )

    def _run(self, *argv: str, **more: Any) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **more)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout
