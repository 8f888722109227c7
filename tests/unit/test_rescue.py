"""The rescue's judgement: which first packets it asks the redirector about, and when it lets them be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from check_failover.config import load
from check_failover.model import Policy, Target
from check_failover.sniffer import rescue as module
from check_failover.sniffer.rescue import FRESH, RATE, Rescue
from check_failover.sniffer.stage1.packet import ACK, RST
from tests.lab.netns import poll
from tests.unit import packets as made
from tests.unit.packets import Talk, datagram, learn
from tests.unit.test_monitor import STANDBY, Scene, refuses

CONFIG = """
[controller]
client_interface = "cl0"
redirect = "{redirect}"
[monitoring]
command_file = "/tmp/none"
[[service]]
name = "ldap"
host = "h"
protocol = "tcp"
address = "192.0.2.10"
port = 389
primary = "10.0.0.11"
standby = "10.0.0.12"
[service.check]
type = "tcp"
"""


class Desk:
    """A rescue whose redirector answers ``reply``; ``asked`` are the ports it was asked about."""

    def __init__(self, directory: Path, redirect: str = "nftables") -> None:
        path = directory / "config.toml"
        path.write_text(CONFIG.format(redirect=redirect))
        self.asked: list[int] = []
        self.reply: dict[str, Any] | None = {"forgotten": False}
        self.calls: list[Callable[[], None]] = []
        self.rescue = Rescue(load(path), self._ask, self.calls.append)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any] | None:
        self.asked.append(int(message["port"]))
        return self.reply

    def look(self, scene: Scene, asked: int) -> list[int]:
        """What it has been asked about after one more look, which is so many by then."""
        self.rescue.overdue(scene.monitor, scene.now)
        poll(lambda: len(self.asked) >= asked, 5.0, f"{asked} questions, not {len(self.asked)}")
        return self.asked

    def act(self, calls: int) -> None:
        """The loop's thread does what the pool's threads want done."""
        poll(lambda: len(self.calls) >= calls, 5.0, "the pool is done")
        while self.calls:
            self.calls.pop(0)()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Packets of the scene's clock are never too old for the real one."""
    monkeypatch.setattr(module, "REPLAY_AGE", float("inf"))
    return Desk(tmp_path)


def late(scene: Scene, port: int = 50000) -> Talk:
    talk = Talk(scene, port)
    talk.syn()
    return talk


def test_after_the_time_a_healthy_server_takes(desk: Desk) -> None:
    """100 ms where the way is short and known, SRTT + 4 RTTVAR where it is long, 250 ms while nothing is known."""
    for known, wait in ((None, 0.25), (0.002, 0.1), (0.3, 0.3)):
        scene = Scene()
        for number in range(40 if known else 0):
            Talk(scene, 30000 + number).connect(known or 0.0)
            scene.wait(0.01)
        scene.wait(1.0)
        desk.asked.clear()
        late(scene)
        scene.wait(wait - 0.005)
        assert desk.look(scene, 0) == []
        scene.wait(0.01)
        assert desk.look(scene, 1) == [50000]


def test_a_refusal_is_rescued_at_once(desk: Desk) -> None:
    """The withheld RST of this very SYN, not that of a former one."""
    scene = Scene()
    talk = late(scene)
    answer = talk.down(RST | ACK, 0)
    desk.rescue.refused(scene.monitor, answer._replace(ack=answer.ack + 1))
    assert desk.look(scene, 0) == []
    desk.rescue.refused(scene.monitor, answer)
    assert desk.look(scene, 1) == [50000]


def test_each_is_tried_once(desk: Desk) -> None:
    """Also when the redirector says that it has been answered meanwhile: then it stays with its server."""
    scene = Scene()
    talk = late(scene)
    scene.wait(0.3)
    desk.look(scene, 1)
    scene.wait(0.1)
    assert desk.look(scene, 1) == [50000]
    assert desk.calls == []
    assert scene.traffic.flows.waits(next(packet for _, packet in scene.traffic.flows.unanswered(scene.now)))
    talk.accept()
    assert list(scene.traffic.flows.unanswered(scene.now)) == []


def test_a_server_that_speaks_to_others_is_waited_for(desk: Desk) -> None:
    """A lost SYN, a full accept queue: the others are answered."""
    scene = Scene()
    other = Talk(scene, 41000).connect()
    late(scene)
    for number in range(30):
        scene.wait(0.05)
        other.serve(made.search(number + 1), made.result(number + 1))
        assert desk.look(scene, 0) == []


def test_both_questions_of_one_port_go_together(desk: Desk) -> None:
    """glibc asks for A and AAAA from one port: one entry to forget, both sent on, however young the second one is."""
    scene = Scene(replace(made.service("dns", port=53, protocol="udp"), name="ldap"))
    desk.reply = {"forgotten": True}
    datagram(scene, 50000, made.dns(1))
    scene.wait(0.28)
    datagram(scene, 50000, made.dns(2))
    scene.wait(0.03)
    assert len(desk.look(scene, 1)) == 1
    desk.act(1)
    assert list(scene.traffic.flows.unanswered(scene.now)) == []
    assert scene.traffic.detect.since(0.0) == (2, 0)


def test_what_was_answered_on_the_way_stays(desk: Desk) -> None:
    """The answer came between the question and the sending; so did a flip, which has sent it already."""
    for port, meanwhile in ((50000, "answer"), (50001, "flip")):
        scene = Scene()
        desk.reply, desk.asked = {"forgotten": True}, []
        talk = late(scene, port)
        scene.wait(0.3)
        desk.look(scene, 1)
        if meanwhile == "answer":
            talk.accept()
        else:
            scene.monitor.flipped(Target.STANDBY, scene.now)
        desk.act(1)
        if meanwhile == "answer":
            talk.serve(made.search(1), made.result(1))
            assert scene.traffic.stats(scene.now).replies == 1


@pytest.mark.parametrize("reply", [{"forgotten": False, "reason": "hold"}, None])
def test_a_redirector_that_says_no_is_not_asked_for_each(
    desk: Desk, reply: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Held, stale, a running sync, or nobody there: asked again after a second, and logged once until it changes."""
    scene = Scene()
    desk.reply = reply
    late(scene, 50000)
    scene.wait(0.3)
    desk.look(scene, 1)
    desk.act(1)
    desk.rescue._paused["ldap"] = scene.now + module.PAUSE  # by the scene's clock
    late(scene, 50001)
    scene.wait(0.3)
    assert desk.look(scene, 1) == [50000]
    scene.wait(0.8)
    assert desk.look(scene, 2) == [50000, 50001]
    desk.act(1)
    assert caplog.text.count("nothing is rescued for now") == 1
    desk.reply = {"forgotten": False, "reason": "sync-running"}
    desk.rescue._paused.clear()
    late(scene, 50002)
    scene.wait(0.3)
    desk.look(scene, 3)
    desk.act(1)
    assert caplog.text.count("nothing is rescued for now") == 2


@pytest.mark.parametrize(
    "why", ["switched off", "shadow", "standby failed", "standby unknown", "too long ago", "on the standby", "blind"]
)
def test_never(desk: Desk, why: str) -> None:
    """Each of these alone forbids it."""
    policy = {"switched off": Policy(rescue=False), "shadow": Policy(shadow=True)}.get(why, Policy())
    scene = Scene(replace(made.service(), policy=policy))
    talk = late(scene)
    scene.wait(0.3)
    if why == "standby failed":
        scene.monitor.probed(STANDBY, refuses(), scene.now)
    elif why == "standby unknown":
        scene.monitor.health[STANDBY].ok = None
    elif why == "too long ago":
        scene.monitor.health[STANDBY].at = scene.now - FRESH
    elif why == "on the standby":
        scene.monitor.flipped(STANDBY, scene.now)
    elif why == "blind":
        scene.monitor.set_blind("cl0 is down", scene.now)
    assert desk.look(scene, 0) == []
    talk.refused()
    desk.rescue.refused(scene.monitor, talk.down(RST | ACK, 0)._replace(now=scene.now))
    assert desk.asked == []


QUERY, UPDATE, NOTIFY = made.dns(1), made.dns(2, code=5 << 11), made.dns(3, code=4 << 11)  # opcodes


@pytest.mark.parametrize(
    ("dialect", "protocol", "first", "writes", "asked"),
    [
        ("ldap", "tcp", [b""], "primary", 0),
        ("http", "tcp", [b""], "primary", 0),
        ("generic", "tcp", [b""], "primary", 0),
        ("dns", "tcp", [b""], "primary", 1),
        ("dns", "udp", [QUERY], "primary", 1),
        ("dns", "udp", [UPDATE], "primary", 0),
        ("dns", "udp", [NOTIFY], "primary", 0),
        ("dns", "udp", [QUERY, UPDATE], "primary", 0),
        ("generic", "udp", [QUERY], "primary", 0),
        ("ldap", "tcp", [b""], "replicated", 1),
        ("http", "tcp", [b""], "none", 1),
        ("dns", "udp", [UPDATE], "replicated", 1),
    ],
)
def test_a_client_that_may_write_waits_for_the_verdict(
    desk: Desk, dialect: str, protocol: str, first: list[bytes], writes: str, asked: int
) -> None:
    """Where the next sync overwrites what the standby was told, only what is known to read is rescued."""
    service = replace(made.service("tcp", protocol=protocol), dialect=dialect, writes=writes)
    scene = Scene(service)
    for payload in first:
        if protocol == "tcp":
            late(scene)
        else:
            datagram(scene, 50000, payload)
    scene.wait(0.35)
    assert desk.look(scene, asked) == [50000] * asked
    if protocol == "tcp" and not asked:
        desk.rescue.refused(scene.monitor, late(scene, 50001).down(RST | ACK, 0))
        assert desk.asked == []


def test_not_where_the_redirect_cannot(tmp_path: Path) -> None:
    """ipfilter has no way to send one connection elsewhere."""
    desk = Desk(tmp_path, "ipfilter")
    scene = Scene()
    late(scene)
    scene.wait(0.3)
    assert desk.look(scene, 0) == []


def test_at_most_so_many_a_second(desk: Desk) -> None:
    """The standby is not stampeded: a burst of fifty, then 500 a second."""
    scene = Scene()
    learn(scene)
    for number in range(200):
        late(scene, 50000 + number)
    scene.wait(0.3)
    desk.look(scene, int(RATE / 10))
    assert len(desk.look(scene, 0)) == RATE / 10
    scene.wait(0.05)
    desk.look(scene, int(RATE / 10 + 20))
    assert len(desk.asked) <= RATE / 10 + 26
