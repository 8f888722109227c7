"""What the sniffer asks the core before it orders in its place, and what it does with the answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.config import load
from check_failover.decide import FAIL_OVER, Reason, Situation, decide
from check_failover.model import Detector, Facts, Policy, Service, Target
from check_failover.sniffer.redirector_link import RedirectorLink
from check_failover.transports import core_state
from check_failover.transports.core_state import CoreQuestion, CoreState
from tests.lab.netns import poll
from tests.unit.test_loop import CONFIG, Redirector

OTHER = "servicestatus {\n\thost_name=h\n\tservice_description=ldap primary 2\n\tevent_handler_enabled=0\n\t}\n\n"
BRACED = OTHER.replace("{", "{{").replace("}", "}}")
STATUS = (
    "########\ninfo {{\n\tcreated=1\n\t}}\n\nprogramstatus {{\n\tenable_event_handlers={handlers}\n\t}}\n\n"
    "hoststatus {{\n\thost_name=h\n\tscheduled_downtime_depth={host}\n\t}}\n\n" + BRACED
    + "servicestatus {{\n\thost_name=h\n\tservice_description=ldap primary\n\tplugin_output=a=b; {{\n"
    "\tevent_handler_enabled={own}\n\tscheduled_downtime_depth={downtime}\n\t}}\n\n"
)  # fmt: skip
ON = {"handlers": 1, "host": 0, "own": 1, "downtime": 0}


def service(directory: Path, more: str = "") -> tuple[Service, dict[str, object]]:
    """The config's service, and [monitoring] of a Nagios in that directory."""
    path = directory / "config.toml"
    path.write_text(CONFIG.format(directory).replace('host = "h"', f'host = "h"\n{more}'))
    (directory / "nagios.cfg").write_text(f"# status_file=/nowhere\nlog_file=x\nstatus_file = {directory}/status.dat\n")
    (directory / "status.dat").write_text(STATUS.format(**ON))
    config = load(path)
    return config.services[0], {**config.monitoring, "nagios_cfg": str(directory / "nagios.cfg")}


@pytest.mark.parametrize(("changed", "downtime", "off"), [
    ({}, False, False),
    ({"host": 2}, True, False),
    ({"downtime": 1}, True, False),
    ({"own": 0}, False, True),
    ({"handlers": 0}, False, True),
])  # fmt: skip
def test_what_status_dat_says(tmp_path: Path, changed: dict[str, int], downtime: bool, off: bool) -> None:
    """Downtimes of the service and of its host, handlers of the service and of all; no other service's."""
    one, options = service(tmp_path)
    (tmp_path / "status.dat").write_text(STATUS.format(**ON | changed))
    state = CoreQuestion(options).ask(one)
    assert state is not None
    assert (state.downtime, state.handlers_off) == (downtime, off)
    assert 0 <= state.age < 10


def test_the_primarys_own_host_counts(tmp_path: Path) -> None:
    """A downtime of ``primary_host`` is one of the service."""
    one, options = service(tmp_path, 'primary_host = "ldap1"')
    more = "hoststatus {\n\thost_name=ldap1\n\tscheduled_downtime_depth=1\n\t}\n\n"
    (tmp_path / "status.dat").write_text(STATUS.format(**ON) + more)
    state = CoreQuestion(options).ask(one)
    assert state is not None
    assert state.downtime


def test_what_is_not_known(tmp_path: Path) -> None:
    """No file, none of this service, damaged, of a core that is dead, no nagios.cfg, a core that cannot be asked."""
    one, options = service(tmp_path)
    question, path = CoreQuestion(options), tmp_path / "status.dat"
    assert question.ask(one) is not None
    for text in (
        "",
        OTHER,
        STATUS.format(**ON | {"downtime": "x"}),
        STATUS.format(**ON).replace("event_handler_e", "e"),
    ):
        path.write_text(text)
        assert question.ask(one) is None, text
    path.write_text(STATUS.format(**ON))
    os.utime(path, (time.time() - core_state.OLDEST - 1,) * 2)
    assert question.ask(one) is None
    path.unlink()
    assert question.ask(one) is None
    (tmp_path / "nagios.cfg").write_text("log_file=x\n")
    assert question.ask(one) is None
    assert CoreQuestion({"transport": "nsca"}).ask(one) is None


def test_a_file_system_that_hangs(tmp_path: Path) -> None:
    """The order does not wait longer than the limit, and one thread is all that hangs."""
    one, options = service(tmp_path)
    (tmp_path / "status.dat").unlink()
    os.mkfifo(tmp_path / "status.dat")  # a read of it hangs
    question, before, began = CoreQuestion(options), threading.active_count(), time.monotonic()
    assert [question.ask(one, 0.1) for _ in range(5)] == [None] * 5
    assert time.monotonic() - began < 2.0
    assert threading.active_count() == before + 1
    (tmp_path / "status.dat").open("w").close()


class Answers(CoreQuestion):
    """A question with a given answer."""

    def __init__(self, answer: CoreState | None) -> None:
        self.answer = answer

    def ask(self, service: Service, limit: float = 1.0) -> CoreState | None:
        return self.answer


FREE = CoreState(downtime=False, service_handler=True, handlers=True, age=1.0)
IN_DOWNTIME, OFF, ALL_OFF = (
    replace(FREE, downtime=True),
    replace(FREE, service_handler=False),
    replace(FREE, handlers=False),
)
NOTE = "the core did not order within 5 s: does its event handler run? failoverctl doctor"
FACTS = Facts(Detector.REFUSED, 2, 2, standby_ok=True)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[tuple[RedirectorLink, Service, Redirector]]:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(tmp_path))
    config, redirector = load(path), Redirector(tmp_path / "redirector.sock")
    made = RedirectorLink(config, None)  # type: ignore[arg-type]  # it does not listen here
    yield made, config.services[0], redirector
    made.close()
    redirector.server.close()


@pytest.mark.parametrize(("why", "answer", "note", "downtime", "off"), [
    ("the core is silent", None, NOTE, False, False),
    ("the core is silent", FREE, NOTE, False, False),
    ("the core is silent", IN_DOWNTIME, NOTE, True, False),
    ("the core is silent", OFF, None, False, True),
    ("the core is silent", ALL_OFF, None, False, True),
    ("the core is away", None, None, False, False),
    ("the core is away", OFF, None, False, True),
    ("the core allows it now", FREE, None, False, False),
])  # fmt: skip
def test_the_order_has_what_the_core_says(
    link: tuple[RedirectorLink, Service, Redirector], why: str, answer: CoreState | None, note: str | None,
    downtime: bool, off: bool,
) -> None:  # fmt: skip
    """Facts for the redirector, which decides; and why the core's own order is missing."""
    made, one, redirector = link
    made._core = Answers(answer)
    made._order(one, why, FACTS, 5.0)
    (asked,) = poll(lambda: redirector.asked, 5.0, "the order")
    assert (asked["verb"], asked["by"], asked.get("note")) == ("fail-over", f"sniffer ({why})", note)
    assert (asked["facts"]["downtime"], asked["facts"]["handlers_off"]) == (downtime, off)


@pytest.mark.parametrize("answer", [None, IN_DOWNTIME, OFF, ALL_OFF, replace(FREE, age=5.0)])
def test_what_the_core_forbade_stays_forbidden(
    link: tuple[RedirectorLink, Service, Redirector], answer: CoreState | None
) -> None:
    """Until the core says otherwise, by an answer that is younger than the refusal."""
    made, one, redirector = link
    made._core = Answers(answer)
    made._order(one, "the core allows it now", FACTS, 5.0)
    assert redirector.asked == []


def test_handlers_off_stop_all_but_a_person() -> None:
    """On either table that an order without a person meets, after hold, shadow, blindness and downtime."""
    here = Situation(Target.PRIMARY)
    assert decide(FAIL_OVER, FACTS, Policy(), here).flip
    off = replace(FACTS, handlers_off=True)
    assert decide(FAIL_OVER, off, Policy(), here).reason is Reason.HANDLERS_OFF
    assert decide(FAIL_OVER, off, Policy(), replace(here, manual=True)).flip
    assert decide(FAIL_OVER, replace(off, downtime=True), Policy(), here).reason is Reason.DOWNTIME


def test_a_withdrawal_is_repeated_until_the_redirector_has_it(tmp_path: Path) -> None:
    """The server recovers while the redirector restarts, which keeps pending orders: it hears of it all the same."""
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(tmp_path))
    config = load(path)
    made, one = RedirectorLink(config, None), config.services[0].name  # type: ignore[arg-type]
    assert made.watchdog.due(one, 100.0, failed=True, reachable=False), "it orders"
    made.withdraw(one, 101.0, well=True)
    made._asker.submit(int).result(5.0)  # it has asked, and nobody answered
    redirector = Redirector(tmp_path / "redirector.sock")
    made.withdraw(one, 101.1, well=True)  # too soon
    made.withdraw(one, 104.0, well=False)
    made.withdraw(one, 105.0, well=True)
    (asked,) = poll(lambda: redirector.asked, 5.0, "the withdrawal")
    assert asked["verb"] == "recovered"
    made._asker.submit(int).result(5.0)
    assert not made.watchdog.must_withdraw(one, 999.0, well=True), "once is enough"
    made.close()
    redirector.server.close()
