"""The sniffer's loop towards the redirector: its own orders and their end, and events that make no sense."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import control, listening, rights
from check_failover.config import load
from check_failover.model import Detector, Probe, Suspicion, Target
from check_failover.peer import Peer
from check_failover.sniffer.loop import Loop
from check_failover.sniffer.monitor import Condition
from tests.lab.netns import poll

CONFIG = """
[controller]
run_dir = "{0}"
state_dir = "{0}"
[monitoring]
command_file = "{0}/nagios.cmd"
[[service]]
name = "ldap"
host = "h"
protocol = "tcp"
address = "192.0.2.10"
port = 389
primary = "127.0.0.1:9"
standby = "127.0.0.2:9"
[service.check]
type = "tcp"
"""
PASSED, FAILED = Probe(True, 0.001, "connected"), Probe(False, 0.001, "connection refused", refused=True)


class Redirector:
    """A redirector's socket that notes what it is asked. ``greetings``: of each subscription, the last one for ever."""

    def __init__(self, path: Path, *greetings: control.Message) -> None:
        self.asked: list[control.Message] = []
        self._greetings = list(greetings) or [{"targets": {}}]
        self.server = listening.Server(path, rights.OF_REDIRECTOR, self._handle, lambda _v, _p: None, self._greet)
        self.server.start()

    def _handle(self, message: control.Message, _peer: Peer) -> control.Message:
        self.asked.append(message)
        return {}

    def _greet(self) -> control.Message:
        return self._greetings.pop(0) if len(self._greetings) > 1 else self._greetings[0]

    def verbs(self) -> list[Any]:
        return [message["verb"] for message in self.asked]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(tmp_path))
    made = Loop(load(path))
    yield made
    made.stop()
    made.close()


def test_an_order_of_our_own_ends_with_its_fault(loop: Loop, tmp_path: Path) -> None:
    """The core is away, both servers fail, the order stays pending; then the primary is well again: nobody else would
    take it back, and the next fault would find it, whatever the core says by then."""
    redirector = Redirector(tmp_path / "redirector.sock")
    monitor, now = loop.monitors["ldap"], time.monotonic()
    monitor.suspect(Suspicion("ldap", Detector.REFUSED, now, "connection refused"), now)
    for target in (Target.PRIMARY, Target.PRIMARY, Target.STANDBY):
        monitor.probed(target, FAILED, now)
    assert monitor.failed
    poll(lambda: not loop.actions.outbox.reachable, 5.0, "nobody takes the result")
    loop.link.order_if_core_is_silent(monitor, now, reachable=False)
    poll(lambda: redirector.verbs() == ["fail-over"], 5.0, "our own order")
    monitor.tick(now + 2.0)
    monitor.probed(Target.PRIMARY, PASSED, now + 2.0)
    assert monitor.condition is Condition.OK
    for moment in (2.0, 3.0):
        loop.link.order_if_core_is_silent(monitor, now + moment, reachable=False)
    poll(lambda: redirector.verbs() == ["fail-over", "recovered"], 5.0, "it is taken back, once")
    redirector.server.close()


def test_events_that_make_no_sense_are_not_the_end(loop: Loop, tmp_path: Path) -> None:
    """A redirector of another version: who listens to it begins anew, and hears of the next flip."""
    redirector = Redirector(tmp_path / "redirector.sock", {"targets": {"ldap": "elsewhere"}}, {"targets": {}})
    loop.link.start()
    event = {"event": "flip", "service": "ldap", "target": "standby"}

    def moved() -> bool:
        redirector.server.publish(event)
        with contextlib.suppress(BlockingIOError):  # nothing to wake up for
            loop._drain_wake()
        return loop.monitors["ldap"].target is Target.STANDBY

    poll(moved, 10.0, "the flip is heard of")
    redirector.server.close()


def test_only_services_with_something_to_look_at_are_looked_at(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its probes and its results, an idle service is left alone; what happens to it is looked at at once."""
    ticks: list[float] = []
    monitor, now = loop.monitors["ldap"], time.monotonic()
    tick = monitor.tick
    monkeypatch.setattr(monitor, "tick", lambda at: (ticks.append(at), tick(at)))
    loop._look(now)
    monitor.probed(Target.STANDBY, PASSED, now)
    loop._touched.add("ldap")
    loop._look(now)
    assert len(ticks) == 2
    for step in range(290):
        loop._look(now + step / 10)
    assert len(ticks) <= 12, "one every three seconds, as long as the probe was urgent"
    loop._look(now + 30.1)
    assert ticks[-1] == now + 30.1
    loop.call(lambda: None, "ldap")
    loop._drain_wake()
    loop._look(now + 31.0)
    assert ticks[-1] == now + 31.0
