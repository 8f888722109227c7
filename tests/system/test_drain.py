"""Planned work: a drain and the way back, with clients that notice neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.load import Load
from tests.lab.site import BASE, HOST, ONCALL, Site

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]


def served_by(load: Load, since: float, server: str, count: int = 60) -> None:
    """So many requests of new connections since then, all answered by that server."""

    def short() -> list[str | None]:
        return [r.server for r in load.requests(since) if r.kind == "short"]

    deadline = time.monotonic() + 20.0
    while len(short()) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(short()) == {server}
    assert len(short()) >= count


def kept_by(load: Load, since: float) -> set[str | None]:
    """Who answered the sessions that stay open."""
    return {r.server for r in load.requests(since) if r.kind == "kept"}


def test_no_request_fails_in_a_drain_and_back(make_site: MakeSite, make_load: MakeLoad, tmp_path: Path) -> None:
    """Not one request fails over a drain and a fail-back, and sessions stay open where they were opened."""
    site = make_site(kannel=False)
    assert site.core is not None
    load = make_load(site)
    said = site.ctl("drain", "ldap")
    moved = time.monotonic()
    assert "primary -> standby" in said
    assert "open connections left on the primary" in said
    served_by(load, moved, "standby")
    assert kept_by(load, moved) == {"primary"}
    site.core.wait("ldap redirect", 1, text="on the standby")
    with Load(site.house, tmp_path / "kept", base=BASE, attribute="description", rate=0, kept=2) as sessions:
        assert kept_by(sessions, 0.0) == {"standby"}
        ready = site.core.wait("ldap fail-back", 1, 20.0, text="ready to fail back")
        assert "[x] the primary passed often and long enough" in ready["long_plugin_output"]
        assert "[x] hold-down is over" in site.ctl("status", "ldap")
        site.ctl("fail-back", "ldap")
        back = time.monotonic()
        served_by(load, back, "primary")
        site.poll(lambda: len(sessions.requests(back)) >= 10, 20.0, "the sessions go on")
        assert kept_by(sessions, back) == {"standby"}
        assert site.status()["drain"]["left"] == 2
        for clients in (load, sessions):
            assert [r for r in clients.requests() if r.error or r.reconnects] == []
    site.poll(lambda: site.status()["drain"] is None, 20.0, "nobody is left on the standby")
    assert "no connection is left on the standby" in site.ctl("history")


def test_who_waits_for_a_server_that_dies_is_freed(make_site: MakeSite, make_load: MakeLoad) -> None:
    """The primary hangs while sessions finish on it: they are cut, and their clients go on with the standby."""
    site = make_site(nagios=False, kannel=False)
    load = make_load(site)
    site.ctl("drain", "ldap")
    assert site.status()["drain"]["left"] >= 3
    site.fault("hang")
    site.poll(lambda: site.status()["drain"] is None, 40.0, "the drain is over")
    over = time.monotonic()
    assert "the primary fails its probes" in site.journal("drained")[-1]["text"]
    site.poll(lambda: kept_by(load, over) == {"standby"}, 20.0, "the sessions are on the standby")


def test_the_dead_of_a_fail_over_are_not_waited_for(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Connections that a fail-over ended are no open connections of a later drain; a refusal names its reason."""
    site = make_site(nagios=False, kannel=False)
    load = make_load(site)
    site.fault("blackhole")
    site.wait_target("standby")
    site.heal("blackhole")
    after = time.monotonic()
    site.poll(lambda: kept_by(load, after) == {"standby"}, 20.0, "the sessions are on the standby")
    site.poll(lambda: all(why is None for _, why in site.status()["fail_back"][1:]), 30.0, "ready to fail back")
    site.ctl("fail-back", "ldap")
    load.stop()
    site.poll(lambda: site.status()["drain"] is None, 20.0, "nobody is left on the standby")
    site.ctl("hold", "ldap", "--reason", "the auditors are here")
    assert "refused, hold: held by root: the auditors are here" in site.ctl("drain", "ldap", check=False)
    site.ctl("release", "ldap")
    site.poll(lambda: site.status()["hold_down_left"] == 0, 10.0, "hold-down is over")
    assert "no open connection is left" in site.ctl("drain", "ldap", "--wait")


def with_downtime_contact(text: str) -> str:
    """The line that README asks for, in the site's own host."""
    return text.replace("contact_groups         oncall\n", "contact_groups oncall\n    contacts failover-downtime\n")


def test_a_downtime_drains_by_itself(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Of the host or the service, begun, ended, cancelled: no request fails, and nothing goes back by itself.

    Only without a downtime it is ready to go back, and who was paged before is paged still.
    """
    site = make_site(policy='downtime = "drain"', objects=with_downtime_contact)
    assert site.core is not None
    assert site.kannel is not None
    load = make_load(site)
    now = int(time.time())
    site.core.command(f"SCHEDULE_HOST_DOWNTIME;{HOST};{now};{now + 3600};1;0;3600;ada;new disks")
    site.wait_target("standby", 20.0)
    moved = time.monotonic()
    served_by(load, moved, "standby")
    assert [r for r in load.requests() if r.error or r.reconnects] == []
    flip = site.journal("drain")[-1]
    assert (flip["flipped"], flip["by"], flip["text"]) == (True, "ada", f"downtime of {HOST}")
    site.core.wait("ldap fail-back", 3, 30.0, text="downtime: the primary is in downtime")
    assert f"in downtime: {HOST}" in site.ctl("status", "ldap")
    now = int(time.time())
    site.core.command(f"SCHEDULE_SVC_DOWNTIME;{HOST};ldap primary;{now};{now + 3};1;0;3;ada;and new fans")
    told = [f"downtime of {of} {what}" for of, what in (
        (HOST, "began"), (f"ldap primary on {HOST}", "began"), (f"ldap primary on {HOST}", "ended"), (HOST, "ended")
    )]  # fmt: skip
    site.poll(lambda: [e["text"] for e in site.journal("downtime")] == told[:3], 30.0, "the short one ended")
    assert site.status()["downtime"] == [HOST]
    site.core.command(f"DEL_DOWNTIME_BY_HOST_NAME;{HOST}")
    site.core.wait("ldap fail-back", 1, 30.0, text="ready to fail back")
    assert [entry["text"] for entry in site.journal("downtime")] == told
    assert site.status()["target"] == "standby"
    assert {number for number, _ in site.kannel.wait_received(1, 20.0)} == {ONCALL}


def test_back_by_itself_once(make_site: MakeSite, make_load: MakeLoad) -> None:
    """With auto_fail_back the proven primary serves again; after the second fail-over the standby keeps the traffic.

    Somebody is paged then, and until a person fails back nothing else does, over a restart too.
    """
    site = make_site(policy="auto_fail_back = true")
    assert site.core is not None
    assert site.kannel is not None
    make_load(site)

    def ready() -> bool:
        return all(why is None for _, why in site.status()["fail_back"][1:])

    site.fault("crash")
    site.wait_target("standby")
    site.heal("crash")
    site.wait_target("primary", 40.0)
    back = site.journal("auto-fail-back")
    assert [(entry["flipped"], entry["by"]) for entry in back] == [(True, "redirector")]
    site.poll(lambda: site.status()["hold_down_left"] == 0, 10.0, "hold-down is over")
    site.fault("crash")
    site.wait_target("standby", 30.0)
    site.core.wait("ldap fail-back", 2, 20.0, text="locked on the standby, fail back by hand")
    site.heal("crash")
    site.kill("redirector")
    site.start("redirector")
    assert "automatic fail-back: locked" in site.ctl("status", "ldap")
    site.poll(ready, 30.0, "the checklist is met")
    time.sleep(5.0)  # two looks of the redirector, in which it could have gone back
    assert site.status()["target"] == "standby"
    assert len(site.journal("auto-fail-back")) == 1
    site.poll(lambda: any("fail-back CRITICAL" in t for _, t in site.kannel.received()), 20.0, "somebody is paged")
    site.ctl("fail-back", "ldap")
    assert site.status()["auto_fail_back"] == {"penalty": 0, "locked": False, "moved_by_person": True}


@pytest.mark.parametrize("restarted", ["sniffer", "redirector"])
def test_answers_of_the_other_server_are_no_veto(
    make_site: MakeSite, make_load: MakeLoad, tmp_path: Path, restarted: str
) -> None:
    """Sessions finish on the standby after a fail-back; the daemon restarts; the primary dies: it flips at once.

    The sessions' answers come from the standby. They say nothing about the primary, whichever daemon knows it anew.
    """
    site = make_site(nagios=False, kannel=False)
    load = make_load(site, rate=10.0)
    site.ctl("drain", "ldap")
    served_by(load, time.monotonic(), "standby", 10)
    with Load(site.house, tmp_path / "kept", base=BASE, attribute="description", rate=0, kept=20) as sessions:
        assert kept_by(sessions, 0.0) == {"standby"}
        site.poll(lambda: all(why is None for _, why in site.status()["fail_back"][1:]), 30.0, "ready to fail back")
        site.ctl("fail-back", "ldap")
        assert site.status()["drain"]["left"] >= 20
        site.poll(lambda: site.status()["hold_down_left"] == 0, 10.0, "hold-down is over")
        site.kill(restarted)
        site.start(restarted)
        site.wait_healthy("standby")
        again = time.monotonic()
        site.poll(lambda: len(sessions.requests(again)) >= 40, 20.0, "the sessions go on")
        assert kept_by(sessions, again) == {"standby"}
        crashed = site.fault("crash")
        site.wait_target("standby", 10.0)
        flip = site.journal("fail-over")[-1]
        assert flip["flipped"]
        assert (flip["facts"]["replies"] or 0) == 0
        served = site.poll(lambda: load.answered_by("standby", crashed), 10.0, "new clients are served")
        assert served.end - crashed < 2.0
