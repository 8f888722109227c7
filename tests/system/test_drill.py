"""failoverctl drill on the whole site: a chain that works, and each way in which it may be broken, named."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.lab.load import Load
from tests.lab.netns import STANDBY, python_argv
from tests.lab.site import ONCALL, ROOT, Site, environment

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]
TEST_CLIENT = "192.0.2.250"
KEY = f'test_client = "{TEST_CLIENT}"'
STEPS = ["standby", "redirect", "client", "result", "handler", "notification", "untouched"]


def steps(output: str) -> list[str]:
    """The steps that were printed as done."""
    rows = re.findall(r"^ +[\d.]+ s  (\w+) +(.*)$", output, re.MULTILINE)
    return [name for name, text in rows if not text.startswith("FAILED")]


def nothing_stays(site: Site) -> None:
    """No client in the set, no interface, no flip, no target moved."""
    assert "elements" not in site.house.run("controller", "/usr/sbin/nft", "list set inet check_failover drill_ldap")
    assert "failover-drill" not in site.house.run("controller", "/usr/sbin/ip", "link")
    assert site.status()["target"] == site.status()["kernel"] == "primary"
    assert [entry for entry in site.journal() if entry["flipped"]] == []


def test_a_drill_under_load(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Every step is done; not one request of a client fails, waits or reaches the standby; no text is sent."""
    site = make_site(service=KEY)
    assert site.core is not None
    assert site.kannel is not None
    load = make_load(site)
    since = time.monotonic()
    output = site.ctl("drill", "ldap")
    assert steps(output) == STEPS
    assert f"only {TEST_CLIENT} goes to the standby {STANDBY}:389" in output
    assert "was run by nagios: nothing moves" in output
    assert "ldap: drill passed" in output
    site.poll(lambda: len(load.requests(since)) > 60, 15.0, "sixty requests")
    during = load.requests(since)
    assert {request.server for request in during} == {"primary"}
    assert [request.error for request in during if request.error] == []
    nothing_stays(site)
    entries = site.journal("drill", "drill-end")
    assert [entry["verb"] for entry in entries] == ["drill", "drill-end"]
    assert entries[1]["text"].endswith("passed")
    assert set(entries[1]["parts"]) == {"handler", "notification"}
    site.core.wait("ldap drill", 0, text="passed")
    assert site.kannel.received() == []
    assert site.core.lines("SERVICE NOTIFICATION") == site.core.lines("SERVICE NOTIFICATION: failover-drill;")

    # Once more, with a text; then one whose program is killed: the address goes back by itself, another may follow.
    assert "accepted by kannel" in site.ctl("drill", "ldap", "--sms", ONCALL)
    assert site.kannel.wait_received(1)[0][1].startswith("DRILL of ldap")
    argv = python_argv("check_failover.admin.ctl", "drill", "ldap", "--wait", "60", "--limit", "3")
    killed = subprocess.Popen(
        [*site.house.argv("controller"), *argv, "--config", str(site.config)], cwd=ROOT, env=environment()
    )
    site.poll(lambda: site.status()["drill"], 10.0, "the drill goes on")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    site.poll(lambda: site.status()["drill"] is None, 10.0, "the drill is over")
    nothing_stays(site)
    assert "no program ended it" in site.journal("drill-end")[-1]["text"]
    site.poll(lambda: len(load.requests(since)) > 300, 15.0, "requests all the time")
    assert {request.server for request in load.requests(since)} == {"primary"}


def broken(site: Site, step: str, why: str) -> None:
    """A drill ends with exit code 1 at that step, the ones before it are done, the journal says so, nothing stays."""
    said = site.ctl("drill", "ldap", check=False)
    assert said.startswith("1: "), said
    assert f"ldap: drill failed at the step: {step}" in said, said
    assert re.search(rf"^ +[\d.]+ s  {step} +FAILED: .*{why}", said, re.MULTILINE), said
    assert steps(said) == STEPS[: STEPS.index(step)], said
    assert site.journal("drill-end")[-1]["text"].endswith(f"failed: {step}")
    nothing_stays(site)


def test_broken_chains_are_named(make_site: MakeSite) -> None:
    """Gateway down, event handlers disabled, a handler nobody can execute, the core stopped; then all is mended."""
    site = make_site(service=KEY)
    assert site.core is not None
    assert site.kannel is not None
    site.wait_healthy("standby")

    site.kannel.stop()
    broken(site, "notification", "kannel: .*refused")
    site.core.wait("ldap drill", 1, text="failed at the step: notification")
    site.kannel.start()

    site.core.command("DISABLE_EVENT_HANDLERS")
    broken(site, "handler", "did not run failover_event .*enable_event_handlers")
    site.core.command("ENABLE_EVENT_HANDLERS")

    handler = site.directory / "plugins" / "eventhandlers" / "failover_event"
    aside = handler.rename(handler.with_name("aside"))
    handler.write_bytes(aside.read_bytes())
    handler.chmod(0o644)
    broken(site, "handler", "may core_user execute it")
    aside.replace(handler)

    site.core.stop()
    broken(site, "result", "the core does not take results")
    site.core.start()
    site.core.wait("ldap drill", 1, text="failed at the step: result")

    assert steps(site.ctl("drill", "ldap")) == STEPS
    site.core.wait("ldap drill", 0, text="passed")
    assert site.kannel.received() == []
