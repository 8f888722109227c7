"""Data in step, on real parts: two slapds copied by failover-sync over ssh, a dead primary, and the way back.

The preset for OpenLDAP as it is shipped, Nagios and the gateway as on a site. Each server has its data at one path, by
a mount namespace of its own.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, python_argv
from tests.lab.site import BASE, ROOT, Site, environment
from tests.lab.slapd import ADMIN, PASSWORD, Slapd
from tests.lab.sshd import Servers
from tests.lab.syncing import script

pytestmark = pytest.mark.system

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

    def __init__(self, directory: Path) -> None:
        self.srv = directory / "srv"
        super().__init__(directory, extra=self._preset())
        self._ssh = Servers(directory, ADDRESSES, self.house.argv)

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
        mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        argv = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", mount, "sh", str(place), str(self.srv)]
        slapd_argv = f"/usr/sbin/slapd -F {place}/config -h 'ldap://{address} ldap://127.0.0.1'"
        (place / "data/db").mkdir(parents=True)
        script(
            place / "restart",
            f"if [ -e {place}/slapd.pid ]; then kill -TERM $(cat {place}/slapd.pid) || :; fi\n"
            f"while [ -e {place}/slapd.pid ]; do sleep 0.05; done\nexec {slapd_argv}",
        )
        return Slapd(
            place, address, serves=name, argv_prefix=[*self.house.argv(name), *argv], data=f"{self.srv}/data/db"
        )

    def _build(self) -> None:
        super()._build()
        self._parts.enter_context(self._ssh)

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


@pytest.fixture
def site() -> Iterator[SyncedSite]:
    with tempfile.TemporaryDirectory(prefix="cfo-sync-") as name:
        Path(name).chmod(0o755)
        with SyncedSite(Path(name) / "site") as made:
            yield made


def test_nothing_is_lost_over_there_and_back(site: SyncedSite) -> None:
    """Written, synced, the primary dies, read and written on the standby, brought back, failed back: all is there.

    The sync age stands in Nagios after each run and in the text on the phone. A wiped primary is refused.
    """
    assert site.core is not None
    assert site.kannel is not None
    site.core.wait("ldap sync", 2, 30.0, text="the standby's data was never in step")
    code, line = site.sync("--adopt")
    assert code == 0, line
    for number in range(20):
        site.add(f"first{number}")
    code, line = site.sync()
    assert code == 0, line
    shown = site.core.wait("ldap sync", 0, text="the standby's data was in step ")
    assert shown["check_type"] == "1", "not the run's own result"
    assert re.search(r"^sync_age=\d+s;1200;1800;0 .*entries=23;", shown["performance_data"]), shown
    site.add("second")
    code, line = site.sync()
    assert code == 0, line
    assert "1 files differed" in line

    everybody = {"joe", "second", *(f"first{number}" for number in range(20))}
    assert site.people() == everybody
    _fail_over(site, everybody)
    _bring_back(site, everybody | {"meanwhile"})
    _wiped_primaries_are_refused(site, everybody | {"meanwhile"})


def _fail_over(site: SyncedSite, everybody: set[str]) -> None:
    """The primary dies: clients read and write on the standby; nothing comes from the dead server any more."""
    assert site.core is not None
    assert site.kannel is not None
    site.wait_healthy("standby")
    site.fault("crash")
    with pytest.raises(AssertionError, match="ldapsearch"):
        site.people("controller", f"ldap://{PRIMARY}")
    site.poll(site.asked, 30.0, "a client is answered")
    site.wait_target("standby")
    assert site.people() == everybody
    site.add("meanwhile")
    assert "meanwhile" in site.people()
    flip = next(entry for entry in site.journal("fail-over") if entry["flipped"])
    assert 0 <= flip["facts"]["sync_age"] < 120
    alert = r"SERVICE ALERT: .*;ldap redirect;WARNING;.*now on the standby \(data \d+ s old\)"
    site.poll(lambda: site.core and site.core.lines(alert), 15.0, "Nagios knows how old the data is")
    kannel = site.kannel
    try:
        text = site.poll(
            lambda: next((t for _, t in kannel.received() if "ldap redirect" in t), ""), 60.0, "the outcome"
        )
    except AssertionError as error:
        raise AssertionError(f"{error}: phones got {kannel.received()}\n{site.core.lines('NOTIFICATION')}") from None
    assert re.search(r"now on the standby \(data \d+ s old\)", text), text
    code, line = site.sync()
    assert code == 1, line
    assert "the standby serves" in line
    site.core.wait("ldap sync", 0, text="the standby serves: nothing is copied to it")


def _bring_back(site: SyncedSite, everybody: set[str]) -> None:
    """The repaired primary is not served from before it has what the standby took in."""
    site.heal("crash")

    def missing() -> list[str]:
        return [reason for reason, why in site.status()["fail_back"] if why is not None]

    site.poll(lambda: missing() == ["not-synced-back"], 40.0, "only the data is missing")
    assert "not-synced-back" in site.ctl("fail-back", "ldap", check=False)
    assert site.status()["target"] == "standby"
    code, line = site.sync("--reverse")
    assert code == 0, line
    assert site.people("controller", f"ldap://{PRIMARY}") == everybody
    site.poll(lambda: missing() == [], 40.0, "ready to fail back")
    site.ctl("fail-back", "ldap")
    site.wait_target("primary")
    assert site.people() == everybody
    code, line = site.sync()
    assert code == 0, line


def _wiped_primaries_are_refused(site: SyncedSite, everybody: set[str]) -> None:
    """Entries gone, or the whole database: the standby keeps all it has, and Nagios is told."""
    assert site.core is not None
    site.write("\n".join(f"dn: cn={name},ou=people,{BASE}\nchangetype: delete\n" for name in sorted(everybody)))
    assert site.people() == set()
    code, line = site.sync()
    assert code == 2, line
    assert "the source shrank to 2 of 25 entries" in line
    site.core.wait("ldap sync", 2, text="the source shrank to 2 of 25 entries")
    assert site.people("controller", f"ldap://{STANDBY}") == everybody
    for ou in ("ou=people,", ""):
        site.write(f"dn: {ou}{BASE}\nchangetype: delete\n")
    code, line = site.sync()
    assert code != 0, line
    assert site.people("controller", f"ldap://{STANDBY}") == everybody
