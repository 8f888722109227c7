"""Which server clients may have reached: on the disk before the first packet, over a kill, in a pair."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from check_failover import control, syncstate
from check_failover.reach import LEASE
from check_failover.syncstate import Phase, Running, SyncDirection, SyncState
from tests.component.test_drain import Session, drain
from tests.component.test_redirector import ROOT, Controller
from tests.lab.netns import CLIENT, House, poll

pytestmark = pytest.mark.component
OPEN = None


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A redirector with one service; ``change`` is done to its config before the start."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.chmod(0o755)
    with House() as house:

        def made(change: Callable[[str], str] = str) -> Controller:
            controller = Controller(tmp_path, house, only=("tcp4", "udp4"))
            controller.config.write_text(change(controller.config.read_text()))
            controller.start()
            return controller

        yield made


def records(status: dict[str, Any], *, ended: bool = True) -> list[tuple[str, str]]:
    """Server and reason of the records; without ``ended`` of those that are open."""
    return [(one["server"], one["why"]) for one in status["reached"] if ended or one["end"] is OPEN]


def on_disk(controller: Controller) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((controller.directory / "state" / "target" / "tcp4.json").read_text())
    return found


def reached(controller: Controller, *, ended: bool = True) -> list[tuple[str, str]]:
    return records(controller.status()["tcp4"], ended=ended)


def test_a_drain_and_a_kill(build: Any) -> None:
    """The old server is reached until the last connection is gone; a redirector that is killed knows it still."""
    controller = build()
    assert reached(controller) == [("primary", "serves")]
    session = Session(controller, "tcp4")
    assert drain(controller, "tcp4")["flipped"]
    now = [("primary", "drain"), ("standby", "serves")]
    assert sorted(records(on_disk(controller), ended=False)) == now
    controller.kill()
    controller.start()
    assert session.said(3) == {"primary"}
    assert sorted(reached(controller, ended=False)) == now
    session.end()
    poll(lambda: reached(controller, ended=False) == [("standby", "serves")], 20.0, "the drain is over")
    assert records(on_disk(controller)) == reached(controller)
    drained = next(one for one in on_disk(controller)["reached"] if one["why"] == "drain")
    assert drained["begin"] < drained["end"] <= time.time()


def test_rescues_and_a_drill(build: Any) -> None:
    """A lease is on the disk when the sniffer is answered, not for what only reads; a drill's end is known."""
    controller = build()
    assert not controller.say("forget", client=CLIENT, port=40000, reads=True).get("reason")
    assert reached(controller) == [("primary", "serves")]
    asked = time.time()
    assert not controller.say("forget", client=CLIENT, port=40000).get("reason")
    (lease,) = (one for one in on_disk(controller)["reached"] if one["why"] == "rescue")
    assert (lease["server"], lease["count"]) == ("standby", 1)
    assert asked <= lease["begin"] == pytest.approx(lease["end"] - LEASE)
    before = on_disk(controller)
    controller.say("forget", client=CLIENT, port=40001)
    assert on_disk(controller) == before  # a write to the disk is due every half minute only
    drill = controller.say("drill", client="198.51.100.99", seconds=300)
    (begun,) = (one for one in on_disk(controller)["reached"] if one["why"] == "drill")
    assert begun["end"] == pytest.approx(begun["begin"] + 300)
    controller.say("drill-end", id=drill["id"])
    (ended,) = (one for one in on_disk(controller)["reached"] if one["why"] == "drill")
    assert ended["end"] <= time.time()


def test_nothing_is_rescued_that_may_write_to_a_copy(build: Any) -> None:
    """The redirector does not rely on the sniffer for it."""
    controller = build(lambda text: text.replace("port = 7001\n", 'port = 7001\nwrites = "primary"\n'))
    said = controller.say("forget", client=CLIENT, port=40000)
    assert (said["forgotten"], said["reason"]) == (False, "the client may write")
    assert not controller.say("forget", client=CLIENT, port=40000, reads=True).get("reason")
    assert reached(controller) == [("primary", "serves")]


def test_the_other_controller(build: Any) -> None:
    """While it is silent either server may be reached; what it did counts here, and its drain ends when it says so."""
    sync = 'hold_down = 0\n[service.sync]\nprimary = "root@p"\nfrom = "/srv/x"\n'
    controller = build(
        lambda text: text.replace("[controller]\n", '[controller]\npeer = "root@peer"\n').replace(
            "hold_down = 0\n", sync, 1
        )
    )
    silent = {("primary", "peer-silent"), ("standby", "peer-silent")}
    assert controller.status()["tcp4"]["peer_unsure"]  # from the start: it may have flipped while this one was away
    poll(lambda: silent <= set(reached(controller, ended=False)), 25.0, "the other controller is missed")
    now = time.time()
    state = {"target": "standby", "since": now, "flips": 1, "changes": 1, "drain": {"old": "primary", "at": now}}
    theirs = [
        {"server": "primary", "why": "serves", "begin": 0.0, "end": now},
        {"server": "standby", "why": "serves", "begin": now},
        {"server": "primary", "why": "drain", "begin": now},
    ]

    def hear(until: float | None = None, **more: Any) -> None:
        said = {"tcp4": {**state, "reached": theirs, **more}, "udp4": {"target": "primary"}}
        heard = {"heard": {"tcp4": until}}
        control.ask(controller.socket, {"verb": "follow", "state": said, "sync": {"tcp4": {}}, **heard})

    hear()
    assert ("standby", "serves") in reached(controller, ended=False)
    assert ("primary", "drain") in reached(controller)  # without a connection it may be over already
    assert not silent & set(reached(controller, ended=False))
    assert not controller.status()["tcp4"]["peer_unsure"]

    def there_only() -> bool:
        hear()
        return set(reached(controller, ended=False)) == {("primary", "peer"), ("standby", "serves")}

    poll(there_only, 20.0, "the drain is over here and goes on there")
    theirs[2]["end"] = time.time()
    hear(drain=None, changes=2)
    assert reached(controller, ended=False) == [("standby", "serves")]
    before = on_disk(controller)
    hear(drain=None, changes=2)
    assert on_disk(controller) == before

    place = controller.directory / "state" / "sync"
    place.mkdir(exist_ok=True)
    running = Running(os.getpid(), now, SyncDirection.FORWARD, Phase.SWITCH, now + 600)
    (place / "tcp4.json").write_text(syncstate.dump(SyncState(running=running)))
    with (place / "tcp4.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for word, unsure in enumerate((True, True, True, False)):  # the last two are of a controller that knows it
            hear(drain=None, changes=2, until=None if word == 0 else now + 600 if word > 1 else now)
            assert controller.status()["tcp4"]["peer_unsure"] is unsure, word
    assert not controller.status()["tcp4"]["peer_unsure"]

    hear(drain=None, changes=2)
    heard = time.time()
    poll(lambda: controller.status()["tcp4"]["peer_unsure"], 6.0, "it says nothing for some seconds")
    assert reached(controller, ended=False) == [("standby", "serves")]
    controller.kill()
    controller.start()
    poll(lambda: silent <= set(reached(controller, ended=False)), 25.0, "the other controller is missed again")
    assert not controller.status()["tcp4"]["peer_unsure"]
    begun = max(one["begin"] for one in on_disk(controller)["reached"] if one["why"] == "peer-silent")
    assert begun == pytest.approx(heard, abs=1.0)  # not since this process started
