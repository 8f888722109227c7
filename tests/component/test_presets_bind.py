"""The BIND preset on two real nameds, with a static and a dynamic zone: export, load, compare the serials, and back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.update
import pytest

from check_failover.syncstate import Refusal
from tests.lab import preset
from tests.lab.named import NAMED
from tests.lab.netns import poll
from tests.lab.sshd import ADDRESSES, Servers
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

CONFIG = """\
options {{
    directory "{srv}/cache"; pid-file "{srv}/named.pid"; session-keyfile "{srv}/session.key";
    managed-keys-directory "{srv}/cache";
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; lock-file none;
    recursion no; dnssec-validation no; notify no;
}};
key "lab" {{ algorithm hmac-sha256; secret "bGFib3JhdG9yeQ=="; }};
controls {{ inet 127.0.0.1 port {control} allow {{ any; }} keys {{ "lab"; }}; }};
zone "local.test" {{ type primary; file "{srv}/local.zone"; }};
zone "static.test" {{ type primary; file "{srv}/zones/served/static"; }};
zone "dynamic.test" {{ type primary; file "{srv}/zones/served/dynamic"; allow-update {{ any; }}; }};
{more}
"""
RNDC = """\
key "lab" {{ algorithm hmac-sha256; secret "bGFib3JhdG9yeQ=="; }};
options {{ default-server 127.0.0.1; default-port {control}; default-key "lab"; }};
"""
ZONE = """\
$TTL 60
@   IN SOA ns.test. admin.test. {serial} 3600 600 86400 60
    IN NS ns.test.
www IN A 192.0.2.{last}
"""


class Nameds:
    """One named per server, each on its own port (named listens at an interface's address only) and file system."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.port = {who: free_port() for who in ADDRESSES}
        self.control = {who: free_port() for who in ADDRESSES}
        for who in ADDRESSES:
            place = servers.place / who
            (place / "cache").mkdir()
            (place / "zones/served").mkdir(parents=True)
            shutil.copy(NAMED, place / "named")  # Debian's AppArmor profile is for the path /usr/sbin/named
            (place / "local.zone").write_text(ZONE.format(serial=1, last=1))
            self.configure(who)
        for zone in ("static", "dynamic"):
            self.write("primary", zone, 1, 1)

    def start(self) -> None:
        """Start both and wait for an answer."""
        for who, port in self.port.items():
            srv = self.servers.srv
            preset.ssh(self.servers, who, f"{srv}/named -n 1 -c {srv}/named.conf")
            poll(lambda at=port: answers(at), 15, f"named of the {who}")

    def configure(self, who: str, more: str = "") -> None:
        """Write its configuration, with more zones."""
        values = {"srv": self.servers.srv, "port": self.port[who], "control": self.control[who]}
        (self.servers.place / who / "named.conf").write_text(CONFIG.format(more=more, **values))
        (self.servers.place / who / "rndc.conf").write_text(RNDC.format(**values))

    def write(self, who: str, zone: str, serial: int, last: int) -> None:
        """A zone's file, as a person edits it."""
        (self.servers.place / who / "zones/served" / zone).write_text(ZONE.format(serial=serial, last=last))

    def rndc(self, who: str, *words: str) -> str:
        """A command to it."""
        return preset.ssh(self.servers, who, f"rndc -c {self.servers.srv}/rndc.conf {' '.join(words)}")

    def edit(self, who: str, zone: str, serial: int, last: int) -> None:
        """A person's change of a static zone, to its end."""
        self.write(who, zone, serial, last)
        self.rndc(who, "reload", f"{zone}.test")
        poll(lambda: self.ask(who, f"{zone}.test", "SOA").split()[2] == str(serial), 10, "the edited zone")

    def update(self, who: str, name: str, address: str) -> None:
        """A client's dynamic update (RFC 2136)."""
        update = dns.update.UpdateMessage("dynamic.test")
        update.replace(name, 60, "A", address)
        answer = dns.query.tcp(update, "127.0.0.1", 5, self.port[who])
        assert answer.rcode() == dns.rcode.NOERROR, answer

    def ask(self, who: str, name: str, kind: str = "A") -> str:
        """What a resolver gets, or the name of the error."""
        answer = dns.query.udp(dns.message.make_query(name, kind), "127.0.0.1", 5, self.port[who])
        if answer.rcode() != dns.rcode.NOERROR:
            return dns.rcode.to_text(answer.rcode())
        return " ".join(sorted(str(item) for rrset in answer.answer for item in rrset))

    def close(self) -> None:
        """End both."""
        for who in ADDRESSES:
            pid = self.servers.place / who / "named.pid"
            if pid.exists():
                os.kill(int(pid.read_text()), signal.SIGTERM)
                poll(lambda file=pid: not file.exists(), 15, f"the end of the {who}'s named")


def answers(port: int) -> bool:
    """Whether named serves there."""
    try:
        dns.query.udp(dns.message.make_query("local.test", "SOA"), "127.0.0.1", 0.5, port)
    except (dns.exception.DNSException, OSError):
        return False
    return True


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def names(syncing: Syncing) -> Iterator[Nameds]:
    """Two nameds; the primary has both zones with serial 1, the standby is configured for them and has no file."""
    subprocess.run(["/bin/rm", "-rf", str(syncing.primary)], check=True)
    nameds = Nameds(syncing.servers)
    try:
        nameds.start()
        configure(syncing)
        ok(syncing.sync("--adopt"))
        yield nameds
    finally:
        nameds.close()


def configure(syncing: Syncing, helper: Path = preset.PRESETS / "failover-bind", **more: str) -> None:
    """``[service.sync]`` as the preset has it."""
    srv = syncing.servers.srv
    options = "".join(f"'{word}', " for word in ("-c", f"{srv}/named.conf", "-r", f"{srv}/rndc.conf"))
    changes = {f"'{verb}', ": f"'{verb}', {options}" for verb in ("export", "load", "switch")}
    changes |= {"/var/lib/bind/sync": str(srv), "bind:bind": "root:root", preset.SBIN: str(helper.parent)}
    syncing.configure(preset.keys("bind", changes | more), source=f"{srv}/export")


def test_zones_come_to_the_standby_and_back(syncing: Syncing, names: Nameds) -> None:
    """Restore drill: what resolvers get is the same on both servers, for a static and a dynamic zone, both ways."""
    names.update("primary", "new", "192.0.2.50")  # in the journal only
    assert names.ask("standby", "www.static.test") == "SERVFAIL"
    ok(syncing.sync())
    assert names.ask("standby", "www.static.test") == "192.0.2.1"
    assert names.ask("standby", "new.dynamic.test") == "192.0.2.50"

    ok(syncing.sync())
    assert not syncing.state().changed

    names.edit("primary", "static", 2, 2)
    names.update("primary", "www", "192.0.2.51")
    ok(syncing.sync())
    for name in ("static.test", "dynamic.test"):
        assert names.ask("standby", name, "SOA") == names.ask("primary", name, "SOA")
        assert names.ask("standby", f"www.{name}") == names.ask("primary", f"www.{name}")
    assert names.ask("standby", "www.static.test") == "192.0.2.2"

    syncing.target, syncing.since = "standby", time.time()
    names.update("standby", "late", "192.0.2.60")
    names.edit("standby", "static", 3, 3)
    ok(syncing.sync("--reverse"))
    assert names.ask("primary", "late.dynamic.test") == "192.0.2.60"
    assert names.ask("primary", "new.dynamic.test") == "192.0.2.50"
    assert names.ask("primary", "www.static.test") == "192.0.2.3"
    names.update("primary", "after", "192.0.2.70")  # it takes updates again
    assert names.ask("primary", "after.dynamic.test") == "192.0.2.70"
    assert syncing.state().brought_back(syncing.since, time.time(), 900)


def test_a_zone_that_is_not_served_as_its_file_has_it_is_refused(syncing: Syncing, names: Nameds) -> None:
    """Edited and not reloaded on the giving server: the file is not what clients get."""
    ok(syncing.sync())
    loaded = int(time.time())
    poll(lambda: int(time.time()) > loaded, 3, "the next second: named tells its last load's")
    names.write("primary", "static", 9, 9)
    refused(syncing, syncing.sync(), Refusal.FAILED, "static.test: its file changed after named loaded it")
    names.rndc("primary", "reload", "static.test")
    ok(syncing.sync())
    assert names.ask("standby", "www.static.test") == "192.0.2.9"


def test_a_load_that_named_did_not_do_is_no_success(syncing: Syncing, names: Nameds) -> None:
    """rndc says success and the old zone is served: its serial tells; the copy before serves again, updates too."""
    ok(syncing.sync())
    names.update("standby", "own", "192.0.2.44")
    names.edit("primary", "static", 5, 5)
    names.update("primary", "www", "192.0.2.52")
    bin_ = syncing.place / "bin"
    bin_.mkdir()
    text = (preset.PRESETS / "failover-bind").read_text()
    once = f'if [ "$1" = reload ] && [ ! -e {syncing.place}/once ]; then : >{syncing.place}/once; return; fi'
    helper = bin_ / "failover-bind"
    helper.write_text(
        text.replace("a command to named\n", f"a command to named\n    {once}\n").replace("-lt 100", "-lt 5")
    )
    helper.chmod(0o755)
    assert once in helper.read_text()
    configure(syncing, helper)
    told = "static.test: named serves serial 1, the copy has 5: its log says why; the previous copy serves again"
    refused(syncing, syncing.sync(), Refusal.FAILED, told)
    assert names.ask("standby", "www.static.test") == "192.0.2.1"
    assert names.ask("standby", "own.dynamic.test") == "192.0.2.44"
    configure(syncing)
    ok(syncing.sync())
    assert names.ask("standby", "www.static.test") == "192.0.2.5"
    assert names.ask("standby", "www.dynamic.test") == "192.0.2.52"
    assert names.ask("standby", "own.dynamic.test") == "NXDOMAIN"


def test_both_servers_must_have_the_same_zones(syncing: Syncing, names: Nameds) -> None:
    """One that only the giving server has would not be served after a fail-over: refused before the switch."""
    names.configure("primary", f'zone "more.test" {{ type primary; file "{syncing.servers.srv}/zones/served/more"; }};')
    names.write("primary", "more", 1, 7)
    names.rndc("primary", "reconfig")
    poll(lambda: names.ask("primary", "www.more.test") == "192.0.2.7", 10, "the third zone")
    refused(syncing, syncing.sync(), Refusal.FAILED, "more.test: ")
    assert names.ask("standby", "www.static.test") == "SERVFAIL"
