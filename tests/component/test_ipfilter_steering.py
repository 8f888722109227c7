"""Steering over the ipfilter redirect: fail over, fail back, restart, another hand. Real files, a simulated kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from check_failover.config import Config, Controller
from check_failover.model import CheckSpec, Endpoint, Facts, Policy, Service, Target
from check_failover.records import Activity
from check_failover.redirector import REDIRECTS, RedirectError
from check_failover.redirector.order import Order
from check_failover.redirector.steering import Steering
from tests.fixtures.ipfilter.standin import Kernel, serving

WEB = Service(
    name="web",
    host="www",
    protocol="udp",
    address=Endpoint("192.0.2.10", 80),
    primary=Endpoint("10.0.0.1", 8080),
    standby=Endpoint("10.0.0.2", 8081),
    check=CheckSpec("tcp"),
    policy=Policy(hold_down=0.0, fail_back_passes=1, fail_back_seconds=0.0),
)
SITE = "rdr em0 192.0.2.0/24 port 80 -> 10.0.9.9/32 port 80 tcp"
OLD = "rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1/32 port 8080 udp tag cfo.web"
NEW = "rdr em0 192.0.2.10/32 port 80 -> 10.0.0.2/32 port 8081 udp tag cfo.web"
DEAD = Facts(probes=2, probes_failed=2, requests=9, standby_ok=True)
OVER = Order(WEB, "fail-over", "test", DEAD)
BACK = Order(WEB, "fail-back", "test", Facts(), manual=True, primary_ok=True, primary_passes=9, primary_good_for=99.0)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    stand_in = Kernel(tmp_path / "bin", (SITE,))
    yield stand_in
    assert stand_in.refused == ""
    assert SITE in stand_in.rules


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


def _start(kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]], **more: Any) -> Steering:
    """What a start of failover-redirector does."""
    table = {"ipnat": str(kernel.path), "rules": str(tmp_path / "ipnat.rules"), **more}
    controller = Controller("ipfilter", ("em0",), tmp_path / "run", tmp_path / "state", ipfilter=table)
    config = Config(tmp_path / "config.toml", controller, (WEB,), {}, None)
    steering = Steering(config, REDIRECTS[config.controller.redirect](config), events.append)
    steering.restore()
    return steering


def _ours(kernel: Kernel) -> list[str]:
    return [rule for rule in kernel.rules if rule != SITE]


def test_over_back_and_over_a_restart(kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """The whole life: start on the primary, fail over, restart stays on the standby, a person fails back."""
    steering = _start(kernel, tmp_path, events)
    assert _ours(kernel) == [OLD]
    assert kernel.connect(WEB, "192.0.2.7", 1, answered=0) == "10.0.0.1 8080"
    entry = steering.order(OVER)
    assert (entry.flipped, entry.forgotten, entry.freed, entry.error) == (True, 1, 0, None)
    assert _ours(kernel) == [NEW]
    assert kernel.connect(WEB, "192.0.2.7", 1) == "10.0.0.2 8081"
    again = _start(kernel, tmp_path, events)
    assert again.targets() == {"web": Target.STANDBY}
    assert kernel.connect(WEB, "192.0.2.8", 1) == "10.0.0.2 8081"
    assert again.order(OVER).reason == "already-there"
    assert again.order(BACK).flipped is True
    assert _ours(kernel) == [OLD]
    status = again.statuses([BACK])["web"]
    assert (status.target, status.kernel, status.problem) == (Target.PRIMARY, Target.PRIMARY, None)
    assert status.activity == Activity(0, 0)
    assert [event["target"] for event in events if event["event"] == "flip"] == ["standby", "primary"]
    begin = next(number for number, state in enumerate(kernel.history) if OLD in state["rules"])
    assert all(serving(state["rules"], WEB) in (OLD, NEW) for state in kernel.history[begin:])


def test_the_debug_lines(
    kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """One for each order: the decision, the facts that came, what the redirector knew; refusals are warnings."""
    steering = _start(kernel, tmp_path, events)
    caplog.set_level("DEBUG", "check_failover")
    steering.order(replace(OVER, facts=replace(DEAD, standby_ok=False)))
    steering.order(OVER)
    steering.order(OVER)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert [line.split(": ")[2] for line in lines] == ["no-healthy-server", "flip", "already-there"]
    assert all(line.startswith("web: fail-over by test: ") for line in lines)
    assert "; facts: probes=2 probes_failed=2 requests=9 replies=0 standby_ok=False " in lines[0]
    assert "; here: target=primary " in lines[0]
    assert "; here: target=standby " in lines[2]
    assert [r.levelname for r in caplog.records if r.levelname != "DEBUG"] == ["WARNING", "INFO"]


def test_a_restart_after_a_reboot(kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """The kernel is empty, or has the rules of the file at boot: either way the standby serves."""
    _start(kernel, tmp_path, events).order(OVER)
    text = (tmp_path / "ipnat.rules").read_text()
    assert "-> 10.0.0.2 port 8081 udp tag cfo.web\n" in text
    assert "10.0.0.1" not in text
    for rules in ([SITE], [SITE, NEW]):
        kernel.rules = rules
        _start(kernel, tmp_path, events)
        assert _ours(kernel) == [NEW]


@pytest.mark.parametrize("rules", [[SITE], [SITE, OLD, NEW], [SITE, OLD]])
def test_another_hand_is_noticed_and_put_right(
    rules: list[str], kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    """Rules that were flushed, or replaced by an old file: ``heal`` brings the right one back and writes it down."""
    steering = _start(kernel, tmp_path, events)
    steering.order(OVER)
    kernel.rules = rules
    steering.reconcile()
    assert _ours(kernel) == [NEW]
    assert steering.journal.read(1)[0].verb == "restore"
    calls = len(kernel.history)
    steering.reconcile()
    assert len(kernel.history) == calls + 1, "nothing is wrong: one look"


def test_a_failed_flip_leaves_all_as_it_was(kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """Kernel, state and file at boot agree on the primary; the error is told; the next order succeeds."""
    steering = _start(kernel, tmp_path, events)
    kernel.fault("-r -p -f -", "say", exit=1, err="/dev/ipnat: open: Permission denied\n", always=True)
    entry = steering.order(OVER)
    assert entry.flipped is False
    assert "no permission on the device" in entry.error
    assert steering.targets() == {"web": Target.PRIMARY}
    assert serving(kernel.rules, WEB) == OLD
    assert "10.0.0.2" not in (tmp_path / "ipnat.rules").read_text()
    steering.reconcile()
    assert serving(kernel.rules, WEB) == OLD
    kernel.heal()
    assert steering.order(OVER).flipped is True
    assert _ours(kernel) == [NEW]


def test_a_flip_that_fails_once_is_made_all_the_same(
    kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    """A second attempt by the other way, and clients are freed by it as well."""
    steering = _start(kernel, tmp_path, events)
    kernel.connect(WEB, "192.0.2.7", 1, answered=0)
    kernel.fault("-r -p -f -", "say", exit=1, err="a fault that passes\n")
    entry = steering.order(OVER)
    assert (entry.flipped, entry.forgotten) == (True, 1)
    assert _ours(kernel) == [NEW]


def test_a_drain(kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """Planned: open flows stay and are counted, new ones go to the standby; nothing is forgotten, freed or cut."""
    steering = _start(kernel, tmp_path, events)
    kernel.connect(WEB, "192.0.2.7", 1)
    order = Order(WEB, "drain", "test", DEAD, manual=True, drain=True)
    with pytest.raises(RedirectError, match="drain without a deadline"):
        steering.order(replace(order, deadline=60.0))
    entry = steering.order(order)
    assert (entry.flipped, entry.forgotten, entry.freed) == (True, None, None)
    assert entry.left == steering.statuses([BACK])["web"].drain.left == 1
    assert steering.drains.advance(WEB) is None
    over = steering.drains.advance(WEB, old_failed=True)
    assert over is not None
    assert over.text == "the primary fails its probes: 1 open connections stay with it"
    assert steering.statuses([BACK])["web"].drain is None
    assert kernel.connect(WEB, "192.0.2.7", 1) == "10.0.0.1 8080"
    assert kernel.connect(WEB, "192.0.2.8", 1) == "10.0.0.2 8081"


def test_a_file_that_cannot_be_written_is_in_the_journal(
    kernel: Kernel, tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    """The flip stands, and who reads its line knows what the next boot would do."""
    steering = _start(kernel, tmp_path, events, rules=str(tmp_path / "missing" / "ipnat.rules"))
    entry = steering.order(OVER)
    assert entry.flipped is True
    assert entry.error.startswith("freed: ")
    assert "after a reboot the redirect would be the old one" in entry.error
    assert _ours(kernel) == [NEW]
