"""What the kernel has for a service beside its target, computed from the state: withheld refusals, the dead server.

On the real kernel, with restarts of the redirector in between.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import listening, rights
from check_failover.peer import Peer
from tests.component.test_drain import Session
from tests.component.test_redirector import FACTS, ROOT, SHAPES, Controller
from tests.lab import kernel
from tests.lab.handshake import QUIET
from tests.lab.netns import CLIENT, SERVICE_ADDRESS, House, poll, python_argv

pytestmark = pytest.mark.component
BOTH = {"primary", "standby"}
BLIND = {**FACTS, "blind": True}


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    """The redirector, running, with two services."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with tempfile.TemporaryDirectory(prefix="cfo-wiring-") as name, House() as house:
        Path(name).chmod(0o755)
        made = Controller(Path(name), house, only=("tcp4", "tcp6"))
        made.start()
        yield made


def elements(controller: Controller, name: str, service: str) -> set[str]:
    return kernel.marked(controller.nft(" ".join(kernel.TABLE)), name)[service]


def mark(controller: Controller, server: str = "primary") -> str:
    """The ct mark of tcp4's connections to that server, for nft."""
    (found,) = re.findall(r"(0x\w+) : jump packets_tcp4", controller.nft(" ".join(kernel.TABLE)))
    return hex(int(found, 16) | (server == "standby") << 20)


def withheld(controller: Controller) -> bool:
    refusing = elements(controller, "refusing", "tcp4")
    assert refusing in (set(), BOTH)
    return not refusing


def wait_withheld(controller: Controller, wanted: bool) -> None:
    """Within the few seconds that a reconciliation takes; the redirector's status says the same."""
    poll(lambda: withheld(controller) is wanted, 10.0, f"withheld: {wanted}")
    assert controller.status()["tcp4"]["withheld"] is wanted


def wait_nobody_dead(controller: Controller, service: str = "tcp4") -> None:
    poll(
        lambda: not elements(controller, "dead", service),
        10.0,
        "no server counts as dead",
    )
    assert controller.status()[service]["dead"] is None


@contextlib.contextmanager
def sniffer(controller: Controller) -> Iterator[None]:
    """One that has proven the primary: a fail-back is not refused."""

    def answer(message: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        well = {"ok": True, "passes": 9, "good_for": 99.0}
        services = {name: {"primary": well, "standby": well} for name in ("tcp4", "tcp6")}
        return {"services": services} if message["verb"] == "status" else {"passed": True}

    path = controller.directory / "run" / "sniffer.sock"
    server = listening.Server(path, rights.OF_SNIFFER, answer, lambda _verb, _peer: None)
    server.start()
    try:
        yield
    finally:
        server.close()


def crash(controller: Controller) -> None:
    """The primary's process ends: from now on its machine refuses new connections."""
    for process in controller.house._processes:
        if "primary" in process.args and "7001" in process.args:
            process.kill()
            process.wait()


def ctl(controller: Controller, *words: str) -> str:
    argv = python_argv("check_failover.admin.ctl", *words, "--config", str(controller.config))
    return controller.house.run("controller", *argv, check=False)


def restart(controller: Controller, *, reboot: bool = False) -> None:
    controller.kill()
    if reboot:
        controller.nft("flush ruleset")
    controller.start()


def test_an_order_that_moves_nothing_disarms_nothing(controller: Controller) -> None:
    """A fail-back on the primary, a refused fail-back, drain or order by hand: the next crash is still withheld."""
    crash(controller)
    assert controller.say("fail-back", manual=True)["reason"] == "already-there"
    assert controller.ask("tcp4", 0.5) == "timeout"
    assert controller.say("drain", facts={"standby_ok": False})["reason"] == "no-healthy-server"
    assert controller.say("fail-over", facts={"standby_ok": False}, manual=True)["reason"] == "no-healthy-server"
    controller.say("hold", reason="test")
    assert controller.say("drain", facts={"standby_ok": True}, manual=True)["reason"] == "hold"
    assert controller.ask("tcp4", 0.5) == "timeout"
    controller.say("release")
    assert controller.flip("tcp4")["flipped"]
    assert controller.say("fail-back", manual=True)["reason"] == "primary-not-probed"
    assert controller.flip("tcp4")["reason"] == "already-there"
    assert withheld(controller)


def test_a_draining_flip_arms_again(controller: Controller) -> None:
    """A refused fail-over tells clients the truth; a drain to the standby ends that, without a hard flip."""
    assert controller.say("fail-over", facts=BLIND)["reason"] == "blind"
    wait_withheld(controller, False)
    assert controller.say("drain", facts={"standby_ok": True}, manual=True)["flipped"]
    assert withheld(controller)


def test_a_standing_refusal_outlives_a_restart(controller: Controller) -> None:
    """Killed, or rebooted with its rules gone: clients hear the truth until the core says that all is well."""
    crash(controller)
    assert controller.say("fail-over", facts={**FACTS, "standby_ok": False})["reason"] == "no-healthy-server"
    assert controller.ask("tcp4", 2.0) == "Connection refused"
    for reboot in (False, True):
        restart(controller, reboot=reboot)
        assert controller.ask("tcp4", 2.0) == "Connection refused"
        assert controller.status()["tcp4"]["withheld"] is False
        assert controller.status()["tcp6"]["withheld"] is True
    why = "withholding is off, clients see refused connections: fail-over refused, no-healthy-server"
    assert f"\n  {why}\n" in ctl(controller, "status", "tcp4")
    assert "withholding" not in ctl(controller, "status", "tcp6")
    (told,) = [line for line in ctl(controller, "doctor").splitlines() if "withholding" in line]
    assert re.sub(" +", " ", told).startswith(f"warning tcp4 redirect: {why}")
    assert "no order pending" in controller.say("recovered")["text"]
    assert controller.ask("tcp4", 0.5) == "timeout"
    restart(controller)
    assert controller.ask("tcp4", 0.5) == "timeout"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({**FACTS, "probes_failed": 1}, "not-confirmed"),
        ({**FACTS, "requests": 6, "replies": 3}, "traffic-answered"),
    ],
)
def test_the_rescue_outlives_the_verdict(controller: Controller, facts: dict[str, object], reason: str) -> None:
    """A refusal that is not about the standby: refusals stay withheld, for the sniffer rescues each connection.

    A hold forbids the standby, so clients hear the truth for as long as it lasts.
    """
    crash(controller)
    assert controller.say("fail-over", facts=facts)["reason"] == reason
    assert controller.ask("tcp4", 0.5) == "timeout"
    restart(controller)
    assert controller.ask("tcp4", 0.5) == "timeout"
    assert controller.say("forget", client=CLIENT, port=40001)["forgotten"]
    controller.say("hold", reason="new disks")
    assert controller.ask("tcp4", 2.0) == "Connection refused"
    controller.say("release")
    assert controller.ask("tcp4", 0.5) == "timeout"
    fresh = {**FACTS, "standby_ok": False}
    assert controller.say("facts", facts=fresh)["reason"] == "no-healthy-server"
    assert controller.ask("tcp4", 2.0) == "Connection refused"
    assert controller.say("facts", facts=FACTS)["flipped"]
    assert withheld(controller)


def test_another_hand_in_the_sets(controller: Controller) -> None:
    """Emptied or half emptied, filled with a server that lives: put right within seconds."""
    both = f"{mark(controller)}, {mark(controller, 'standby')}"
    controller.nft(f"add element inet check_failover refusing {{ {both} }}")
    poll(lambda: withheld(controller), 10.0, "withheld again")
    controller.nft(f"add element inet check_failover refusing {{ {mark(controller)} }}")
    poll(lambda: elements(controller, "refusing", "tcp4") == set(), 10.0, "withheld again")
    controller.nft(f"add element inet check_failover dead {{ {mark(controller)} }}")
    wait_nobody_dead(controller)
    assert controller.ask("tcp4").startswith("primary")


def test_the_dead_are_swept_and_forgotten(controller: Controller) -> None:
    """After a flip the old server counts as dead until its connections are swept; a kill in between changes nothing."""
    session = Session(controller, "tcp4")
    assert "src=10.0.0.11 " in controller.house.run("controller", "/usr/sbin/conntrack", "-L", "-p", "tcp")
    assert controller.flip("tcp4")["flipped"]
    controller.kill()
    assert elements(controller, "dead", "tcp4") == {"primary"}, "it was swept before it was killed"
    session.wait_for("Connection reset by peer")
    controller.start()
    wait_nobody_dead(controller)
    assert "src=10.0.0.11 " not in controller.house.run("controller", "/usr/sbin/conntrack", "-L", "-p", "tcp")


@pytest.mark.parametrize("service", ["tcp4", "tcp6"])
def test_a_cut_leaves_nobody_dead(controller: Controller, service: str) -> None:
    """A fail-back that ends with a cut, after a restart: a drill's client is served by the standby afterwards."""
    client, manual = (
        SHAPES[service][5],
        {"facts": {"standby_ok": True}, "manual": True, "by": "test"},
    )
    assert controller.flip(service)["flipped"]
    session = Session(controller, service)
    with sniffer(controller):
        assert controller.say("fail-back", service, **manual, deadline=3600)["flipped"]
        restart(controller)
        assert elements(controller, "dead", service) == set()
        assert session.said(2) == {"standby"}
        controller.say("fail-back", service, **manual, deadline=0)
        session.wait_for("Connection reset by peer")
        poll(
            lambda: controller.status()[service]["drain"] is None,
            20.0,
            "the drain is over",
        )
        assert controller.journal()[-1]["text"] == "the deadline is over: 1 open connections were cut"
        wait_nobody_dead(controller, service)
        controller.say("drill", service, client=client, seconds=20)
        assert controller.ask(service).startswith("standby"), "the drill's client is reset"


def test_a_segment_far_ahead_ends_no_connection(controller: Controller) -> None:
    """What conntrack calls invalid is dropped: our own stack would reset the client's healthy connection for it."""
    controller.house.run("client", "/usr/sbin/nft", "-f", "-", input=QUIET)
    said = controller.house.run("client", *python_argv("tests.lab.ahead", SERVICE_ADDRESS, "7001", "30001"))
    assert said.splitlines() == [f"primary {CLIENT}"] * 2
