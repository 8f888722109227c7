"""While the standby serves, it is watched as the primary was; when it fails, a primary that is well serves again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.lab.load import Load
from tests.lab.site import Site

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_the_serving_standby_fails(make_site: MakeSite, make_load: MakeLoad, fault: str) -> None:
    """The primary died and came back, then the standby that serves fails: clients are served."""
    site = make_site(kannel=False)
    load = make_load(site)
    site.fault("crash")
    site.wait_target("standby")
    site.heal("crash")
    site.poll(lambda: site.sniffer()["primary"]["passes"] >= 3, 30.0, "the primary is well again")
    site.poll(lambda: load.answered_by("standby", time.monotonic() - 1.0), 10.0, "the standby serves")
    site.fault(fault, "standby")
    site.wait_target("primary")
    at = time.monotonic()
    site.poll(lambda: load.answered_by("primary", at), 10.0, "the primary serves")
    flip = [entry for entry in site.journal("fail-over") if entry["flipped"]][-1]
    assert (flip["from"], flip["to"]) == ("standby", "primary")
    assert flip["text"].startswith("last resort: the standby failed")
    assert site.core is not None
    assert "last resort" in site.core.wait("ldap redirect", 0, text="last resort")["plugin_output"]


def test_both_fail_and_the_primary_comes_back_first(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Nothing moves while both are dead; the primary's return is enough (over restarts: test_restarted)."""
    site = make_site(kannel=False)
    load = make_load(site)
    site.fault("crash")
    site.wait_target("standby")
    site.fault("crash", "standby")
    site.poll(lambda: site.sniffer()["verdict"] == "failed", 20.0, "the standby's failure is seen")
    assert site.status()["target"] == "standby"
    site.heal("crash")
    site.wait_target("primary")
    at = time.monotonic()
    site.poll(lambda: load.answered_by("primary", at), 10.0, "the primary serves")


def test_never_means_never(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Where a person wants to decide, the refusal is as loud as a flip."""
    site = make_site(kannel=False, policy='last_resort = "never"')
    make_load(site)
    site.fault("crash")
    site.wait_target("standby")
    site.heal("crash")
    site.poll(lambda: site.sniffer()["primary"]["passes"] >= 3, 30.0, "the primary is well again")
    site.fault("crash", "standby")
    assert site.core is not None
    site.core.wait("ldap redirect", 2, text="last-resort")
    assert site.status()["target"] == "standby"
