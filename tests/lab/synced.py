"""A site whose servers' data failover-sync copies by ssh: two slapds, with the preset for OpenLDAP as it is shipped.

Each server has its data at one path, by a mount namespace of its own.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, python_argv
from tests.lab.site import BASE, ROOT, Site, environment
from tests.lab.slapd import ADMIN, PASSWORD, Slapd
from tests.lab.sshd import Servers
from tests.lab.syncing import script

HELPER = ROOT / "nagios-conf/sync/failover-openldap"
ADDRESSES = {"primary": PRIMARY, "standby": STANDBY}
URL = f"ldap://{SERVICE_ADDRESS}"
PERSON = """\
dn: cn={name},ou=people,{base}
changetype: add
objectClass: inetOrgPerson
cn: {name}
sn: {name}
"""


class SyncedSite(Site):
    """A site whose servers are reached by ssh, each with its own file system at ``srv``."""

    def __init__(self, directory: Path, **more: Any) -> None:
        self.srv = directory / "srv"
        super().__init__(directory, extra=self._preset(), **more)
        self.ssh = Servers(directory, ADDRESSES, self.house.argv)

    def _preset(self) -> str:
        """The shipped preset; other places, slapd's configuration named, and no systemd to restart it."""
        text = (ROOT / "nagios-conf/sync/openldap.toml").read_text()
        for old, new in (
            ("/usr/local/sbin/failover-openldap", str(HELPER)),
            ("/var/lib/ldap-sync", str(self.srv)),
            ('"-b", ', f'"-F", "{self.srv}/config", "-H", "ldap://127.0.0.1", "-b", '),
            ('"/usr/bin/systemctl", "restart", "slapd"', f'"{self.srv}/restart"'),
        ):
            assert old in text
            text = text.replace(old, new)
        return f'{text}\nssh_config = "{self.srv.parent}/ssh_config"\n'

    def _server(self, name: str, address: str) -> Slapd:
        self.srv.mkdir(exist_ok=True)
        place = self.directory / name
        slapd_argv = f"/usr/sbin/slapd -F {place}/config -h 'ldap://{address} ldap://127.0.0.1'"
        (place / "data/db").mkdir(parents=True)
        pid = f"$(cat {place}/slapd.pid)"
        script(  # as a service manager does it: one at a time, also when slapd is gone already and nobody has reaped it
            place / "restart",
            f"if [ $# = 0 ]; then exec /usr/bin/flock -o {place}/lock $0 alone; fi\n"
            f"works() {{ grep -qs '^State:.[^ZX]' /proc/{pid}/status; }}\n"
            f"if [ -e {place}/slapd.pid ] && works; then\n"
            f"  kill -TERM {pid}\n  while [ -e {place}/slapd.pid ] && works; do sleep 0.05; done\nfi\n"
            f"rm -f {place}/slapd.pid\nexec {slapd_argv}",
        )
        prefix = [*self.house.argv(name), *self._mounted(name)]
        return Slapd(place, address, serves=name, argv_prefix=prefix, data=f"{self.srv}/data/db")

    def _build(self) -> None:
        super()._build()
        self._parts.enter_context(self.ssh)

    def restart(self, who: str) -> None:
        """Restart a server's slapd as a service manager does."""
        self.house.run(who, *self._mounted(who), f"{self.srv}/restart")

    def _mounted(self, who: str) -> list[str]:
        """The start of a command that sees that server's file system."""
        mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        place = str(self.directory / who)
        return ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", mount, "sh", place, str(self.srv)]

    # ------------------------------------------------------------ what a person and the clients do

    def sync(self, *options: str) -> tuple[int, str]:
        """failover-sync on the controller: its exit code and line."""
        argv = python_argv("check_failover.sync.run", "--config", str(self.config), *options, "ldap")
        done = subprocess.run(
            self.house.argv("controller", *argv), cwd=ROOT, env=environment(), capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.stdout.count("\n") == 1, done.stdout + done.stderr
        return done.returncode, done.stdout

    def write(self, ldif: str) -> None:
        """A client writes through the service address."""
        argv = ("/usr/bin/ldapmodify", "-x", "-H", URL, "-D", ADMIN, "-w", PASSWORD)
        self.house.run("client", *argv, input=ldif)

    def asked(self) -> bool:
        """Whether a client that asks now is answered."""
        argv = ("/usr/bin/ldapsearch", "-x", "-LLL", "-o", "nettimeout=2", "-H", URL, "-b", BASE, "-s", "base", "o")
        return bool(self.house.run("client", *argv, check=False))

    def add(self, name: str) -> None:
        self.write(PERSON.format(name=name, base=BASE))

    def people(self, who: str = "client", url: str = URL) -> set[str]:
        """Whom a client finds at the service address, or who is asked at another."""
        argv = ("/usr/bin/ldapsearch", "-x", "-LLL", "-o", "nettimeout=5", "-H", url, "-b", BASE, "(sn=*)", "cn")
        return set(re.findall(r"^cn: (.*)$", self.house.run(who, *argv), re.MULTILINE))
