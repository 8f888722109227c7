"""The core on another machine: results by NSCA-ng or NRDP, orders back by NRPE or ssh; what holds when it is gone."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.load import Load
from tests.lab.netns import poll
from tests.lab.remote import RemoteCore, settings
from tests.lab.site import HOST, Site

pytestmark = pytest.mark.system
MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]
MakeCore = Callable[..., RemoteCore]
DEADLINE = 3.0  # core_deadline where a test waits for it


@pytest.fixture
def remote(make_site: MakeSite, make_load: MakeLoad) -> Iterator[MakeCore]:
    """A site under load with its core on another machine, which has heard of every service."""
    with tempfile.TemporaryDirectory(prefix="cfo-core-") as name, contextlib.ExitStack() as stack:
        Path(name).chmod(0o755)

        def make(results: str, way: str, deadline: float = 30.0) -> RemoteCore:
            place = Path(name)
            site = make_site(nagios=False, kannel=False, **settings(place, results, deadline))
            core = stack.enter_context(RemoteCore(site, place, results=results, way=way))
            make_load(site)
            for service in ("primary", "redirect", "traffic", "standby", "fail-back"):
                core.nagios.wait(f"ldap {service}", 0, 30.0)
            return core

        yield make


def who_ordered(site: Site) -> str:
    """By whom the first fail-over was ordered; its journal line is written after the kernel moved."""
    return str(poll(lambda: site.journal("fail-over"), 10.0, "the journal has it")[0]["by"])


@pytest.mark.parametrize(("results", "way"), [("nsca", "nrpe"), ("nrdp", "ssh")])
def test_from_fault_to_flip_and_back(remote: MakeCore, results: str, way: str) -> None:
    """The verdict travels to the core, its handler's order back, the outcome again to the core; so does a fail-back."""
    core = remote(results, way)
    site, nagios = core.site, core.nagios
    site.fault("crash")
    site.wait_target("standby")
    nagios.wait("ldap primary", 2)
    nagios.wait("ldap redirect", 1, text="on the standby")
    nagios.wait("ldap fail-back", 3, text="not ready to fail back")
    flip = site.journal("fail-over")[-1]
    assert flip["by"] == f"nagios ({way})"
    assert flip["facts"]["evidence"] is not None, "decided by the sniffer's own verdict"
    site.heal("crash")
    nagios.wait("ldap fail-back", 1, 30.0, text="ready to fail back")
    nagios.command(f"PROCESS_SERVICE_CHECK_RESULT;{HOST};ldap fail-back;0;go back, says the night shift")
    site.wait_target("primary")
    nagios.wait("ldap fail-back", 0, text="nothing to fail back")
    nagios.wait("ldap redirect", 0)
    assert [entry["by"] for entry in site.journal("fail-back")] == [f"nagios ({way})"]
    assert not nagios.lines("not defined|UNKNOWN: failover_remote")


@pytest.mark.parametrize("results", ["nsca", "nrdp"])
def test_the_way_goes_dark(remote: MakeCore, results: str) -> None:
    """The sniffer orders; the core hears what happened later and in order, and what it orders then moves nothing."""
    core = remote(results, "nrpe", DEADLINE)
    site = core.site
    core.cut()
    site.fault("crash")
    site.wait_target("standby", 20.0)
    assert who_ordered(site) in ("sniffer (the core is away)", "sniffer (the core is silent)")
    site.heal("crash")
    site.poll(lambda: not [why for _, why in site.status()["fail_back"] if why], 20.0, "a fail-back is possible")
    site.ctl("fail-back", "ldap")
    core.mend()
    poll(lambda: core.states("ldap primary") == [0, 2, 0], 30.0, "the core heard of the fault and its end", every=0.1)
    poll(lambda: core.states("ldap redirect")[:3] == [0, 1, 0], 30.0, "the core heard of both flips", every=0.1)
    late = poll(lambda: site.journal("fail-over")[1:], 15.0, "the core's late order")
    assert [(entry["by"], entry["flipped"], entry["reason"]) for entry in late] == [
        ("nagios (nrpe)", False, "not-confirmed")
    ]
    assert site.status()["target"] == "primary"


def test_a_queue_took_the_verdict(remote: MakeCore) -> None:
    """NSCA-ng says yes while Nagios behind it is stopped: after the deadline the sniffer orders; Nagios hears of it."""
    core = remote("nsca", "nrpe", DEADLINE)
    site = core.site
    core.nagios.stop()
    at = time.monotonic()
    site.fault("crash")
    site.wait_target("standby")
    assert time.monotonic() - at >= DEADLINE
    assert who_ordered(site) == "sniffer (the core is silent)"
    core.nagios.start()
    core.nagios.wait("ldap primary", 2, 30.0)
    core.nagios.wait("ldap redirect", 1, 30.0)
    assert len([entry for entry in site.journal("fail-over") if entry["flipped"]]) == 1


def test_the_way_back_is_cut(remote: MakeCore) -> None:
    """The core hears and judges, its order does not arrive: after the deadline the sniffer orders."""
    core = remote("nrdp", "nrpe", DEADLINE)
    core.stop("nrpe")
    core.site.fault("crash")
    core.site.wait_target("standby")
    assert who_ordered(core.site) == "sniffer (the core is silent)"
    core.nagios.wait("ldap redirect", 1, text="on the standby")


def test_a_downtime_of_the_core_is_its_word(remote: MakeCore) -> None:
    """The core's order comes and is refused for the downtime: then no deadline makes the sniffer order."""
    core = remote("nrdp", "nrpe", DEADLINE)
    site, now = core.site, int(time.time())
    core.nagios.command(f"SCHEDULE_SVC_DOWNTIME;{HOST};ldap primary;{now - 5};{now + 600};1;0;600;boss;disk swap")
    poll(lambda: core.nagios.lines("SERVICE DOWNTIME ALERT.*STARTED"), 15.0, "the downtime began", every=0.1)
    site.fault("crash")
    core.nagios.wait("ldap redirect", 2, 20.0, text="downtime")
    until = time.monotonic() + DEADLINE + 1.0
    poll(lambda: time.monotonic() > until or site.status()["target"] != "primary", DEADLINE + 5.0, "the deadline")
    assert site.status()["target"] == "primary"
    assert {(entry["by"], entry["reason"]) for entry in site.journal("fail-over")} == {("nagios (nrpe)", "downtime")}
