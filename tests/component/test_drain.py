"""A drain on the real kernel: open connections stay where they are, new ones go elsewhere, and how it ends."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.component.test_redirector import ROOT, SHAPES, Controller
from tests.lab.netns import House, poll

pytestmark = pytest.mark.component

# Asks again and again over one connection, with a pause that is written to its standard input; says who answered.
SESSION = """
import socket, sys, time
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, getattr(socket, sys.argv[3]))
s.settimeout(3)
s.connect((sys.argv[1], int(sys.argv[2])))
try:
    while True:
        s.sendall(b"who\\n")
        print(s.recv(2048).decode().split()[0], flush=True)
        time.sleep(0.1)
except OSError as error:
    print(error.strerror or error, flush=True)
"""


class Session:
    """A client that keeps one connection open."""

    def __init__(self, controller: Controller, service: str) -> None:
        protocol, address, port = SHAPES[service][:3]
        self.log = controller.directory / f"session-{service}.log"
        kind = "SOCK_STREAM" if protocol == "tcp" else "SOCK_DGRAM"
        argv = (sys.executable, "-c", SESSION, address, str(port), kind)
        self.process = controller.house.start("client", *argv, log=self.log)
        self.said(3)

    def said(self, more: int) -> set[str]:
        """The answers from now on, once there are so many."""
        start = len(self._lines())
        poll(lambda: len(self._lines()) >= start + more, 20.0, "the session goes on")
        return set(self._lines()[start:])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for(self, text: str) -> None:
        poll(lambda: text in self._lines(), 20.0, f"the session says {text!r}")

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    """The redirector, running."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with tempfile.TemporaryDirectory(prefix="cfo-drain-") as name, House() as house:
        Path(name).chmod(0o755)
        made = Controller(Path(name), house)
        made.start()
        yield made


def drain(controller: Controller, service: str, **more: object) -> dict[str, object]:
    return controller.say("drain", service, facts={"standby_ok": True}, manual=True, by="test", **more)


def over(controller: Controller, service: str) -> str:
    """The journal's words once the drain is over."""
    poll(lambda: controller.status()[service]["drain"] is None, 20.0, "the drain is over")
    entry = controller.journal()[-1]
    assert (entry["service"], entry["verb"]) == (service, "drained")
    return str(entry["text"])


@pytest.mark.parametrize("service", ["tcp4", "tcp6", "tcp4-snat", "tcp4-port"])
def test_open_connections_finish_where_they_are(controller: Controller, service: str) -> None:
    """A session goes on with the primary while new clients go to the standby; it ends, and so does the drain."""
    session = Session(controller, service)
    reply = drain(controller, service)
    assert (reply["flipped"], reply["left"]) == (True, 1)
    assert controller.ask(service).startswith("standby")
    assert session.said(5) == {"primary"}
    status = controller.status()[service]
    assert (status["target"], status["kernel"], status["drain"]["old"]) == ("standby", "standby", "primary")
    assert status["drain"]["left"] == 1
    assert "1 open connections finish on the primary" in status["text"]
    session.end()
    assert over(controller, service) == "no connection is left on the primary"


def test_a_flow_of_datagrams_finishes_where_it_is(controller: Controller) -> None:
    """UDP has no end: a client that goes on from one port stays, until the deadline sends its next datagram on."""
    session = Session(controller, "udp4")
    assert drain(controller, "udp4")["flipped"]
    assert controller.ask("udp4").startswith("standby")
    assert session.said(5) == {"primary"}
    assert "cut in 0 s" in str(drain(controller, "udp4", deadline=0)["text"])
    session.wait_for("standby")
    assert "open connections were cut" in over(controller, "udp4")


def test_the_deadline_cuts_what_is_left(controller: Controller) -> None:
    """At the deadline the sessions that are left are reset as in a fail-over, and the journal says how many."""
    session = Session(controller, "tcp4")
    assert drain(controller, "tcp4", deadline=3600)["left"] == 1
    assert session.said(3) == {"primary"}
    assert "already on the standby" in str(drain(controller, "tcp4", deadline=0)["text"])
    session.wait_for("Connection reset by peer")
    assert over(controller, "tcp4") == "the deadline is over: 1 open connections were cut"
    assert controller.ask("tcp4").startswith("standby")


def test_a_restart_keeps_the_drain(controller: Controller) -> None:
    """Killed and started in the middle: the session goes on, the deadline still stands, and nothing flips."""
    session = Session(controller, "tcp4")
    drain(controller, "tcp4", deadline=3600)
    before = controller.status()["tcp4"]["drain"]
    controller.kill()
    controller.start()
    status = controller.status()["tcp4"]
    assert status["drain"] == before
    assert (status["target"], status["kernel"]) == ("standby", "standby")
    assert session.said(5) == {"primary"}
    assert [entry["verb"] for entry in controller.journal()] == ["drain"]


@pytest.mark.parametrize("service", ["tcp4", "tcp6", "tcp4-snat", "tcp4-port", "udp4"])
def test_connections_elsewhere_are_listed(controller: Controller, service: str) -> None:
    """Those of the old server in a drain, never those of the target; over a restart too; until they end."""

    def elsewhere() -> list[str]:
        reply = controller.say("elsewhere", service, after="")
        assert (reply["after"], reply["more"]) == ("", False)
        return [str(one) for one in reply["clients"]]

    session = Session(controller, service)
    assert elsewhere() == []
    drain(controller, service)
    assert controller.ask(service).startswith("standby")
    [client] = elsewhere()
    assert session.said(3) == {"primary"}
    controller.kill()
    controller.start()
    assert elsewhere() == [client]
    if service != "udp4":  # UDP has no end
        session.end()
        poll(lambda: elsewhere() == [], 20.0, "the session ended")
