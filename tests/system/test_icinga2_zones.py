"""Icinga 2 with two masters in an HA zone and the controller as an agent: one flip, one SMS, whoever acts how often."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.lab.icinga import Icinga
from tests.lab.icinga_zone import AGENT, Zone
from tests.lab.load import Load
from tests.lab.site import HOST, ONCALL, Site

pytestmark = pytest.mark.system

ONCE_MORE = {"type": "Service", "service": f"{HOST}!ldap primary", "command": "failover_event", "ttl": 30}
ONCE_MORE |= {"command_type": "EventCommand", "endpoint": AGENT}
SERVICE = f"/v1/objects/services?service={HOST}!ldap primary&attrs=paused"


def acts(node: Icinga) -> bool:
    """Whether this node runs the handlers of "ldap primary"."""
    rows = node.api("GET", SERVICE, patient=True)
    return bool(rows) and not rows[0]["attrs"]["paused"]


def hears_the_agent(node: Icinga) -> bool:
    rows = node.api("GET", f"/v1/objects/endpoints?endpoint={AGENT}&attrs=connected", patient=True)
    return bool(rows) and bool(rows[0]["attrs"]["connected"])


def test_one_flip_and_one_text_whoever_acts(make_site: Callable[..., Site], make_load: Callable[[Site], Load]) -> None:
    """A fault, with the handler ordered by both masters; back by either; a fault after the acting one was killed."""
    site = make_site(core="icinga2 zone", sms="limit = 50")
    zone = site.core
    assert isinstance(zone, Zone)
    assert site.kannel is not None
    make_load(site)
    site.poll(lambda: acts(zone.m1) != acts(zone.m2), 90.0, "one of the masters acts")
    site.poll(lambda: all(map(hears_the_agent, (zone.m1, zone.m2))), 60.0, "both hear the agent")

    # a fault; the handler runs once as it should, and once more by each master's order
    site.fault("crash")
    for node in (zone.m1, zone.m2):
        node.wait("ldap primary", 2)
        node.api("POST", "/v1/actions/execute-command", ONCE_MORE)
    site.wait_target("standby")
    ran = "Running command.*failover_event'.*'CRITICAL: "
    site.poll(lambda: len(zone.nodes[AGENT].lines(ran)) >= 3, 15.0, "three handlers ran on the controller")
    texts = site.kannel.wait_received(2, 20.0)
    assert sorted(text.split(" on ")[0] for _, text in texts) == [
        "PROBLEM ldap primary CRITICAL",
        "PROBLEM ldap redirect WARNING",
    ]
    assert {number for number, _ in texts} == {ONCALL}
    assert [entry["by"] for entry in site.journal("fail-over")] == ["icinga2"]

    # back, by an OK that is given to the master that does not act
    site.heal("crash")
    other = zone.m2 if acts(zone.m1) else zone.m1
    other.wait("ldap fail-back", 1, 30.0, text="ready to fail back")
    other.submit("ldap fail-back", 0, "go back")
    site.wait_target("primary")
    site.poll(lambda: site.journal("fail-back"), 10.0, "the journal's entry")
    assert [entry["by"] for entry in site.journal("fail-back")] == ["icinga2"]

    # the master that acted is gone
    gone, left = (zone.m1, zone.m2) if acts(zone.m1) else (zone.m2, zone.m1)
    left.wait("ldap primary", 0, 30.0)
    gone.kill()
    site.poll(lambda: acts(left), 60.0, "the master that is left acts")
    site.poll(lambda: time.time() - site.status()["since"] > 2, 10.0, "the hold-down is over")
    site.fault("hang")
    site.wait_target("standby")
    site.poll(lambda: len(site.journal("fail-over")) == 2, 10.0, "the journal's entry")
    assert [entry["by"] for entry in site.journal("fail-over")] == ["icinga2", "icinga2"]

    def told() -> list[str]:
        return [text for _, text in site.kannel.received() if text.startswith("PROBLEM ldap primary CRITICAL")]

    site.poll(lambda: len(told()) > 1, 20.0, "the second fault's text")
    assert len(told()) == 2
