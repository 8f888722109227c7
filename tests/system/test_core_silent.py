"""A core that is alive and does not order: the sniffer orders in its place, unless a person forbade it in the core."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.load import Load
from tests.lab.nagios import Nagios
from tests.lab.site import HOST, Site

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]
MakeSilent = Callable[..., tuple[Site, Nagios]]
DEADLINE = 5.0  # the default of core_deadline
NOTE = "the core did not order within 5 s: does its event handler run? failoverctl doctor"


@pytest.fixture
def silent(make_site: MakeSite, make_load: MakeLoad) -> MakeSilent:
    """A site under load, and its core."""

    def make(**settings: Any) -> tuple[Site, Nagios]:
        site = make_site(kannel=False, **settings)
        make_load(site)
        assert isinstance(site.core, Nagios)
        return site, site.core

    return make


def typo(objects: str) -> str:
    return objects.replace("eventhandlers/failover_event", "eventhandlers/failover_evnt")


def status_dat_says(site: Site, core: Nagios, field: str, value: str) -> None:
    site.poll(lambda: core.services()["ldap primary"].get(field) == value, 15.0, f"status.dat has {field}={value}")


def never_moved(site: Site, seconds: float) -> None:
    """Poll for as long as a wrong order would need."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert site.status()["target"] == "primary", site.journal("fail-over")
        time.sleep(0.1)


def test_a_typo_in_the_handlers_command(silent: MakeSilent) -> None:
    """Nagios judges and cannot run the handler: clients are served after the deadline, and the reason is reported."""
    site, core = silent(objects=typo)
    at = site.fault("crash")
    site.poll(lambda: site.status()["kernel"] == "standby", 20.0, "the standby serves")
    assert DEADLINE <= time.monotonic() - at <= DEADLINE + 2.0
    site.wait_target("standby")
    (flip,) = site.journal("fail-over")
    assert flip["by"] == "sniffer (the core is silent)"
    assert flip["text"].endswith(f"; {NOTE}")
    core.wait("ldap redirect", 1, text=NOTE)


@pytest.mark.parametrize(("off", "on"), [
    (f"DISABLE_SVC_EVENT_HANDLER;{HOST};ldap primary", f"ENABLE_SVC_EVENT_HANDLER;{HOST};ldap primary"),
    ("DISABLE_EVENT_HANDLERS", "ENABLE_EVENT_HANDLERS"),
])  # fmt: skip
def test_handlers_that_a_person_switched_off(silent: MakeSilent, off: str, on: str) -> None:
    """Obeyed and reported, over a restart of either daemon too; switched on again, the fail-over follows."""
    site, core = silent()
    core.command(off)
    field = ("event_handler_enabled=0", "enable_event_handlers=0")[off == "DISABLE_EVENT_HANDLERS"]
    path = core.directory / "status.dat"
    site.poll(lambda: f"\t{field}\n" in path.read_text(), 15.0, field)
    site.fault("crash")
    core.wait("ldap redirect", 2, 20.0, text="pending, handlers-off: event handlers are switched off in the core: the")
    assert {entry["reason"] for entry in site.journal("fail-over")} == {"handlers-off"}
    for daemon in ("redirector", "sniffer"):
        site.stop(daemon)
        site.start(daemon)
    never_moved(site, DEADLINE + 4.0)
    assert site.status()["pending"] == "handlers-off"
    core.command(on)
    site.wait_target("standby", 30.0)


def test_a_downtime_inhibits(silent: MakeSilent) -> None:
    """The handler cannot be run; the downtime is known all the same, and its end is the fail-over's begin."""
    site, core = silent(objects=typo)
    now = int(time.time())
    core.command(f"SCHEDULE_SVC_DOWNTIME;{HOST};ldap primary;{now - 5};{now + 600};1;0;600;boss;disk swap")
    status_dat_says(site, core, "scheduled_downtime_depth", "1")
    site.fault("crash")
    core.wait("ldap redirect", 2, 20.0, text="in downtime, flips inhibited")
    assert {entry["reason"] for entry in site.journal("fail-over")} == {"downtime"}
    never_moved(site, DEADLINE + 4.0)
    core.command(f"DEL_DOWNTIME_BY_HOST_NAME;{HOST};ldap primary")
    site.wait_target("standby", 30.0)
    assert site.journal("fail-over")[-1]["by"] == "sniffer (the core allows it now)"
