"""What a flip is made of, on the real kernel, without picking up of connections in the middle (tcp_loose=0) and beside
the firewalls that sites have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.component.test_redirector import NFT, ROOT, SHAPES, Controller
from tests.lab.netns import SERVICE_ADDRESS, House, poll

pytestmark = pytest.mark.component
SERVERS = ("10.0.0.11", "10.0.0.12")
STRICT = "net.netfilter.nf_conntrack_tcp_loose=0"

# One client waits for an answer; another has had one, and says more after the flip, when its standard input tells it.
CLIENTS = """
import os, socket, sys, threading
def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # lines stay whole
address, port = sys.argv[1], int(sys.argv[2])
def client(name, word):
    s = socket.create_connection((address, port), 5); s.settimeout(20)
    s.sendall(word)
    if name == "talking": s.recv(100)
    say("ready", name)
    try:
        if name == "talking": told.wait(); s.sendall(b"more\\n")
        say(name, "got", s.recv(100))
    except ConnectionResetError: say(name, "reset")
told = threading.Event()
both = [threading.Thread(target=client, args=a) for a in (("waiting", b"wait\\n"), ("talking", b"hello\\n"))]
for one in both: one.start()
sys.stdin.readline(); told.set()
for one in both: one.join()
"""


class Clients:
    """The two of them, connected."""

    def __init__(self, controller: Controller, service: str) -> None:
        address, port = SHAPES[service][1:3]
        self.log = controller.directory / f"clients-{service}.log"
        argv = controller.house.argv("client", sys.executable, "-c", CLIENTS, address, str(port))
        with self.log.open("w") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, text=True)
        poll(lambda: self.log.read_text().count("ready") == 2, 10.0, "two clients")

    def outcome(self) -> set[str]:
        self.process.communicate("go\n", timeout=30)
        return {line for line in self.log.read_text().splitlines() if "ready" not in line}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """One for all tests that flip a service of their own."""
    directory = tmp_path_factory.mktemp("flip")
    directory.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, House(f"cff{os.getpid() % 100000}") as house:
        patch.setenv("PYTHONPATH", str(ROOT))
        house.run("controller", "/usr/sbin/sysctl", "-qw", STRICT)
        made = Controller(directory, house)
        made.start()
        yield made


@pytest.mark.parametrize("service", ["tcp6", "tcp4-port", "tcp4-snat"])
def test_clients_are_reset(strict: Controller, service: str) -> None:
    """Who waits and who may go on are both told by a RST that fits, and reconnect to the standby; they are counted."""
    assert strict.ask(service).startswith("primary")  # a connection that is over by then
    clients = Clients(strict, service)
    reply = strict.flip(service)
    assert reply["flipped"]
    assert clients.outcome() == {"waiting reset", "talking reset"}
    entry = strict.journal()[-1]
    assert (entry["freed"], entry["forgotten"]) == (2, 0)
    assert strict.ask(service).startswith("standby")


@pytest.mark.parametrize("service", ["udp4", "udp6"])
def test_a_port_that_asks_on(strict: Controller, service: str) -> None:
    """UDP from one port, before and after: the flow to the dead server is forgotten, the next datagram is served."""
    assert strict.ask(service, source_port=40111).startswith("primary")
    assert strict.flip(service)["flipped"]
    assert strict.ask(service, source_port=40111).startswith("standby")


def test_one_transaction(strict: Controller) -> None:
    """Old element, new one, dead server and withheld refusals change in one generation of the kernel's rules."""
    log = strict.directory / "monitor.log"
    monitor = strict.house.start("controller", "/usr/bin/stdbuf", "-oL", NFT, "monitor", log=log)

    def listens() -> bool:
        strict.nft("add table inet probe")
        strict.nft("delete table inet probe")
        return "probe" in log.read_text()

    poll(listens, 10.0, "nft monitor listens")
    strict.flip("tcp4")
    poll(lambda: "on_standby4" in log.read_text() and "dead" in log.read_text(), 10.0, "the flip is seen")
    monitor.kill()
    generations = re.split(r"# new generation \d+.*\n", log.read_text())
    (flip,) = [generation for generation in generations if "on_standby4" in generation]
    lines = sorted(re.sub(r"\s+", " ", line).strip() for line in flip.splitlines() if line)
    table = "element inet check_failover"
    added = [line for line in lines if line.replace("add ", "delete ", 1) not in lines and line.startswith("add ")]
    assert len(added) == 2
    assert added[0].startswith(f"add {table} dead {{ 0x")
    assert added[1] == f"add {table} on_standby4 {{ tcp . {SERVICE_ADDRESS} . 7001 }}"


def test_the_sites_own_marks(strict: Controller) -> None:
    """The lower 20 bits of the ct mark are the site's, before and after; its other connections are left alone."""
    rules = (
        "table inet marks { chain c { type filter hook prerouting priority -150; ct state new ct mark set 0x51; }; }"
    )
    strict.house.run("controller", NFT, "-f", "-", input=rules)
    strict.house.run("client", "/usr/bin/ping", "-c1", "-W2", "10.0.0.11")  # not ours
    assert strict.ask("same-address").startswith("primary")
    assert strict.flip("same-address")["flipped"]
    assert strict.ask("same-address").startswith("standby")
    listed = strict.house.run("controller", "/usr/sbin/conntrack", "-L", "-o", "extended")
    marks = {int(m[1]) for m in re.finditer(r"dport=7008 .*mark=(\d+)", listed)}
    assert {mark & 0xFFFFF for mark in marks} == {0x51}
    assert all(mark >> 20 for mark in marks)
    assert re.search(r"icmp .*mark=81\b", listed)
    strict.nft("delete table inet marks")


FIREWALLD = """
table inet firewalld {
    chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; }
    chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; policy accept; }
    chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept;
        oifname "wan0" masquerade
    }
    chain filter_PREROUTING { type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        iifname "lo" accept
        meta l4proto { icmp, icmpv6 } accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT { type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname "lo" accept
    }
}
"""
# ufw loads such rules with iptables-restore; "ufw route allow proto tcp to 10.0.0.11 port 7001" and so on
UFW = """
table ip filter {
    chain INPUT { type filter hook input priority filter; policy drop;
        iifname "lo" accept
        ct state related,established accept
        ct state invalid drop
        ip protocol icmp accept
    }
    chain FORWARD { type filter hook forward priority filter; policy drop;
        ct state related,established accept
        ip protocol icmp icmp type echo-request accept
        ip daddr { 10.0.0.11, 10.0.0.12 } meta l4proto { tcp, udp } th dport 7001-7002 accept
    }
    chain OUTPUT { type filter hook output priority filter; policy accept; }
}
"""
# Nothing leaves the controller but what is named: the README's rule for our marks is among it.
STRICT_OUTPUT = UFW.replace(
    "priority filter; policy accept; }",
    "priority filter; policy drop;\n        ct state related,established accept\n"
    "        meta mark 0x2cf00001-0x2cf00003 accept\n    }",
)


@pytest.mark.parametrize("rules", [FIREWALLD, UFW, STRICT_OUTPUT], ids=["firewalld", "ufw", "strict-output"])
def test_beside_a_firewall(rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Served before and after, clients are freed, and the firewall's tables stay as they are, byte for byte."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.chmod(0o755)
    with House() as house:
        controller = Controller(tmp_path, house, only=("tcp4", "udp4"))
        house.run("controller", NFT, "-f", "-", input=rules)
        before = controller.nft("list ruleset")
        controller.start()
        assert controller.ask("udp4").startswith("primary")
        clients = Clients(controller, "tcp4")
        assert controller.flip("tcp4")["flipped"]
        assert clients.outcome() == {"waiting reset", "talking reset"}
        assert controller.flip("udp4")["flipped"]
        assert {controller.ask(name).split()[0] for name in ("tcp4", "udp4")} == {"standby"}
        controller.stop()
        controller.nft("delete table inet check_failover")
        assert controller.nft("list ruleset") == before
