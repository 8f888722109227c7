"""The OpenLDAP preset on two real slapds: slapcat, rsync, slapadd -q, a check that it loads, the switch, and back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal
from tests.lab.netns import poll
from tests.lab.sshd import ADDRESSES, Servers
from tests.lab.syncing import Syncing, ok, refused, script, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

PRESET = Path(__file__).parents[2] / "nagios-conf/sync/failover-openldap"
BASE = "dc=example,dc=org"
CONFIG = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload syncprov
pidfile {srv}/slapd.pid
database mdb
suffix {base}
rootdn cn=admin,{base}
rootpw secret
directory {srv}/data/db
maxsize 67108864
overlay syncprov
"""
ENTRIES = """\
dn: {base}
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: ou=people,{base}
objectClass: organizationalUnit
ou: people
"""
PERSON = """
dn: cn={name},ou=people,{base}
objectClass: inetOrgPerson
cn: {name}
sn: {name}
description: {text}
"""


class Slapds:
    """One slapd per server, each on its own address and in its server's file system."""

    def __init__(self, servers: Servers, port: int) -> None:
        self.servers, self.port = servers, port
        srv = servers.srv
        self.config = f"{srv}/slapd.d"
        for who, address in ADDRESSES.items():
            place = servers.place / who
            (place / "data/db").mkdir(parents=True)
            (place / "slapd.d").mkdir()
            (place / "slapd.conf").write_text(CONFIG.format(srv=srv, base=BASE))
            start = f"exec /usr/sbin/slapd -F {self.config} -h ldap://{address}:{port}"
            stop = f"if [ -e {srv}/slapd.pid ]; then kill -TERM $(cat {srv}/slapd.pid) || :; fi"
            wait = f"while [ -e {srv}/slapd.pid ]; do sleep 0.05; done"
            script(place / "restart", f"{stop}\n{wait}\n{start}")
            self.ssh(who, f"/usr/sbin/slaptest -n 0 -f {srv}/slapd.conf -F {self.config}")
        people = [PERSON.format(name=f"p{i}", text=f"number {i}", base=BASE) for i in range(50)]
        ldif = servers.place / "primary/first.ldif"
        ldif.write_text(ENTRIES.format(base=BASE) + "".join(people))
        self.ssh("primary", f"/usr/sbin/slapadd -q -F {self.config} -b {BASE} -l {srv}/first.ldif")
        self.start()

    def start(self) -> None:
        """Start both and wait for their sockets."""
        for who, address in ADDRESSES.items():
            self.ssh(who, f"{self.servers.srv}/restart")
            poll(lambda at=address: listens(at, self.port), 15, f"slapd of the {who}")

    def close(self) -> None:
        """End both; their pid files are removed by themselves."""
        for who in ADDRESSES:
            pid = self.servers.place / who / "slapd.pid"
            if pid.exists():
                os.kill(int(pid.read_text()), signal.SIGTERM)
                poll(lambda at=pid: not at.exists(), 15, f"the end of the {who}'s slapd")

    def ssh(self, who: str, command: str) -> str:
        """Run a shell line on a server."""
        argv = ["/usr/bin/ssh", "-F", str(self.servers.ssh_config), self.servers.targets[who], command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{who}: {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def modify(self, who: str, ldif: str) -> None:
        """Apply LDIF as the administrator."""
        url = f"ldap://{ADDRESSES[who]}:{self.port}"
        argv = ["/usr/bin/ldapmodify", "-x", "-H", url, "-D", f"cn=admin,{BASE}", "-w", "secret"]
        done = subprocess.run(argv, input=ldif, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def add(self, who: str, name: str, text: str = "new") -> None:
        """Add a person."""
        self.modify(
            who,
            PERSON.format(name=name, text=text, base=BASE).replace("objectClass", "changetype: add\nobjectClass", 1),
        )

    def people(self, who: str) -> dict[str, str]:
        """What a client finds: names and descriptions."""
        url = f"ldap://{ADDRESSES[who]}:{self.port}"
        argv = [
            "/usr/bin/ldapsearch",
            "-x",
            "-LLL",
            "-o",
            "ldif_wrap=no",
            "-H",
            url,
            "-b",
            BASE,
            "(sn=*)",
            "sn",
            "description",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode in (0, 32), done.stderr
        blocks = [
            dict(line.replace(":: ", ": ").split(": ", 1) for line in block.splitlines())
            for block in done.stdout.split("\n\n")
            if block
        ]
        return {block["sn"]: block["description"] for block in blocks}


def listens(address: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex((address, port)) == 0


@pytest.fixture
def directory(syncing: Syncing) -> Iterator[Slapds]:
    """Two slapds; the primary has 52 entries, the standby an empty database; both are adopted."""
    subprocess.run(["/bin/rm", "-rf", str(syncing.primary)], check=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    slapds = Slapds(syncing.servers, port)
    try:
        configure(syncing, slapds)
        ok(syncing.sync("--adopt"))
        yield slapds
    finally:
        slapds.close()


def configure(syncing: Syncing, slapds: Slapds, preset: Path = PRESET, **changes: str) -> None:
    """``[service.sync]`` as docs/sync.md has it."""
    srv, where = syncing.servers.srv, f'"-b", "{BASE}", "-F", "{slapds.config}"'
    keys = {
        "to": f'"{srv}/data"',
        "exclude": '["/db"]',
        "before": f'["{preset}", "export", {where}, "{{source}}"]',
        "count": f'["{preset}", "count", "{{source}}"]',
        "verify": f'["{preset}", "load", {where}, "-u", "root:root", "{{staged}}", "{{entries}}"]',
        "after": f'["{srv}/after"]',
    } | changes
    for who, address in ADDRESSES.items():
        url = f"ldap://{address}:{slapds.port}"
        script(syncing.servers.place / who / "after", f"exec {preset} restart -b {BASE} -H {url} -- {srv}/restart")
    more = "\n".join(f"{key} = {value}" for key, value in keys.items())
    syncing.configure(more, source=f"{srv}/export")


def test_a_directory_comes_to_the_standby_and_back(syncing: Syncing, directory: Slapds) -> None:
    """Entries and changes arrive; without one slapd is left alone; --reverse brings back what clients wrote."""
    ok(syncing.sync())
    assert len(directory.people("standby")) == 50
    assert directory.people("standby") == directory.people("primary")
    size = syncing.state().size
    assert size is not None
    assert size.entries == 52

    pid = (syncing.servers.place / "standby/slapd.pid").read_text()
    ok(syncing.sync())
    assert not syncing.state().changed
    assert (syncing.servers.place / "standby/slapd.pid").read_text() == pid

    directory.add("primary", "umlaut", "größer")
    ok(syncing.sync())
    assert directory.people("standby") == directory.people("primary")
    assert len(directory.people("standby")) == 51

    syncing.target, syncing.since = "standby", time.time()
    directory.add("standby", "late")
    ok(syncing.sync("--reverse"))
    assert directory.people("primary") == directory.people("standby")
    assert "late" in directory.people("primary")
    assert syncing.state().brought_back(syncing.since, time.time(), 900)


def test_an_export_that_does_not_load_is_not_served(syncing: Syncing, directory: Slapds) -> None:
    """Cut short, or full of rubbish: slapadd or the count says so; the standby goes on with what it has."""
    ok(syncing.sync())
    good = directory.people("standby")
    for number, (how, text) in enumerate(
        {
            "sed -i 's/^objectClass: inetOrgPerson$/objectClass: noSuchClass/' \"$last\"": "slapadd: ",
            "printf 'dn: cn=x,ou=nowhere,%s\\nobjectClass: device\\ncn: x\\n\\n' " + BASE + ' >>"$last"': "slapadd: ",
        }.items()
    ):
        directory.add("primary", f"more{number}")
        spoiling = script(
            syncing.place / "spoiling",
            f'{PRESET} "$@" || exit\nfor last; do :; done\nlast=$last/data.ldif\ncase $1 in export) {how} ;; esac',
        )
        configure(syncing, directory, spoiling)
        refused(syncing, syncing.sync(), Refusal.FAILED, text)
        assert directory.people("standby") == good
    configure(syncing, directory)
    ok(syncing.sync())
    assert directory.people("standby") == directory.people("primary")


def test_a_primary_that_lost_its_entries_is_refused(syncing: Syncing, directory: Slapds) -> None:
    """An empty database still exports without an error."""
    ok(syncing.sync())
    good = directory.people("standby")
    for number in range(40):
        directory.modify("primary", f"dn: cn=p{number},ou=people,{BASE}\nchangetype: delete\n")
    refused(syncing, syncing.sync(), Refusal.SHRUNK, "the source shrank to 12 of 52 entries")
    assert directory.people("standby") == good


def test_a_slapd_that_does_not_start_gets_the_old_database_back(syncing: Syncing, directory: Slapds) -> None:
    """``after`` fails: the link moves back and the restart is tried with the copy before."""
    ok(syncing.sync())
    good = directory.people("standby")
    directory.add("primary", "new")
    configure(syncing, directory)
    place = syncing.servers.place / "standby"
    restart = (place / "restart").read_text()
    script(
        place / "restart", f"if [ ! -e {syncing.place}/once ]; then touch {syncing.place}/once; exit 7; fi\n{restart}"
    )
    refused(syncing, syncing.sync(), Refusal.FAILED, "restart: exit 7; the copy before serves again")
    assert directory.people("standby") == good
    ok(syncing.sync())
    assert "new" in directory.people("standby")
