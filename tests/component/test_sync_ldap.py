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

from check_failover.syncstate import Refusal, SyncDirection
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
{more}
overlay syncprov
"""
REPLICA = """\
syncrepl rid=001 provider=ldap://{primary}:{port} type=refreshAndPersist retry="1 +" searchbase="{base}"
  bindmethod=simple binddn="cn=admin,{base}" credentials=secret
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
            start = f"exec /usr/sbin/slapd -F {self.config} -h ldap://{address}:{port}"
            stop = f"if [ -e {srv}/slapd.pid ]; then kill -TERM $(cat {srv}/slapd.pid) || :; fi"
            wait = f"while [ -e {srv}/slapd.pid ]; do sleep 0.05; done"
            script(place / "restart", f"{stop}\n{wait}\n{start}")
            self.configure(who)
        people = [PERSON.format(name=f"p{i}", text=f"number {i}", base=BASE) for i in range(50)]
        ldif = servers.place / "primary/first.ldif"
        ldif.write_text(ENTRIES.format(base=BASE) + "".join(people))
        self.ssh("primary", f"/usr/sbin/slapadd -q -F {self.config} -b {BASE} -l {srv}/first.ldif")
        self.start()

    def configure(self, who: str, more: str = "") -> None:
        """Make its slapd.d anew, with more lines for the database."""
        place, srv = self.servers.place / who, self.servers.srv
        (place / "slapd.conf").write_text(CONFIG.format(srv=srv, base=BASE, more=more))
        self.ssh(who, f"rm -rf {self.config}/* && /usr/sbin/slaptest -n 0 -f {srv}/slapd.conf -F {self.config}")

    def start(self) -> None:
        """Start both, or again, and wait for their sockets."""
        for who, address in ADDRESSES.items():
            self.ssh(who, f"{self.servers.srv}/restart")
            poll(lambda at=address: listens(at, self.port), 15, f"slapd of the {who}")

    def replicate(self, wanted: bool) -> None:
        """Whether the standby follows the primary by syncrepl."""
        more = REPLICA.format(primary=ADDRESSES["primary"], port=self.port, base=BASE)
        self.configure("standby", more if wanted else "")
        self.start()

    def close(self) -> None:
        """End both."""
        for who in ADDRESSES:
            self.stop(who)

    def stop(self, who: str) -> None:
        """End one; its pid file is removed by itself."""
        pid = self.servers.place / who / "slapd.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
            poll(lambda: not pid.exists(), 15, f"the end of the {who}'s slapd")

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

    def delete(self, who: str, number: int) -> None:
        """Delete that many people."""
        self.modify(who, "\n".join(f"dn: cn=p{i},ou=people,{BASE}\nchangetype: delete\n" for i in range(number)))

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


@pytest.fixture(name="directory")
def directory_fixture(syncing: Syncing) -> Iterator[Slapds]:
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
    """``[service.sync]`` as nagios-conf/sync/README.md has it."""
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
    syncing.configure(more, source=f"{srv}/export", port=str(slapds.port), check=f'type = "ldap"\nbase = "{BASE}"')


def replicating(syncing: Syncing, slapds: Slapds) -> None:
    """``[service.sync]`` for servers that replicate by themselves."""
    check = f'type = "ldap"\nbase = "{BASE}"'
    syncing.configure('method = "syncrepl"', port=str(slapds.port), check=check)


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
    directory.delete("primary", 40)
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
    refused(syncing, syncing.sync(), Refusal.FAILED, "restart: exit 7; the previous copy serves again")
    assert directory.people("standby") == good
    ok(syncing.sync())
    assert "new" in directory.people("standby")


def test_the_manual_s_restore_drill(syncing: Syncing, directory: Slapds) -> None:
    """The sync guide: the served copy is loaded once more beside the running slapd, which does not notice."""
    ok(syncing.sync())
    srv = syncing.servers.srv
    load = f'{PRESET} load -b {BASE} -F {directory.config} "$PWD/data.sync/drill"'
    drill = f"cd {srv} && mkdir data.sync/drill && cp data/data.ldif data.sync/drill/ && {load}"
    assert (
        directory.ssh("standby", f'{drill} "$({PRESET} count data)" && echo whole; rm -r data.sync/drill') == "whole\n"
    )
    assert len(directory.people("standby")) == 50


# ---------------------------------------------------------------- what both servers say of themselves


def test_the_check_compares_both_directories(syncing: Syncing, directory: Slapds) -> None:
    """Entries of both and how far the standby is behind; an empty standby is critical even where the record is good."""
    ok(syncing.sync())
    done = syncing.check()
    assert done.returncode == 0, done.stdout
    assert "52 entries" in done.stdout
    assert "csn_lag=0s;1200;1800;0" in done.stdout
    assert "entries_primary=52;;;0 entries_standby=52;;;0" in done.stdout
    directory.add("primary", "new")
    behind = syncing.check("--warning-entries", "0", "--critical-lag", "0:0")
    assert behind.returncode == 2, behind.stdout
    assert "53 entries, standby 52" in behind.stdout
    assert "contextCSN" in behind.stdout
    directory.delete("standby", 50)
    directory.modify("standby", f"dn: ou=people,{BASE}\nchangetype: delete\n")
    directory.modify("standby", f"dn: {BASE}\nchangetype: delete\n")
    empty = syncing.check()
    assert empty.returncode == 2, empty.stdout
    assert "53 entries, standby 0" in empty.stdout


def test_a_silent_server_is_named(syncing: Syncing, directory: Slapds) -> None:
    """Down: refused. While the standby serves, a primary that is down is another check's alarm."""
    ok(syncing.sync())
    directory.stop("primary")
    done = syncing.check()
    assert done.returncode == 2, done.stdout
    assert "the primary: connection refused" in done.stdout
    syncing.target = "standby"
    assert syncing.sync().returncode == 1
    done = syncing.check()
    assert done.returncode == 0, done.stdout
    assert "the standby serves" in done.stdout


def test_servers_that_replicate_are_compared_only(syncing: Syncing, directory: Slapds) -> None:
    """syncrepl itself carries the data; the record says when the standby had all of it, and what is wrong when not."""
    replicating(syncing, directory)
    refused(syncing, syncing.sync(), Refusal.FAILED, "the standby has no contextCSN of server 000: does it replicate?")
    directory.replicate(True)
    poll(lambda: directory.people("standby") == directory.people("primary"), 15, "replication")
    ok(syncing.sync())
    size = syncing.state().size
    assert size is not None
    assert size.entries == 52
    directory.add("primary", "new")
    ok(syncing.sync())  # it gets a moment to arrive
    assert "new" in directory.people("standby")
    directory.replicate(False)
    directory.add("primary", "newer")
    refused(syncing, syncing.sync(), Refusal.FAILED, "the standby is behind: contextCSN ")
    directory.delete("primary", 40)
    refused(syncing, syncing.sync(), Refusal.SHRUNK, "the primary shrank to 14 of 53 entries")


def test_a_fail_back_of_replicating_servers_waits_for_the_standbys_changes(syncing: Syncing, directory: Slapds) -> None:
    """While the standby serves the timer compares in reverse: the record knows whether the primary has all of it."""
    replicating(syncing, directory)
    directory.replicate(True)
    poll(lambda: directory.people("standby") == directory.people("primary"), 15, "replication")
    ok(syncing.sync())
    syncing.target, syncing.since = "standby", time.time()
    ok(syncing.sync())
    state = syncing.state()
    assert state.direction is SyncDirection.REVERSE
    assert state.brought_back(syncing.since, time.time(), 900)
    directory.stop("primary")
    syncing.since = time.time()
    refused(syncing, syncing.sync(), Refusal.TARGET_STANDBY, "the standby serves")
    assert not syncing.state().brought_back(syncing.since, time.time(), 900)
