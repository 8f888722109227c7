"""Icinga Web 2 with its monitoring module: a private MariaDB that Icinga writes into, and a private apache2 with PHP.

    with database(directory / "database") as tables:
        with Icinga(..., objects + ido(tables)) as icinga:
            with IcingaWeb(directory / "web", icinga, tables, 8983, house.argv("controller")) as web:
                web.screenshot(page("list/services", host=HOST), picture)

Everything that Icinga Web 2 keeps (configuration,
sessions, its cache) is below the directory too; the machine's own /etc/icingaweb2 is not read. Who is logged in at
apache2 is logged in there and may do everything.
"""

from __future__ import annotations

import shutil
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from tests.lab.icinga import LAB, PASSWORD, PORT, Icinga
from tests.lab.mariadb import Mariadb
from tests.lab.web import USER, Web

SCHEMAS = ("/usr/share/icinga2-ido-mysql/schema/mysql.sql", "/usr/share/icingaweb2/schema/mysql.schema.sql")
MODULE = Path("/usr/share/icingaweb2/modules/monitoring")
NAME = "icinga"

PAGES = """\
Include /etc/apache2/conf-available/icingaweb2.conf
Alias /unfolded {directory}/unfolded.html
RedirectMatch ^/$ /icingaweb2/
<Directory "/usr/share/icingaweb2/public">
    SetEnv ICINGAWEB_CONFIGDIR {directory}
    SetEnv ICINGAWEB_STORAGEDIR {directory}/storage
</Directory>
php_admin_value session.save_path {directory}/sessions
php_admin_value sys_temp_dir {directory}/cache
php_admin_value pdo_mysql.default_socket {socket}
"""
# A person who opens a service unfolds its output once; the browser keeps that. Then on to the page behind the "#".
UNFOLDED = """\
<script>
const kept = {};
for (const command of ["passive", "failover_redirect"]) {
    kept["#check-output-" + command] = {value: null, lastAccess: Date.now()};
}
localStorage.setItem("icinga.behavior.collapsible.expanded", JSON.stringify(kept));
location.replace("/icingaweb2/" + location.hash.slice(1));
</script>
"""
# below ICINGAWEB_CONFIGDIR, as Icinga Web 2 would write them itself
FILES = {
    "config.ini": """\
[global]
module_path = "{modules}"
config_resource = "icinga"
[logging]
log = "file"
file = "{directory}/icingaweb2.log"
""",
    "authentication.ini": '[apache]\nbackend = "external"\n',
    "roles.ini": '[administrators]\nusers = "{login}"\npermissions = "*"\n',
    "resources.ini": """\
[icinga]
type = "db"
db = "mysql"
host = "localhost"
dbname = "{name}"
username = "{user}"
""",
    "modules/monitoring/backends.ini": '[icinga]\ntype = "ido"\nresource = "icinga"\n',
    "modules/monitoring/commandtransports.ini": """\
[icinga]
transport = "api"
host = "{bind}"
port = "{port}"
username = "{lab}"
password = "{password}"
""",
}


def database(directory: Path) -> Mariadb:
    """What Icinga writes into and Icinga Web 2 reads."""
    return Mariadb(directory, NAME, SCHEMAS)


def ido(database: Mariadb) -> str:
    """What Icinga has among its objects, to keep it up to date."""
    return f"""
object IdoMysqlConnection "ido" {{
  socket_path = "{database.socket}"
  database = "{NAME}"
  user = "{database.user}"
}}
"""


class IcingaWeb(Web):
    """The web interface of one private Icinga, in its namespace."""

    path = "/icingaweb2/"
    browser = ("--virtual-time-budget=8000",)  # until its JavaScript has opened the second column

    def __init__(
        self, directory: Path, icinga: Icinga, database: Mariadb, port: int, argv_prefix: Sequence[str] = ()
    ) -> None:
        pages = PAGES.format(directory=directory, socket=database.socket)
        super().__init__(directory, icinga.user, pages, port, argv_prefix)
        values = {"directory": directory, "modules": MODULE.parent, "login": USER, "name": NAME, "user": icinga.user}
        values |= {"bind": icinga.bind, "port": PORT, "lab": LAB, "password": PASSWORD}
        for path in ("modules/monitoring", "enabledModules", "sessions", "cache", "storage"):
            (directory / path).mkdir(parents=True)
        (directory / "enabledModules/monitoring").symlink_to(MODULE)
        (directory / "unfolded.html").write_text(UNFOLDED)
        for path, text in FILES.items():
            (directory / path).write_text(text.format(**values))
        self.log = directory / "icingaweb2.log"
        for made in directory.rglob("*"):
            if not made.is_symlink():
                shutil.chown(made, icinga.user, icinga.user)

    def screenshot(self, path: str, picture: Path, width: int = 1400, height: int = 640, beside: str = "") -> str:
        """As ``Web`` does; ``beside``: the page in the second column, a service's output unfolded."""
        return super().screenshot(f"../unfolded#{path}" + (beside and f"#!{self.path}{beside}"), picture, width, height)


def page(path: str, **arguments: str) -> str:
    """A page of the monitoring module: ``page("list/services", host=HOST)``."""
    return f"monitoring/{path}?{urllib.parse.urlencode(arguments, quote_via=urllib.parse.quote)}"
