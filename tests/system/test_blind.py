"""What the sniffer cannot see moves nothing and is UNKNOWN; what it sees of a bad cable does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

from tests.lab.load import Load
from tests.lab.netns import SERVICE_ADDRESS, freeze
from tests.lab.site import ROOT, Site

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]
IP = "/usr/sbin/ip"


def test_half_of_the_packets_lost(make_site: MakeSite, make_load: MakeLoad) -> None:
    """On the primary's cable: the clean standby serves, by the core's order."""
    site = make_site(kannel=False)
    load = make_load(site)
    at = site.fault("loss")
    site.wait_target("standby", 30.0)
    site.poll(lambda: load.answered_by("standby", at), 10.0, "an answer from the standby")
    flips = site.poll(lambda: [e for e in site.journal("fail-over") if e["flipped"]], 5.0, "it is in the journal")
    assert [flip["by"] for flip in flips] == ["nagios"]


def test_the_controllers_own_link_is_down(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Both sides silent, the primary dead besides: UNKNOWN, and the handler orders nothing; once it is up, it does."""
    site = make_site(kannel=False)
    assert site.core is not None
    core = site.core
    make_load(site)
    site.house.run("controller", IP, "link", "set", "cl0", "down")
    core.wait("ldap primary", 3, text="blind: cl0 is down")
    site.fault("crash")
    site.poll(lambda: core.lines("EVENT HANDLER: .*ldap primary;UNKNOWN"), 15.0, "the handler ran")
    assert site.status()["target"] == "primary"
    assert site.journal() == []
    site.house.run("controller", IP, "link", "set", "cl0", "up")
    site.wait_target("standby", 30.0)


def test_packets_that_were_not_captured(make_site: MakeSite, make_load: MakeLoad) -> None:
    """The sniffer gets no time while too much arrives: replies may be among what was dropped. Nothing moves."""
    site = make_site(nagios=False, kannel=False)
    load = make_load(site)
    sniffer = site.pid("sniffer")
    freeze(sniffer)
    argv = [sys.executable, "-m", "tests.lab.odd", "burst", SERVICE_ADDRESS, "389", "0.1"]
    try:
        site.house.start("client", *argv, cwd=ROOT).wait(60.0)
    finally:
        os.kill(sniffer, signal.SIGCONT)
    site.poll(lambda: site.sniffer()["blind"] == "the capture dropped packets", 10.0, "it is blind, and says so")
    site.poll(lambda: site.sniffer()["blind"] is None, 20.0, "it sees again")
    assert site.sniffer()["stats"]["drops"] > 0
    assert "verdict" not in site.log("sniffer")
    assert site.journal() == []
    assert [r for r in load.requests() if r.server != "primary"] == []


def test_the_wrong_interface(make_site: MakeSite, make_load: MakeLoad) -> None:
    """The NAT forwards requests and the capture sees none of them: UNKNOWN, though every interface is up."""
    site = make_site(kannel=False)
    assert site.core is not None
    make_load(site)
    site.stop("sniffer")
    site.config.write_text(site.config.read_text().replace('"cl0"', '"lo"'))
    site.start("sniffer")
    site.fault("hang")
    site.core.wait("ldap primary", 3, 30.0, text="none was captured")
    assert site.status()["target"] == "primary"
    assert site.journal() == []
