"""The main job as every core must do it: from a fault to served clients, states that tell the story, and texts."""

from __future__ import annotations

import time
from typing import Any

from tests.lab.load import Load, Request
from tests.lab.site import ONCALL, Site


def served_and_told(site: Site, load: Load, fault: str) -> dict[str, Any]:
    """Do it to the primary and see all of that; returns the one flip's journal entry, by the core's user."""
    assert site.core is not None
    assert site.kannel is not None
    at = site.fault(fault)
    site.wait_target("standby")
    site.poll(lambda: load.answered_by("standby", at), 10.0, "an answer from the standby")
    after = time.monotonic()
    site.poll(lambda: len(load.requests(after)) > 60, 15.0, "sixty requests after the flip")
    assert [r for r in load.requests(after) if r.server != "standby"] == []
    if fault in ("hang", "blackhole"):
        site.poll(lambda: freed(load, at), 10.0, "a client that only waited was reset and asked the standby")
    refused = [r for r in load.requests(at) if r.error == "connection refused"]
    assert bool(refused) is (fault == "crash" and site.ipnat is not None), "ipfilter cannot withhold a refusal"
    seen = site.core.wait("ldap primary", 2)["long_plugin_output"]
    assert "suspicion: " in seen
    assert "probe of the primary: failed after " in seen
    assert "probe of the standby: passed after " in seen
    # "now on the standby", until the core's own check of it comes, which may be at once
    done = site.core.wait("ldap redirect", 1, text="on the standby")["long_plugin_output"]
    assert "ldap: primary -> standby (" in done
    assert "the primary failed " in done
    back = site.core.wait("ldap fail-back", 3, text="not ready to fail back")["long_plugin_output"]
    assert "[ ] the primary " in back
    assert 'back: failoverctl fail-back ldap, or submit OK for "ldap fail-back"' in done
    assert "back: failoverctl fail-back ldap" in back
    texts = site.kannel.wait_received(2, 20.0)
    assert {number for number, _ in texts} == {ONCALL}
    assert sorted(text.split(" on ")[0] for _, text in texts) == [
        "PROBLEM ldap primary CRITICAL",
        "PROBLEM ldap redirect WARNING",
    ]
    flips = [entry for entry in site.journal("fail-over") if entry["flipped"]]
    assert len(flips) == 1
    assert flips[0]["facts"]["standby_ok"] is True
    return flips[0]


def freed(load: Load, at: float) -> list[Request]:
    """Kept sessions that were under way when the redirect moved. By themselves they would give up after 3 s."""
    return [r for r in load.requests() if r.end > at and r.error == "connection reset" and r.server == "standby"]
