"""What a redirector makes of the other controller's state: who knows more, who is older, garbage, disagreement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import control
from check_failover.listening import Server
from check_failover.model import CheckSpec, Endpoint, Facts, Hold, Service, Target
from check_failover.redirector.order import Order, after
from check_failover.redirector.state import ServiceState, outranks, parsed
from tests.component.test_redirector import ROOT, Controller
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, House, poll

pytestmark = pytest.mark.component
BOTH = ServiceState(Target.STANDBY, 1e9, generation=3, changes=7)


@pytest.mark.parametrize(
    ("theirs", "more"),
    [
        (BOTH, False),
        (ServiceState(Target.PRIMARY, generation=4, changes=0), True),
        (ServiceState(Target.PRIMARY, generation=2, changes=99), False),
        (ServiceState(Target.STANDBY, 1e9, Hold("me", 1e9, "work"), generation=3, changes=8), True),
        (ServiceState(Target.STANDBY, 1e9, generation=3, changes=6), False),
        (ServiceState(Target.PRIMARY, 1e9, generation=3, changes=8), False),  # the same one, and another place
    ],
)
def test_who_knows_more(theirs: ServiceState, more: bool) -> None:
    """The generation first, then changes; never because of a target that nobody ordered."""
    assert outranks(theirs, BOTH) is more


def test_both_changed_something_at_once() -> None:
    """Exactly one of the two follows, whichever asks."""
    one = ServiceState(hold=Hold("a", 1.0, ""), changes=1)
    other = ServiceState(hold=Hold("b", 1.0, ""), changes=1)
    assert outranks(one, other) is not outranks(other, one)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Controller]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.chmod(0o755)
    with House() as house:
        made = Controller(tmp_path, house, only=("tcp4", "udp4"))
        made.start()
        yield made


def hears(controller: Controller, **state: Any) -> Any:
    return controller.say("follow", state={"tcp4": {"target": "primary", **state}})["followed"]


def test_what_it_hears(controller: Controller) -> None:
    """A newer state moves rule, file and status at once, journalled; an older one and garbage move nothing."""
    assert hears(controller, target="standby", generation=1, changes=1, since=1e9) == ["tcp4"]
    status = controller.status()["tcp4"]
    assert (status["target"], status["kernel"], status["since"]) == ("standby", "standby", 1e9)
    assert controller.ask("tcp4").startswith("standby")
    assert controller.status()["udp4"]["kernel"] == "primary"
    assert "the other controller did" in controller.journal()[-1]["line"]
    assert hears(controller, generation=0, changes=9) == []
    assert hears(controller, target="standby", generation=1, changes=2, hold={"by": "me", "at": 1.0, "reason": "r"})
    assert controller.status()["tcp4"]["hold"]["by"] == "me"
    for garbage in (
        None,
        [],
        {"tcp4": {}},
        {"tcp4": {"target": "both"}},
        {"tcp4": {"target": "primary", "generation": "x"}},
    ):
        with pytest.raises(control.ControlError, match="not the state of a redirector"):
            controller.say("follow", state=garbage)
    assert controller.say("follow", state={"unknown": {"target": "standby", "generation": 9}})["followed"] == []
    controller.kill()
    controller.start()
    status = controller.status()["tcp4"]
    assert (status["target"], status["kernel"], status["hold"]["by"]) == ("standby", "standby", "me")
    assert len(controller.journal()) == 1


def test_disagreement_is_told(controller: Controller) -> None:
    """Another target of the same generation: nothing moves, CRITICAL; a flip by hand decides, and it is forgotten."""
    assert hears(controller, target="standby", changes=5) == []
    status = controller.status()["tcp4"]
    assert (status["kernel"], status["state"]) == ("primary", 2)
    assert "flip once by hand" in status["problem"]
    assert controller.flip("tcp4")["flipped"]
    assert hears(controller, target="standby", changes=5) == []
    poll(lambda: controller.status()["tcp4"]["problem"] is None, 10.0, "they agree")


class Sniffer:
    """In the sniffer's place: both servers' last probes, and the outcome of the next one."""

    def __init__(self, controller: Controller) -> None:
        self.passed, self.asked = False, 0
        socket = controller.directory / "run" / "sniffer.sock"
        self.server = Server(socket, frozenset({"status", "probe"}), self._answer, lambda _verb, _peer: None)
        self.server.start()

    def _answer(self, message: dict[str, Any], _peer: object) -> dict[str, Any]:
        if message["verb"] == "status":
            known = {"standby": {"ok": False}, "primary": {"ok": None}}
            return {"services": {"tcp4": known, "udp4": known}}
        self.asked += 1
        return {"passed": self.passed}


def test_it_does_not_follow_to_a_dead_server(controller: Controller) -> None:
    """A server that failed here is probed first. While it fails nothing moves, CRITICAL; then it follows."""
    sniffer = Sniffer(controller)
    try:
        assert hears(controller, target="standby", generation=5, since=1e9) == []
        status = controller.status()["tcp4"]
        assert (status["kernel"], status["state"], sniffer.asked) == ("primary", 2, 1)
        assert "which fails a probe from here: not followed" in status["problem"]
        sniffer.passed = True
        assert hears(controller, target="standby", generation=5, since=1e9) == ["tcp4"]
        status = controller.status()["tcp4"]
        assert (status["kernel"], status["problem"]) == ("standby", None)
        assert hears(controller, target="primary", generation=6, since=1e9) == ["tcp4"]
        assert sniffer.asked == 2, "of a server that did not fail here it believes the other controller"
    finally:
        sniffer.server.close()


def test_the_later_flip_counts() -> None:
    """Not the side with more flips: one controller flipped twice an hour ago, the other one once just now."""
    service, now = any_service(), 1e9
    start = ServiceState()
    twice = after(
        after(start, Order(service, "fail-over", "", Facts(), manual=True), now), order_back(service), now + 9
    )
    once = after(start, Order(service, "fail-over", "", Facts(), manual=True), now + 3600)
    assert outranks(once, twice)
    assert not outranks(twice, once)
    behind = after(once, order_back(service), now)  # its clock is an hour behind, and it followed before
    assert outranks(behind, once)


def order_back(service: Service) -> Order:
    return Order(service, "fail-back", "", Facts(), manual=True)


def any_service() -> Service:
    address, *servers = (Endpoint(one, 389) for one in (SERVICE_ADDRESS, PRIMARY, STANDBY))
    return Service("s", "h", "tcp", address, *servers, CheckSpec("tcp"))


def test_an_earlier_versions_state() -> None:
    """It has no generation: that of its last flip's time."""
    assert parsed({"target": "standby", "since": 1e9, "flips": 7}).generation == 1e12
    assert parsed({"target": "primary"}).generation == 0
