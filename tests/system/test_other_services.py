"""DNS, web and a service that only a plugin can check: found by their traffic, judged by Nagios, moved like LDAP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.lab.netns import freeze
from tests.lab.others import KINDS, Clients, config, start
from tests.lab.site import Site

pytestmark = pytest.mark.system


def test_each_kind_of_service_fails_over(make_site: Callable[..., Site]) -> None:
    """bind9 that says nothing, bind9 with SERVFAIL, apache2 with 503, a hang behind ``type = "plugin"``; LDAP stays."""
    site = make_site(kannel=False, extra=config(*KINDS))
    with contextlib.ExitStack() as stack:
        _each_kind(site, stack)


def _each_kind(site: Site, stack: contextlib.ExitStack) -> None:
    assert site.core is not None
    primary = start(site, stack, *KINDS)
    clients = {name: Clients(site, name) for name in KINDS}
    for name in KINDS:
        site.wait_healthy("standby", name=name)
        clients[name].served()
        assert site.sniffer(name)["primary"]["ok"] is None, "the primary was probed although it answered"
    freeze(primary["dns"].pid)
    primary["dns2"].spoil()
    primary["web"].spoil()
    freeze(primary["echo"].pid)
    detectors = {}
    for name in KINDS:
        site.wait_target("standby", name=name)
        flips = [e for e in site.journal("fail-over") if e["service"] == name and e["flipped"]]
        assert [flip["by"] for flip in flips] == ["nagios"]
        detectors[name] = flips[0]["facts"]["detector"]
        site.core.wait(f"{name} primary", 2)
        site.core.wait(f"{name} redirect", 1, text="on the standby")
    for name in KINDS:
        clients[name].served()
    assert (detectors["dns2"], detectors["web"]) == ("error-share", "error-share")
    assert (detectors["dns"], detectors["echo"]) == ("unanswered-request", "unanswered-request")
    assert site.status("ldap")["target"] == "primary"
