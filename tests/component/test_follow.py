"""What a redirector makes of the other controller's state: who knows more, who is older, garbage, disagreement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import control
from check_failover.model import Hold, Target
from check_failover.redirector.state import ServiceState, outranks
from tests.component.test_redirector import ROOT, Controller
from tests.lab.netns import House, poll

pytestmark = pytest.mark.component
BOTH = ServiceState(Target.STANDBY, 1e9, flips=3, changes=7)


@pytest.mark.parametrize(
    ("theirs", "more"),
    [
        (BOTH, False),
        (ServiceState(Target.PRIMARY, flips=4, changes=0), True),
        (ServiceState(Target.PRIMARY, flips=2, changes=99), False),
        (ServiceState(Target.STANDBY, 1e9, Hold("me", 1e9, "work"), flips=3, changes=8), True),
        (ServiceState(Target.STANDBY, 1e9, flips=3, changes=6), False),
        (ServiceState(Target.PRIMARY, 1e9, flips=3, changes=8), False),  # as many flips, and another place
    ],
)
def test_who_knows_more(theirs: ServiceState, more: bool) -> None:
    """Flips first, then changes; never because of a target that nobody ordered."""
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
    assert hears(controller, target="standby", flips=1, changes=1, since=1e9) == ["tcp4"]
    status = controller.status()["tcp4"]
    assert (status["target"], status["kernel"], status["since"]) == ("standby", "standby", 1e9)
    assert controller.ask("tcp4").startswith("standby")
    assert controller.status()["udp4"]["kernel"] == "primary"
    assert "the other controller did" in controller.journal()[-1]["line"]
    assert hears(controller, flips=0, changes=9) == []
    assert hears(controller, target="standby", flips=1, changes=2, hold={"by": "me", "at": 1.0, "reason": "r"})
    assert controller.status()["tcp4"]["hold"]["by"] == "me"
    for garbage in (
        None,
        [],
        {"tcp4": {}},
        {"tcp4": {"target": "both"}},
        {"tcp4": {"target": "primary", "flips": "x"}},
    ):
        with pytest.raises(control.ControlError, match="not the state of a redirector"):
            controller.say("follow", state=garbage)
    assert controller.say("follow", state={"unknown": {"target": "standby", "flips": 9}})["followed"] == []
    controller.kill()
    controller.start()
    status = controller.status()["tcp4"]
    assert (status["target"], status["kernel"], status["hold"]["by"]) == ("standby", "standby", "me")
    assert len(controller.journal()) == 1


def test_disagreement_is_told(controller: Controller) -> None:
    """Another target after as many flips: nothing moves, CRITICAL; a flip by hand decides, and it is forgotten."""
    assert hears(controller, target="standby", changes=5) == []
    status = controller.status()["tcp4"]
    assert (status["kernel"], status["state"]) == ("primary", 2)
    assert "flip once by hand" in status["problem"]
    assert controller.flip("tcp4")["flipped"]
    assert hears(controller, target="standby", changes=5) == []
    poll(lambda: controller.status()["tcp4"]["problem"] is None, 10.0, "they agree")
