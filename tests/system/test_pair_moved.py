"""Connections that are open when the service address moves to the other controller: the server speaks next.

The client sends nothing of its own (a ticker, a push, a long answer), so that only the server's segments can tell the
new controller of the connection.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from check_failover.config import load
from check_failover.redirector.nftables.redirect import ct_marks
from check_failover.redirector.nftables.ruleset import CT_MASK
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, poll
from tests.lab.pair import PORT, ROOT, Half, Pair

pytestmark = pytest.mark.system
Made = Callable[..., AbstractContextManager[Pair]]

# Each client gets 100 kB every 0.2 s, or nothing ("quiet"). SIGUSR1: close all connections.
SERVER = """
import select, signal, socket, sys, time
ticking, ends = sys.argv[3] == "ticking", False
def close(*_):
    global ends; ends = True
signal.signal(signal.SIGUSR1, close)
listener = socket.create_server((sys.argv[1], int(sys.argv[2]))); print("ready", flush=True)
clients, number = [], 0
while True:
    if select.select([listener], [], [], 0.2)[0]: clients.append(listener.accept()[0])
    number += 1
    for client in list(clients):
        try:
            if ticking: client.sendall(b"tick %d %s\\n" % (number, b"x" * 100000))
            if ends: client.close(); clients.remove(client)
        except OSError as error: print(error, flush=True); clients.remove(client)
    ends = False
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
    s.settimeout(None); print("connected", s.getsockname()[1], flush=True)
    try:
        for line in s.makefile(): print(line.split("x")[0], flush=True)
        print("end", flush=True)
    except OSError as error: print("error", error.strerror, flush=True)
"""


class Push:
    """A server of ours in the primary's place, and one client that listens."""

    def __init__(self, pair: Pair, kind: str) -> None:
        pair.servers["primary"].kill()
        self.log, self.served = pair.place / "listening.log", pair.place / "push.log"
        argv = (sys.executable, "-c", SERVER, PRIMARY, str(PORT), kind)
        self.server: subprocess.Popen[Any] = pair.house.start("primary", *argv, log=self.served)
        poll(lambda: "ready" in self.served.read_text(), 10.0, "the server")
        pair.house.start("client", sys.executable, "-c", CLIENT, SERVICE_ADDRESS, str(PORT), log=self.log)
        poll(lambda: "connected" in self.log.read_text(), 10.0, "the client")
        if kind == "ticking":
            self.goes_on(pair.left)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def port(self) -> int:
        return int(self.lines()[0].split()[1])

    def goes_on(self, half: Half) -> None:
        """Five more lines on the same connection, while ``half`` has the address."""
        had = len(self.lines())
        try:
            poll(lambda: len(self.lines()) >= had + 5, 8.0, f"lines through {half.who}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.lines()[-3:]} {self.served.read_text()}\n{half.log()}") from None
        assert {line.split()[0] for line in self.lines()[1:]} == {"tick"}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes a pair; keywords as for ``Pair``. The left one has the address."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    @contextlib.contextmanager
    def make(**how: Any) -> Iterator[Pair]:
        with Pair(tmp_path, **how) as pair:
            poll(lambda: pair.left.active() and not pair.right.active(), 40.0, "left is active")
            yield pair

    return make


def strict(pair: Pair) -> None:
    """Neither kernel takes up a connection that it does not know: only an entry that conntrackd brought can help."""
    for half in (pair.left, pair.right):
        pair.house.run(half.who, "/usr/sbin/sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0")


@pytest.mark.parametrize("conntrackd", [False, True], ids=["alone", "conntrackd"])
def test_the_connection_goes_on(made: Made, conntrackd: bool) -> None:
    """Without conntrackd the server's next segment is enough; with it the entry is there before. Either is ours.

    A fail-over on the new controller resets the client as it would have on the old one.
    """
    with made(conntrackd=conntrackd) as pair:
        if conntrackd:
            strict(pair)
        push = Push(pair, "ticking")
        if conntrackd:
            cached = lambda: f"sport={push.port()}" in pair.right.ask_conntrackd("-e")  # noqa: E731
            poll(cached, 10.0, "right has it in its cache")
        pair.left.power_off()
        poll(pair.right.active, 20.0, "right is active")
        push.goes_on(pair.right)
        mark = ct_marks(load(pair.right.config).services)["echo"]
        entry = pair.house.run("right", "/usr/sbin/conntrack", "-L", "-p", "tcp", "--mark", f"{mark}/{CT_MASK}")
        assert f"dport={push.port()} " in entry, entry
        assert pair.right.say("fail-over")["flipped"]
        poll(lambda: push.lines()[-1] == "error Connection reset by peer", 3.0, "the client is reset")


def test_the_servers_farewell_arrives(made: Made) -> None:
    """The server closed while no controller had the address: all that is still to come is its FIN."""
    with made() as pair:
        push = Push(pair, "quiet")
        pair.left.power_off()
        push.server.send_signal(signal.SIGUSR1)
        poll(pair.right.active, 20.0, "right is active")
        poll(lambda: push.lines()[-1] == "end", 8.0, "the client sees the end")


@pytest.mark.parametrize("conntrackd", [False, True], ids=["alone", "conntrackd"])
def test_there_and_back(made: Made, conntrackd: bool) -> None:
    """The first controller lost a link, not its memory: its entry of the connection is older than the connection."""
    with made(conntrackd=conntrackd) as pair:
        push = Push(pair, "ticking")
        pair.house.run("left", "/usr/sbin/ip", "link", "set", "cl0", "down")
        poll(pair.right.active, 20.0, "right is active")
        push.goes_on(pair.right)
        push.goes_on(pair.right)
        pair.house.run("left", "/usr/sbin/ip", "link", "set", "cl0", "up")
        poll(lambda: pair.left.active() and not pair.right.active(), 20.0, "left is active again")
        push.goes_on(pair.left)
