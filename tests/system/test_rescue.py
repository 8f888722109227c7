"""The rescue on the real kernel: single connections that the primary does not answer, and none that it does.

The primary is well and passes every probe; what it answers to a client's SYN the first time is lost on the way. So each
connection is rescued, and each time the primary's answer comes late, to somebody who talks to the standby.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.component.test_drain import SESSION
from tests.lab.echo import Echo
from tests.lab.handshake import QUIET
from tests.lab.load import Load
from tests.lab.netns import CLIENT, PRIMARY, SERVICE_ADDRESS, STANDBY, end
from tests.lab.site import HOST, ROOT, SERVERS, Site
from tests.lab.slapd import ADMIN, BASE, LDAPMODIFY, PASSWORD

pytestmark = pytest.mark.system

ON, OFF, QUEUE = 7001, 7002, 7003
SERVICE = f"""
[[service]]
name = "{{name}}"
host = "{HOST}"
protocol = "tcp"
address = "{SERVICE_ADDRESS}"
port = {{port}}
primary = "{PRIMARY}"
standby = "{STANDBY}"
[service.check]
type = "tcp"
[service.policy]
rescue = {{rescue}}
"""
LATE = f"""
table inet late {{
    set seen {{ type ipv4_addr . inet_service . inet_service; flags dynamic; timeout 30s; }}
    chain out {{
        type filter hook output priority 0;
        ip daddr {CLIENT} tcp flags & (syn | ack) == syn | ack ip daddr . tcp dport . tcp sport != @seen \
            add @seen {{ ip daddr . tcp dport . tcp sport }} drop
    }}
}}
"""
# Takes what has come every 150 ms, as a process with too much to do; its queue has room for nine.
SLOW = """
import socket, sys, threading, time
server = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=8)
server.setblocking(False)
print("ready", flush=True)
def answer(client):
    with client:
        client.settimeout(5)
        try:
            if client.recv(100): client.sendall(b"primary me\\n")
        except OSError: pass
while True:
    try:
        client, _ = server.accept()
        threading.Thread(target=answer, args=(client,), daemon=True).start()
    except BlockingIOError:
        time.sleep(0.15)
"""


class Lab:
    """A site with echo servers behind three more services."""

    def __init__(self, site: Site) -> None:
        self.site, self.house = site, site.house
        self._ports = itertools.count(30001)
        self.echo: dict[tuple[str, int], Echo] = {}
        for who, address in SERVERS.items():
            for port in (ON, OFF, QUEUE):
                log = site.directory / f"echo-{who}-{port}.log"
                slow = (sys.executable, "-c", SLOW, address, str(port)) if (who, port) == ("primary", QUEUE) else ()
                self.echo[who, port] = Echo(self.house, who, "tcp", address, port, log, slow)
                self.echo[who, port].start()
        for name in ("on", "off", "queue"):
            site.wait_healthy("standby", name=name)
        self.house.run("client", "/usr/sbin/nft", "-f", "-", input=QUIET)
        for _ in range(12):  # so that the way's round trip is known
            assert self.ask(ON).startswith("primary")

    def late(self, late: bool = True) -> None:
        """From now on the primary's first answer to a SYN of the client is lost, or not."""
        empty = "add table inet late\ndelete table inet late\n"
        self.house.run("primary", "/usr/sbin/nft", "-f", "-", input=empty + LATE * late)

    def ask(self, port: int) -> str:
        argv = [sys.executable, "-m", "tests.lab.echo", "ask", "tcp", SERVICE_ADDRESS, str(port), "4"]
        return self.house.run("client", *argv).strip()

    def shake(self, *syns: float, source_port: int = 0) -> str:
        """A connection by hand with a SYN at each of these moments; see ``handshake``."""
        number, moments = str(source_port or next(self._ports)), ",".join(map(str, syns))
        argv = [sys.executable, "-m", "tests.lab.handshake", SERVICE_ADDRESS, str(ON), number, moments]
        return self.house.run("client", *argv).strip()

    def rescued(self, name: str = "on") -> int:
        return int(self.site.sniffer(name)["stats"]["rescued"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    services = (("on", ON, "true"), ("off", OFF, "false"), ("queue", QUEUE, "true"))
    extra = "".join(SERVICE.format(name=name, port=port, rescue=rescue) for name, port, rescue in services)
    with tempfile.TemporaryDirectory(prefix="cfo-site-") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        Path(name).chmod(0o755)
        with Site(Path(name) / "site", nagios=False, kannel=False, extra=extra, writes="primary") as site:
            yield Lab(site)


def test_what_is_rescued_lives_and_nothing_else_moves(lab: Lab) -> None:
    """A late SYN-ACK, repeated SYNs at every moment, SYN cookies, a port used again; and where it is switched off."""
    lab.late()
    argv = (sys.executable, "-c", SESSION, SERVICE_ADDRESS, str(ON), "SOCK_STREAM")
    log = lab.site.directory / "session.log"
    session = lab.house.start("client", *argv, log=log)
    for syns in ((0.0,), (0.0, 0.0), (0.0, 0.1, 0.1005, 0.101, 0.102), (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)):
        said = lab.shake(*syns)
        assert said.split()[0] in ("standby", "primary"), said
        assert said.endswith(" servers=1 resets=0"), f"{syns}: {said}"
    for who in SERVERS:
        lab.house.run(who, "/usr/sbin/sysctl", "-qw", "net.ipv4.tcp_syncookies=2")  # always
    assert lab.shake(0.0, source_port=30500) == f"standby {CLIENT} servers=1 resets=0"
    lab.late(False)
    assert lab.shake(0.0, source_port=30500) == f"primary {CLIENT} servers=1 resets=0"
    answers = log.read_text().splitlines()
    assert len(answers) > 20
    assert set(answers) == {"standby"}
    end(session)
    assert lab.rescued() >= 3
    lab.late()
    began = time.monotonic()
    assert lab.ask(OFF) == f"primary {CLIENT}"
    assert time.monotonic() - began > 0.9  # it waited for the second SYN-ACK
    assert lab.rescued("off") == 0
    assert lab.site.journal() == []
    assert {lab.site.status(name)["target"] for name in ("on", "off", "ldap")} == {"primary"}


def test_nothing_is_rescued_to_where_nothing_may_go(lab: Lab) -> None:
    """While it is held, and while the standby is not well; the traffic check tells how many were rescued."""
    lab.late()
    assert lab.ask(ON) == f"standby {CLIENT}"
    lab.site.ctl("hold", "on", "--reason", "new disks for the standby")
    assert lab.ask(ON) == f"primary {CLIENT}"
    lab.site.ctl("release", "on")
    time.sleep(1.1)  # it asks again after a second
    assert lab.ask(ON) == f"standby {CLIENT}"
    counted = lab.rescued()
    argv = [sys.executable, "-m", "check_failover.checks.entry", "traffic", "--config", str(lab.site.config)]
    said = lab.house.run("controller", *argv, "--service", "on", check=False)
    assert f", {counted} rescued" in said
    assert f"rescued={counted}c" in said
    lab.echo["standby", ON].stop()
    lab.site.poll(lambda: lab.site.sniffer("on")["standby"]["ok"] is False, 40.0, "the standby is not well")
    assert lab.ask(ON) == f"primary {CLIENT}"
    assert lab.rescued() == counted
    lab.late(False)


def test_a_slow_accept_queue_loses_nobody(lab: Lab) -> None:
    """A server that takes what has come only now and then, and whose queue is full in between."""
    script = (
        "import sys, threading, time\nfrom tests.lab import echo\n"
        f"ask = lambda: sys.stdout.write(echo.ask('tcp', '{SERVICE_ADDRESS}', {QUEUE}, 5) + '\\n')\n"
        "for _ in range(300):\n    threading.Thread(target=ask).start()\n    time.sleep(0.01)\n"
    )
    said = lab.house.run("client", sys.executable, "-c", script).splitlines()
    assert len(said) == 300
    assert {line.split()[0] for line in said} <= {"primary", "standby"}
    assert sum(line.startswith("primary") for line in said) > 100
    assert lab.site.status("queue")["target"] == "primary"


def test_a_write_does_not_land_on_the_standby(lab: Lab) -> None:
    """The next sync would overwrite it there: the client waits for the primary's second SYN-ACK instead."""
    lab.late()
    entry = f"dn: cn=new{{}},ou=people,{BASE}\nchangetype: add\nobjectClass: inetOrgPerson\ncn: new{{}}\nsn: New\n"
    for number in range(6):
        argv = (LDAPMODIFY, "-x", "-H", f"ldap://{SERVICE_ADDRESS}", "-D", ADMIN, "-w", PASSWORD)
        lab.house.run("client", *argv, input=entry.format(number, number))
    lab.late(False)
    for who, added in (("primary", 6), ("standby", 0)):
        url = f"ldap://{SERVERS[who]}"
        argv = ("/usr/bin/ldapsearch", "-x", "-LLL", "-H", url, "-b", BASE, "(cn=new*)", "cn")
        assert lab.house.run(who, *argv).count("cn: new") == added
    assert lab.rescued("ldap") == 0


def test_a_refused_fail_over_ends_no_rescue(make_site: Callable[..., Site], make_load: Callable[..., Load]) -> None:
    """The primary dies in a downtime that inhibits flips: for as long as that stands the standby serves each client."""
    site = make_site(kannel=False, policy='downtime = "inhibit"')
    assert site.core is not None
    load = make_load(site)
    now = int(time.time())
    site.core.command(f"SCHEDULE_HOST_DOWNTIME;{HOST};{now};{now + 3600};1;0;3600;ada;new disks")
    site.poll(lambda: site.core is not None and site.core.lines("HOST DOWNTIME ALERT"), 20.0, "the downtime began")
    site.fault("crash")
    site.poll(lambda: [e for e in site.journal("fail-over") if e["reason"] == "downtime"], 20.0, "it is refused")
    since = time.monotonic()
    site.poll(lambda: len([r for r in load.requests(since) if r.kind == "short"]) > 200, 30.0, "requests all the time")
    short = [request for request in load.requests(since) if request.kind == "short"]
    assert [request.error for request in short if request.error] == []
    assert {request.server for request in short} == {"standby"}
    assert site.status()["target"] == "primary"


def test_after_a_cut_the_standby_can_be_used(make_site: Callable[..., Site], make_load: Callable[..., Load]) -> None:
    """A fail-back cuts what is left on the standby: a drill to it passes then, and the next crash fails nobody."""
    site = make_site(kannel=False, service='test_client = "192.0.2.250"')
    load = make_load(site)
    site.fault("crash")
    site.wait_target("standby")
    site.heal("crash")
    site.poll(lambda: all(why is None for _, why in site.status()["fail_back"][1:]), 40.0, "ready to fail back")
    site.ctl("fail-back", "ldap", "--deadline", "1")
    site.poll(lambda: site.status()["drain"] is None, 20.0, "the drain is over")
    assert "were cut" in site.journal("drained")[-1]["text"]
    drilled = site.ctl("drill", "ldap", check=False)
    assert re.search(r" s  client +(?! |FAILED)", drilled), drilled
    since = time.monotonic()
    site.poll(lambda: len(load.requests(since)) > 60, 15.0, "sixty requests")
    crashed = time.monotonic()
    site.fault("crash")
    site.wait_target("standby", 20.0)
    site.poll(lambda: len(load.requests(crashed)) > 150, 20.0, "clients are served")
    failed = [r for r in load.requests(crashed) if r.kind == "short" and r.error]
    assert len(failed) <= 4, failed
