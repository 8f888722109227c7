"""The main job with Icinga 2 as the core: from a dead primary to served clients and an SMS, and back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.lab.icinga import Icinga
from tests.lab.load import Load
from tests.lab.site import Site
from tests.system.story import served_and_told

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_from_fault_to_served_clients(make_site: MakeSite, make_load: MakeLoad, fault: str) -> None:
    """One flip by Icinga's order, served clients, states that tell the story, one SMS for each thing to tell."""
    site = make_site(core="icinga2")
    flip = served_and_told(site, make_load(site), fault)
    assert flip["by"] == "icinga2"


def test_away_restarted_and_back(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Icinga away when the verdict falls: the sniffer asks the redirector itself, and what happened is told later.

    The daemons start again on the standby, and Icinga too: nothing moves until a person processes OK for "fail-back".
    """
    site = make_site(core="icinga2", kannel=False)
    assert isinstance(site.core, Icinga)
    load = make_load(site)
    site.core.stop()
    site.fault("crash")
    site.wait_target("standby")
    assert "sniffer" in site.journal("fail-over")[-1]["by"]
    site.core.start()
    site.core.wait("ldap primary", 2)
    site.core.wait("ldap redirect", 1, text="on the standby")
    for name in ("redirector", "sniffer"):
        site.stop(name)
        site.start(name)
    assert site.status()["target"] == site.status()["kernel"] == "standby"
    site.core.submit("ldap fail-back", 0, "too early")
    site.poll(lambda: site.journal("fail-back"), 15.0, "the order reached the redirector")
    assert site.journal("fail-back")[-1]["reason"] == "primary-failed"
    site.core.wait("ldap fail-back", 3, text="primary-failed")
    assert site.status()["target"] == "standby"
    site.heal("crash")
    site.core.wait("ldap fail-back", 1, 20.0, text="ready to fail back")
    since = time.monotonic()
    site.core.submit("ldap fail-back", 0, "go back, says the night shift")
    site.wait_target("primary")
    site.core.wait("ldap fail-back", 0, text="nothing to fail back")
    site.poll(lambda: load.answered_by("primary", since), 10.0, "an answer from the primary")
    moves = [(entry["verb"], entry["by"]) for entry in site.journal() if entry.get("flipped")]
    assert moves[-1] == ("fail-back", "icinga2")
    assert len(moves) == 2


def test_drill_downtime_and_stale(make_site: MakeSite, make_load: MakeLoad) -> None:
    """A drill pages nobody; a downtime drains where the policy says so; without news "primary" is UNKNOWN."""
    site = make_site(core="icinga2", service='test_client = "192.0.2.250"', policy='downtime = "drain"')
    assert isinstance(site.core, Icinga)
    make_load(site)
    site.core.wait("ldap primary", 0, 30.0)
    assert "ldap: drill passed" in site.ctl("drill", "ldap")
    assert site.kannel is not None
    assert site.kannel.received() == []
    now = time.time()
    body = {"type": "Service", "service": "ldap.example.org!ldap primary", "author": "eve", "comment": "disks"}
    body |= {"start_time": now - 1, "end_time": now + 600, "fixed": True}
    (downtime,) = site.core.api("POST", "/v1/actions/schedule-downtime", body)
    site.wait_target("standby", 30.0)
    assert site.journal("drain")[-1]["by"] == "eve"
    site.core.api("POST", "/v1/actions/remove-downtime", {"downtime": downtime["name"], "author": "eve"})
    site.core.wait("ldap fail-back", 1, 30.0, text="ready to fail back")
    site.kill("sniffer")
    stale = {"type": "Service", "filter": 'service.name == "ldap primary"', "force": True}
    site.core.api("POST", "/v1/actions/reschedule-check", stale)
    site.core.wait("ldap primary", 3, 30.0, text="no news from failover-sniffer")
    assert site.status()["target"] == "standby"
    assert len([entry for entry in site.journal() if entry.get("flipped")]) == 1
