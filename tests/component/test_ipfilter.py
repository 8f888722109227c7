"""The ipfilter redirect against ipnat's recorded sessions and against a simulated kernel, by real processes.

The stand-ins refuse every call that no real ipnat was seen to take; each test ends by asserting that there was none.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from check_failover.config import Config, Controller, load
from check_failover.model import CheckSpec, Endpoint, Service, Target
from check_failover.redirector import REDIRECTS, Redirect, RedirectError, Wiring, current
from check_failover.redirector.ipfilter.file import BEGIN, END
from check_failover.redirector.ipfilter.rules import tag_of
from tests.fixtures.ipfilter.standin import HERE, Kernel, Replay, numeric, recorded, serving

WEB = Service(
    name="web",
    host="www",
    protocol="tcp",
    address=Endpoint("192.0.2.10", 80),
    primary=Endpoint("10.0.0.1", 8080),
    standby=Endpoint("10.0.0.2", 8081),
    check=CheckSpec("tcp"),
)
DNS = replace(
    WEB,
    name="dns",
    protocol="udp",
    address=Endpoint("192.0.2.20", 53),
    primary=Endpoint("10.0.0.1", 53),
    standby=Endpoint("10.0.0.2", 53),
)
SIX = replace(
    WEB,
    name="web-six",
    address=Endpoint("2001:db8::20", 80),
    primary=Endpoint("2001:db8:1::1", 8080),
    standby=Endpoint("2001:db8:1::2", 8080),
)
FAR = replace(WEB, name="far", address=Endpoint("192.0.2.12", 80), source_nat="10.0.0.254")
FAR_SIX = replace(SIX, name="far-six-fifteen", address=Endpoint("2001:db8::12", 80), source_nat="2001:db8:1::fe")
ALL = (WEB, DNS, SIX, FAR, FAR_SIX)
OLD = "rdr epair0a 192.0.2.10/32 port 80 -> 10.0.0.1/32 port 8080 tcp tag cfo.web"
NEW = "rdr epair0a 192.0.2.10/32 port 80 -> 10.0.0.2 port 8081 tcp tag cfo.web"
NEW_LISTED = NEW.replace("10.0.0.2 ", "10.0.0.2/32 ")
SITE = tuple(numeric((HERE / "list-rules.out").read_text()).splitlines()[2:12])
PRIMARY, STANDBY = Target.PRIMARY, Target.STANDBY
SILENT = [0, "", ""]


def _redirect(
    ipnat: Path,
    tmp_path: Path,
    services: tuple[Service, ...] = (WEB,),
    client: str | tuple[str, ...] = "epair0a",
    **more: Any,
) -> Redirect:
    table = {"ipnat": str(ipnat), "rules": str(tmp_path / "ipnat.rules"), "server_interface": "epair1a", **more}
    interfaces = (client,) if isinstance(client, str) else client
    controller = Controller(redirect="ipfilter", client_interfaces=interfaces, ipfilter=table)
    return REDIRECTS["ipfilter"](Config(Path("config.toml"), controller, services, {}, None))


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel with ten rules of the site; at the end they are there still, in their order."""
    stand_in = Kernel(tmp_path / "bin", SITE)
    yield stand_in
    assert stand_in.refused == ""
    assert [rule for rule in stand_in.rules if rule in SITE] == list(SITE)


@pytest.fixture
def poked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Endpoint, Endpoint]]:
    """Who was poked, in place of raw packets to addresses of others."""
    found: list[tuple[Endpoint, Endpoint]] = []

    def poke(pairs: Iterator[tuple[Endpoint, Endpoint]]) -> int:
        found.extend(pairs)
        return len(found)

    monkeypatch.setattr("check_failover.redirector.ipfilter.redirect.poke", poke)
    return found


def _with(text: str, rule: str) -> str:
    """A list with one more rule at its end."""
    return text.replace("\n\nList of active sessions", f"\n{rule}\n\nList of active sessions")


# ---------------------------------------------------------------- recorded sessions


def _flip(*, add: list[Any] = SILENT, remove: list[Any] | None = None, end: list[Any] | None = None) -> list[Any]:
    """A recorded fail-over of the service web, call by call."""
    after = [0, _with(recorded("list-after-purge")[1], NEW_LISTED), ""]
    return [
        ("-lvR", "", recorded("list-lv")),
        ("-nf -", NEW + "\n", SILENT),
        ("-f -", NEW + "\n", add),
        ("-r -p -f -", OLD + "\n", remove or recorded("purge-one")),
        ("-lR", "", end or after),
    ]


def test_recorded_flip(tmp_path: Path, poked: list[Any]) -> None:
    """Try dry, add the new rule, remove the old one in the words of the list with its sessions, read back."""
    replay = Replay(tmp_path / "bin", _flip())
    redirect = _redirect(replay.path, tmp_path)
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert redirect.forget_unanswered(WEB, PRIMARY) == 0
    assert redirect.free_stranded(WEB, PRIMARY) == 2
    assert [str(client) for _, client in poked] == ["192.0.2.7:43576", "192.0.2.7:26522"]
    assert replay.finished, replay.refused


def test_recorded_current_and_activity(tmp_path: Path) -> None:
    """The recorded kernel redirects to the primary; two connections of four packets each way were counted."""
    replay = Replay(tmp_path / "bin", [("-lR", "", recorded("list-l")), ("-lvR", "", recorded("list-lv"))])
    redirect = _redirect(replay.path, tmp_path)
    assert current(redirect, WEB) is PRIMARY
    activity = redirect.activity([WEB])["web"]
    assert (activity.asked, activity.answered) == (8, 8)
    assert replay.finished, replay.refused


def test_recorded_install_of_what_is_there_already(tmp_path: Path) -> None:
    """A restart with the right rule changes nothing in the kernel: one look is all."""
    replay = Replay(tmp_path / "bin", [("-lvR", "", recorded("list-lv"))])
    _redirect(replay.path, tmp_path).install({"web": PRIMARY})
    assert replay.finished, replay.refused


def test_recorded_somebody_was_faster(tmp_path: Path) -> None:
    """The rule exists already, the other is gone already: both are what was wanted, so the flip has succeeded."""
    replay = Replay(tmp_path / "bin", _flip(add=recorded("add-dup"), remove=recorded("rm-purge-missing")))
    _redirect(replay.path, tmp_path).wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert replay.finished, replay.refused


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (recorded("denied"), "/dev/ipnat: open: Permission denied: no permission on the device: run"),
        (recorded("disabled-l"), "ipfitler is disabled: IPFilter is switched off, and forgot its NAT rules"),
        (recorded("usage"), "version = 4"),
        ([1, "", "/dev/ipnat: open: No such file or directory\n"], "IPFilter is not loaded: 'service ipfilter start'"),
        ([1, "", "User/kernel version check failed\n"], "finish the system's upgrade"),
        ([0, "", ""], "exit 0, said: nothing"),
    ],
    ids=["no permission", "switched off", "too old", "not loaded", "half upgraded", "says nothing"],
)
def test_recorded_refusals(tmp_path: Path, answer: list[Any], text: str) -> None:
    """Told in one line with what to do; nothing further is tried. ``current`` knows nothing then."""
    replay = Replay(tmp_path / "bin", [("-lvR", "", answer), ("-lR", "", answer), ("-lvR", "", answer)])
    redirect = _redirect(replay.path, tmp_path)
    with pytest.raises(RedirectError) as caught:
        redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert current(redirect, WEB) is None
    with pytest.raises(RedirectError):
        redirect.install({"web": PRIMARY})
    assert replay.finished, replay.refused


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (recorded("syntax"), "did not understand the rule"),
        ([0, "", "Unknown host 'x'\n"], "did not understand the rule"),
        ([1, "", "60006:1:ioctl(add/insert nat rule): need write permissions to add NAT rule\n"], "mode 660"),
    ],
    ids=["syntax", "exit 0 all the same", "read-only"],
)
def test_recorded_faults_of_the_dry_run(tmp_path: Path, answer: list[Any], text: str) -> None:
    """What ipnat does not like when tried dry never reaches the kernel, whatever its exit code."""
    replay = Replay(tmp_path / "bin", [*_flip()[:1], ("-nf -", NEW + "\n", answer)])
    with pytest.raises(RedirectError) as caught:
        _redirect(replay.path, tmp_path).wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert text in str(caught.value)
    assert NEW in str(caught.value)
    assert replay.finished, replay.refused


# ---------------------------------------------------------------- flips


@pytest.mark.parametrize("service", ALL, ids=lambda service: service.name)
def test_over_and_back(service: Service, kernel: Kernel, tmp_path: Path, poked: list[Any]) -> None:
    """Every shape of a service is redirected, flipped and flipped back; at no moment is there no rule for it."""
    redirect = _redirect(kernel.path, tmp_path, (service,))
    redirect.install({service.name: PRIMARY})
    installed = len(kernel.history)
    client = "192.0.2.7" if service.address.family == 4 else "2001:db8::7"
    assert kernel.connect(service, client, 1) == f"{service.primary.address} {service.primary.port}"
    for target, server in ((STANDBY, service.standby), (PRIMARY, service.primary)):
        redirect.wire(service, Wiring(target, target.other))
        assert current(redirect, service) is target
        assert kernel.connect(service, client, 1) == f"{server.address} {server.port}"
        assert redirect.free_stranded(service, target.other) == (0 if service is DNS else len(poked))
    assert all(serving(entry["rules"], service) for entry in kernel.history[installed:])
    assert len(kernel.rules) == len(SITE) + (3 if service.source_nat else 1)


def test_both_rules_at_most_and_the_old_one_works_until_it_goes(kernel: Kernel, tmp_path: Path) -> None:
    """The kernel's rules of the service at each call of a flip: old, old and new, new."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    begin = len(kernel.history)
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    states = [[rule for rule in entry["rules"] if rule not in SITE] for entry in kernel.history[begin:]]
    assert states == [[OLD], [OLD], [OLD, NEW_LISTED], [NEW_LISTED], [NEW_LISTED]]


def test_sessions_to_the_old_server_go_and_others_stay(kernel: Kernel, tmp_path: Path, poked: list[Any]) -> None:
    """Those in the making are counted, those who only wait are poked, and other services' are left alone."""
    redirect = _redirect(kernel.path, tmp_path, (WEB, DNS))
    redirect.install({"web": PRIMARY, "dns": PRIMARY})
    kernel.connect(WEB, "192.0.2.7", 1001)
    kernel.connect(WEB, "192.0.2.8", 1002)
    kernel.connect(WEB, "192.0.2.9", 1003, answered=0)
    kernel.connect(DNS, "192.0.2.7", 1004)
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert [one["client"] for one in kernel.sessions] == [["192.0.2.7", 1004]]
    assert redirect.forget_unanswered(WEB, PRIMARY) == 1
    assert redirect.free_stranded(WEB, PRIMARY) == 2
    assert poked == [(WEB.address, Endpoint("192.0.2.7", 1001)), (WEB.address, Endpoint("192.0.2.8", 1002))]
    assert redirect.free_stranded(WEB, PRIMARY) == 0, "nobody is poked twice"


def test_drain_leaves_open_connections_where_they_are(kernel: Kernel, tmp_path: Path, poked: list[Any]) -> None:
    """New clients go to the standby, the open connection stays, and nobody is poked."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    kernel.connect(WEB, "192.0.2.7", 1001)
    redirect.wire(WEB, Wiring(STANDBY))
    assert kernel.connect(WEB, "192.0.2.7", 1001) == "10.0.0.1 8080"
    assert kernel.connect(WEB, "192.0.2.7", 1002) == "10.0.0.2 8081"
    assert redirect.elsewhere(WEB, STANDBY) == [Endpoint("192.0.2.7", 1001)]
    assert (redirect.forget_unanswered(WEB, PRIMARY), redirect.free_stranded(WEB, PRIMARY), poked) == (0, 0, [])


def test_poking_that_is_not_allowed_is_told(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw sockets are root's: the flip stands, and the line says who waits and why."""

    def denied(pairs: Iterator[Any]) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("check_failover.redirector.ipfilter.redirect.poke", denied)
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    kernel.connect(WEB, "192.0.2.7", 1001)
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    with pytest.raises(RedirectError, match="cannot wake 1 clients that only wait: Operation not permitted"):
        redirect.free_stranded(WEB, PRIMARY)
    assert current(redirect, WEB) is STANDBY


def test_several_client_interfaces(kernel: Kernel, tmp_path: Path) -> None:
    """One rule each; while they differ there is no target, and ``install`` puts that right."""
    redirect = _redirect(kernel.path, tmp_path, client=("epair0a", "em1"))
    redirect.install({"web": PRIMARY})
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is STANDBY
    second = next(rule for rule in kernel.rules if rule.startswith("rdr em1 "))
    kernel.rules = [rule for rule in kernel.rules if rule != second]
    assert current(redirect, WEB) is None
    redirect.install({"web": STANDBY})
    assert current(redirect, WEB) is STANDBY
    assert second in kernel.rules


# ---------------------------------------------------------------- install, ownership


def test_install_is_idempotent(kernel: Kernel, tmp_path: Path) -> None:
    """A second one only looks, and writes nothing."""
    redirect = _redirect(kernel.path, tmp_path, ALL)
    targets = {one.name: target for one, target in zip(ALL, [*Target, *Target, PRIMARY], strict=True)}
    redirect.install(targets)
    file, rules, calls = (tmp_path / "ipnat.rules").stat(), kernel.rules, len(kernel.history)
    _redirect(kernel.path, tmp_path, ALL).install(targets)
    assert [entry["call"] for entry in kernel.history[calls:]] == ["-lvR"]
    assert kernel.rules == rules
    assert (tmp_path / "ipnat.rules").stat().st_ino == file.st_ino


@pytest.mark.parametrize("left", [[OLD, NEW_LISTED], [NEW_LISTED, OLD], [OLD], [NEW_LISTED], []])
@pytest.mark.parametrize("target", Target)
def test_install_finishes_what_was_left(left: list[str], target: Target, kernel: Kernel, tmp_path: Path) -> None:
    """From any state of a flip that was killed: exactly the right rule, and never none where there was one."""
    kernel.rules = [*SITE[:4], *left, *SITE[4:]]
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": target})
    assert [rule for rule in kernel.rules if rule not in SITE] == [OLD if target is PRIMARY else NEW_LISTED]
    assert current(redirect, WEB) is target
    assert all(serving(entry["rules"], WEB) for entry in kernel.history if left)


def test_own_rules_of_former_services_go(kernel: Kernel, tmp_path: Path) -> None:
    """A service that left the config, or changed its servers, leaves nothing behind."""
    _redirect(kernel.path, tmp_path, (WEB, FAR_SIX)).install({"web": PRIMARY, FAR_SIX.name: STANDBY})
    moved = replace(WEB, primary=Endpoint("10.0.0.77", 80))
    redirect = _redirect(kernel.path, tmp_path, (moved,))
    redirect.install({"web": PRIMARY})
    ours = [rule for rule in kernel.rules if rule not in SITE]
    assert ours == ["rdr epair0a 192.0.2.10/32 port 80 -> 10.0.0.77/32 port 80 tcp tag cfo.web"]


def test_a_rule_of_the_site_that_is_before_ours_is_told_and_left(kernel: Kernel, tmp_path: Path) -> None:
    """Same address and port without our mark: not ours to remove, even where it points to the right server."""
    theirs = OLD.replace(" tag cfo.web", "")
    kernel.rules = [theirs, *SITE]
    redirect = _redirect(kernel.path, tmp_path, (WEB, DNS))
    with pytest.raises(RedirectError) as caught:
        redirect.install({"web": PRIMARY, "dns": STANDBY})
    assert f"web: another rule is before ours and takes the traffic: [{theirs}]: remove it" in str(caught.value)
    assert current(redirect, WEB) is None
    assert theirs in kernel.rules
    kernel.rules = [rule for rule in kernel.rules if rule != theirs]
    assert current(redirect, WEB) is PRIMARY, "ours was waiting behind it"


def test_one_service_that_cannot_have_its_rule_does_not_keep_others_from_theirs(kernel: Kernel, tmp_path: Path) -> None:
    """The others are installed, then the fault is told."""
    kernel.rules = [OLD.replace(" tag cfo.web", ""), *SITE]
    redirect = _redirect(kernel.path, tmp_path, (WEB, FAR, SIX))
    with pytest.raises(RedirectError, match=r"^web: another rule"):
        redirect.install({"web": PRIMARY, "far": STANDBY, "web-six": STANDBY})
    assert [current(redirect, service) for service in (WEB, FAR, SIX)] == [None, STANDBY, STANDBY]


@pytest.mark.parametrize("left", [NEW_LISTED, NEW_LISTED.replace("cfo.web", "cfo.gone")])
def test_somebody_else_removes_what_install_was_about_to(left: str, kernel: Kernel, tmp_path: Path) -> None:
    """A left-over that is gone already, of this service or of a former one, is no fault."""
    kernel.rules = [*SITE, OLD, left]
    redirect = _redirect(kernel.path, tmp_path)
    kernel.fault("-r -p -f -", "lose", word=left)
    redirect.install({"web": PRIMARY})
    assert [rule for rule in kernel.rules if rule not in SITE] == [OLD]


@pytest.mark.parametrize("call", ["-f -", "-r -p -f -"])
def test_an_install_that_fails_says_in_the_file_what_the_kernel_does(call: str, kernel: Kernel, tmp_path: Path) -> None:
    """The services that could be moved are in it with the new target, the one that could not with the old one."""
    redirect = _redirect(kernel.path, tmp_path, (WEB, FAR))
    redirect.install({"web": PRIMARY, "far": PRIMARY})
    kernel.fault(call, "say", exit=1, err="60006:1:ioctl: need write permissions to change NAT rules\n")
    with pytest.raises(RedirectError, match="read-only for us"):
        redirect.install({"web": STANDBY, "far": STANDBY})
    text = (tmp_path / "ipnat.rules").read_text()
    assert (text.count("cfo.web\n"), text.count("port 8080 tcp tag cfo.web\n")) == (1, 1)
    assert text.count("port 8081 tcp tag cfo.far\n") == 1
    assert (current(redirect, WEB), current(redirect, FAR)) == (PRIMARY, STANDBY)


def test_a_flip_by_install_frees_clients_too(kernel: Kernel, tmp_path: Path, poked: list[Any]) -> None:
    """What is tried again after a failed flip does the same repair."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    kernel.connect(WEB, "192.0.2.7", 1001)
    kernel.connect(WEB, "192.0.2.7", 1002, answered=0)
    redirect.install({"web": STANDBY})
    assert (redirect.forget_unanswered(WEB, PRIMARY), redirect.free_stranded(WEB, PRIMARY)) == (1, 1)
    assert kernel.sessions == []


# ---------------------------------------------------------------- version 4


def test_version_4_has_no_tags_and_no_purge(tmp_path: Path, poked: list[Any]) -> None:
    """Own rules are known by the config's addresses; sessions stay, which is told and not hidden."""
    kernel = Kernel(tmp_path / "bin", ("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.9 port 80 udp",), version=4)
    redirect = _redirect(kernel.path, tmp_path, (WEB, FAR), version=4)
    redirect.install({"web": PRIMARY, "far": PRIMARY})
    kernel.connect(WEB, "192.0.2.7", 1001)
    kernel.connect(WEB, "192.0.2.7", 1002, answered=0)
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is STANDBY
    with pytest.raises(RedirectError, match=r"1 connections in the making stay with the old server: .* 'ipnat -F'"):
        redirect.forget_unanswered(WEB, PRIMARY)
    with pytest.raises(RedirectError, match="1 open connections stay with the old server"):
        redirect.free_stranded(WEB, PRIMARY)
    redirect.wire(WEB, Wiring(PRIMARY, PRIMARY.other))
    assert current(redirect, WEB) is PRIMARY
    assert kernel.rules[0].startswith("rdr em0 ")
    assert poked == []
    assert kernel.refused == ""


# ---------------------------------------------------------------- faults in the middle


@pytest.mark.parametrize("call", ["-nf -", "-f -", "-r -p -f -"])
def test_a_flip_that_fails_leaves_the_old_state(call: str, kernel: Kernel, tmp_path: Path) -> None:
    """Whichever call fails: the old rule works, the file at boot has it, and the next flip succeeds."""
    redirect = _redirect(kernel.path, tmp_path, (WEB, DNS))
    redirect.install({"web": PRIMARY, "dns": STANDBY})
    before = (tmp_path / "ipnat.rules").read_bytes()
    kernel.fault(call, "say", exit=1, err="60006:1:ioctl: need write permissions to change NAT rules\n")
    with pytest.raises(RedirectError, match="read-only for us"):
        redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is PRIMARY
    assert (tmp_path / "ipnat.rules").read_bytes() == before
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is STANDBY
    assert current(redirect, DNS) is STANDBY
    assert all(serving(entry["rules"], WEB) for entry in kernel.history[5:])


@pytest.mark.parametrize("call", ["-lvR", "-nf -", "-f -", "-r -p -f -", "-lR"])
def test_a_tool_that_hangs_is_given_up(call: str, kernel: Kernel, tmp_path: Path) -> None:
    """In time, whichever call it is; then the old state stands, and what is left behind does no harm."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    kernel.fault(call, "hang", always=True)
    began = time.monotonic()
    with pytest.raises(RedirectError, match=r"no end within 0\.3 s, given up"):
        _redirect(kernel.path, tmp_path, timeout=0.3).wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert time.monotonic() - began < 6.0
    for pid in (kernel.directory / "hanging").read_text().split():
        with pytest.raises(ProcessLookupError):  # killed, and no zombie of it is left
            os.kill(int(pid), 0)
    kernel.heal()
    redirect.install({"web": PRIMARY})
    assert [rule for rule in kernel.rules if rule not in SITE] == [OLD]


def test_a_tool_that_hangs_after_its_work_has_flipped(kernel: Kernel, tmp_path: Path, poked: list[Any]) -> None:
    """The kernel is asked, not guessed at: the new rule works, so this was a flip, and clients are freed."""
    redirect = _redirect(kernel.path, tmp_path, timeout=0.7)
    redirect.install({"web": PRIMARY})
    kernel.connect(WEB, "192.0.2.7", 1001)
    kernel.fault("-r -p -f -", "hang after")
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is STANDBY
    assert redirect.free_stranded(WEB, PRIMARY) == 1


def test_a_tool_that_only_says_yes_is_found_out(kernel: Kernel, tmp_path: Path) -> None:
    """Exit 0 and nothing done: reading back finds it, and the old state stands."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    kernel.fault("-f -", "pretend")
    kernel.fault("-r -p -f -", "pretend")
    with pytest.raises(RedirectError, match="web: ipnat took the rule for the standby, and the kernel does not have"):
        redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is PRIMARY


@pytest.mark.parametrize("word", ["10.0.0.1/32 port 8080 tcp tag", "10.0.0.2/32"])
def test_a_rule_that_another_hand_takes_away_meanwhile(word: str, kernel: Kernel, tmp_path: Path) -> None:
    """The old one: it is gone already, fine. The new one: the flip has failed, and the old rule is put back."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    kernel.fault("-r -p -f -", "lose", word=word)
    if "10.0.0.1" in word:
        redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
        assert current(redirect, WEB) is STANDBY
    else:
        with pytest.raises(RedirectError, match="the kernel does not have it"):
            redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
        assert current(redirect, WEB) is PRIMARY


def test_a_tool_that_is_not_there(tmp_path: Path) -> None:
    """Named with the key that says where it is."""
    redirect = _redirect(tmp_path / "nowhere", tmp_path)
    with pytest.raises(RedirectError, match=r"nowhere: cannot run: No such file.*\[controller.ipfilter\] ipnat"):
        redirect.install({"web": PRIMARY})


def test_how_the_tool_is_run(tmp_path: Path) -> None:
    """By its absolute path, with LC_ALL=C and nothing of our own environment, and the rule ends in a newline."""
    told = tmp_path / "told"
    tool = tmp_path / "ipnat"
    tool.write_text(f'#!/bin/sh\n{{ echo "$0 $*"; env; cat; }} >>{told}\necho "List of active MAP/Redirect filters:"\n')
    tool.chmod(0o755)
    os.environ["SECRET_OF_OURS"] = "x"
    try:
        with pytest.raises(RedirectError):
            _redirect(tool, tmp_path).wire(WEB, Wiring(STANDBY, STANDBY.other))
    finally:
        del os.environ["SECRET_OF_OURS"]
    text = told.read_text()
    assert f"{tool} -nf -\n" in text
    assert "\nLC_ALL=C\n" in text
    assert "SECRET_OF_OURS" not in text
    assert f"{NEW}\n" in text


# ---------------------------------------------------------------- the file at boot


def test_the_file_at_boot_has_what_the_kernel_has(kernel: Kernel, tmp_path: Path) -> None:
    """Loaded into an empty kernel it makes the same rules; the site's own lines around ours stay, byte for byte."""
    file = tmp_path / "ipnat.rules"
    file.write_bytes(b"# ours since 1999, caf\xe9\r\nmap em1 10.0.0.0/8 -> 0/32\n")
    file.chmod(0o640)
    redirect = _redirect(kernel.path, tmp_path, ALL)
    redirect.install(dict.fromkeys((one.name for one in ALL), PRIMARY))
    file.write_bytes(file.read_bytes() + b"bimap em1 10.0.0.9/32 -> 192.0.2.99/32")
    redirect.wire(SIX, Wiring(STANDBY, STANDBY.other))
    before, _, rest = file.read_bytes().partition(BEGIN)
    block, _, after = rest.partition(END)
    assert before == b"# ours since 1999, caf\xe9\r\nmap em1 10.0.0.0/8 -> 0/32\n"
    assert after == b"bimap em1 10.0.0.9/32 -> 192.0.2.99/32"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    booted = Kernel(tmp_path / "booted")
    for line in block.decode().splitlines():
        subprocess.run([booted.path, "-f", "-"], input=line + "\n", text=True, check=True)
    assert sorted(booted.rules) == sorted(rule for rule in kernel.rules if rule not in SITE)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_file_at_boot_is_on_the_disk_before_it_has_its_name(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is flushed while the old one still has the name, then the directory; then the old rule goes."""
    flushed: list[tuple[int, bool, bool]] = []
    file = tmp_path / "ipnat.rules"
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    really = os.fsync

    def fsync(handle: int) -> None:
        flushed.append((os.fstat(handle).st_ino, "10.0.0.2" in file.read_text(), OLD in kernel.rules))
        really(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert flushed == [(file.stat().st_ino, False, True), (tmp_path.stat().st_ino, True, True)]


def test_damaged_marks_are_never_guessed_at(kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The flip stands, the file stays as it is, and both the log and the flip's report say so."""
    file = tmp_path / "ipnat.rules"
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    damaged = file.read_bytes().replace(END, b"")
    file.write_bytes(damaged)
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is STANDBY
    with pytest.raises(RedirectError, match=r"ipnat.rules: the marks of our block are damaged \(1 BEGIN, 0 END\)"):
        redirect.free_stranded(WEB, PRIMARY)
    assert file.read_bytes() == damaged
    assert "the marks of our block are damaged" in caplog.text


def test_a_file_that_cannot_be_written_does_not_hold_a_flip_up(kernel: Kernel, tmp_path: Path) -> None:
    """Clients go to the standby; that the next boot would begin with the old rule is told."""
    redirect = _redirect(kernel.path, tmp_path, rules=str(tmp_path / "missing" / "ipnat.rules"))
    redirect.install({"web": PRIMARY})
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    assert current(redirect, WEB) is STANDBY
    with pytest.raises(
        RedirectError, match=r"ipnat.rules: cannot write: .*after a reboot the redirect would be the old"
    ):
        redirect.free_stranded(WEB, PRIMARY)
    (tmp_path / "missing").mkdir()
    redirect.wire(WEB, Wiring(PRIMARY, PRIMARY.other))
    assert redirect.free_stranded(WEB, STANDBY) == 0
    assert OLD.replace("/32 port 8080", " port 8080") in (tmp_path / "missing" / "ipnat.rules").read_text()


# ---------------------------------------------------------------- killed


def _killed_at(number: int, redirect: Redirect) -> bool:
    """Flip in a process of its own that dies just before its ``number``-th step; whether it got that far.

    A step is whatever leaves the process: opening a file to write, a rename, a start of ipnat.
    """
    child = os.fork()
    if child == 0:
        steps = 0

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal steps
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.truncate", "os.chmod", "subprocess.Popen"):
                steps += 1
                if steps == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _assert_sound(kernel: Kernel, tmp_path: Path, finish: bool, restart: bool = True) -> None:
    """What must hold whenever a flip is killed, and that the next call, a restart's or an order, finishes the job."""
    text = (tmp_path / "ipnat.rules").read_text()
    block = text[text.index(BEGIN.decode()) + len(BEGIN) : text.index(END.decode())]
    assert block in (OLD.replace("1/32", "1") + "\n", NEW + "\n"), "the file at boot is whole: the old rule or the new"
    again, target = _redirect(kernel.path, tmp_path), STANDBY if finish else PRIMARY
    if restart:
        again.install({"web": target})
    else:
        again.wire(WEB, Wiring(target, target.other))
    assert current(again, WEB) is target
    assert _ours(kernel.rules) == [NEW_LISTED if finish else OLD]
    _assert_never_without(kernel)


def _assert_never_without(kernel: Kernel) -> None:
    """From our first rule on there is never no rule, both at most, and then the one that was there before works."""
    states = [entry["rules"] for entry in kernel.history]
    first = next(number for number, rules in enumerate(states) if _ours(rules))
    for before, rules in pairwise(states[first:]):
        ours = _ours(rules)
        assert ours in ([OLD], [NEW_LISTED], [OLD, NEW_LISTED], [NEW_LISTED, OLD])
        assert serving(rules, WEB) == ours[0]
        assert len(ours) == 1 or serving(before, WEB) == ours[0], "the second one waits behind the first"


def _ours(rules: list[str]) -> list[str]:
    return [rule for rule in rules if rule not in SITE]


@pytest.mark.parametrize("restart", [True, False])
def test_killed_before_each_step_of_a_flip(restart: bool, kernel: Kernel, tmp_path: Path) -> None:
    """Killed by SIGKILL before every single step, until a flip gets through: never no rule, both at most, the old one
    then works, and the next call finishes the flip or takes it back."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    number = 1
    while _killed_at(number, redirect):
        _assert_sound(kernel, tmp_path, number % 2 == 0, restart)
        redirect.install({"web": PRIMARY})
        number += 1
    assert number > 6, "list, dry run, add, file, rename, remove, list"
    assert current(redirect, WEB) is STANDBY
    _assert_never_without(kernel)


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize(
    ("call", "left"),
    [("-nf -", [OLD]), ("-f -", [OLD, NEW_LISTED]), ("-r -p -f -", [NEW_LISTED]), ("-lR", [NEW_LISTED])],
)
def test_killed_while_the_tool_runs(call: str, left: list[str], finish: bool, kernel: Kernel, tmp_path: Path) -> None:
    """The redirector dies right after the kernel was changed and before it hears of it."""
    redirect = _redirect(kernel.path, tmp_path)
    redirect.install({"web": PRIMARY})
    kernel.fault(call, "kill caller")
    assert _killed_at(1000, redirect)
    assert _ours(kernel.rules) == left
    _assert_sound(kernel, tmp_path, finish)


# ---------------------------------------------------------------- nothing of Linux

BLOCKED = """
    import socket, sys

    for name in ("AF_NETLINK", "AF_PACKET", "SO_MARK", "SO_PEERCRED", "PACKET_OUTGOING"):
        assert hasattr(socket, name)
        delattr(socket, name)

    class Block:
        def find_spec(self, name, path=None, target=None):
            if "ipfilter" in name:
                return
            if name.split(".")[-1] in ("nft", "conntrack", "nftables", "poke", "ruleset", "capture", "scapy"):
                raise ImportError(f"{name} is for Linux")

    sys.meta_path.insert(0, Block())
    from pathlib import Path
    from check_failover.config import load
    from check_failover.model import Target
    from check_failover.redirector import REDIRECTS, Wiring, current, daemon, steering

    config = load(sys.argv[1])
    redirect = REDIRECTS[config.controller.redirect](config)
    steering.Steering(config, redirect, lambda event: None).restore()
    service = config.services[0]
    redirect.wire(service, Wiring(Target.STANDBY, Target.PRIMARY))
    redirect.forget_unanswered(service, Target.PRIMARY), redirect.free_stranded(service, Target.PRIMARY)
    redirect.wired((service,)), redirect.activity((service,)), redirect.forget(service, "192.0.2.7", 1)
    print(current(redirect, service))
    try:
        REDIRECTS["nftables"](config)
    except ImportError as error:
        print(error)
"""


def _config_file(kernel: Kernel, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        textwrap.dedent(f"""
        [controller]
        redirect = "ipfilter"
        client_interface = "epair0a"
        run_dir = "{tmp_path}/run"
        state_dir = "{tmp_path}/state"
        [controller.ipfilter]
        ipnat = "{kernel.path}"
        rules = "{tmp_path}/ipnat.rules"
        [[service]]
        name = "web"
        host = "www"
        protocol = "tcp"
        address = "192.0.2.10"
        port = 80
        primary = "10.0.0.1:8080"
        standby = "10.0.0.2:8081"
        [service.check]
        type = "tcp"
        """)
    )
    return path


def test_nothing_of_linux_is_needed(kernel: Kernel, tmp_path: Path) -> None:
    """With the names and modules of Linux taken away the redirect and the redirector's own modules work."""
    program = textwrap.dedent(BLOCKED)
    done = subprocess.run(
        [sys.executable, "-c", program, _config_file(kernel, tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=30,
    )
    assert done.stdout == "standby\ncheck_failover.redirector.nftables is for Linux\n", done.stderr


def test_the_config_knows_the_keys(kernel: Kernel, tmp_path: Path) -> None:
    """``[controller.ipfilter]`` is read, and a wrong key or version is refused by its path."""
    path = _config_file(kernel, tmp_path)
    assert load(path).controller.ipfilter == {"ipnat": str(kernel.path), "rules": str(tmp_path / "ipnat.rules")}
    good = path.read_text()
    for bad, where in (('version = 3\nipnat = "', "$.controller.ipfilter.version"), ('x = "', "unknown key 'x'")):
        path.write_text(good.replace('ipnat = "', bad, 1))
        with pytest.raises(Exception, match=where.replace("$", r"\$")):
            load(path)


def test_what_a_rescue_may_expect(kernel: Kernel, tmp_path: Path) -> None:
    """No single session can be removed: ``forget`` always says no; nothing is withheld, no server is dead."""
    redirect = _redirect(kernel.path, tmp_path)
    assert redirect.forget(WEB, "192.0.2.7", 1001) is False
    assert kernel.history == []
    redirect.install({"web": PRIMARY})
    redirect.wire(WEB, Wiring(STANDBY, PRIMARY))
    assert redirect.wired((WEB,)) == {"web": Wiring(STANDBY, None, withheld=None)}


def test_activity_goes_on_over_a_flip(kernel: Kernel, tmp_path: Path, poked: list[Any]) -> None:
    """Packets of clients and of servers add up; a dead server shows requests without replies; a flip loses none."""
    redirect = _redirect(kernel.path, tmp_path, (WEB, DNS))
    redirect.install({"web": PRIMARY, "dns": PRIMARY})
    kernel.connect(WEB, "192.0.2.7", 1001, asked=5, answered=4)
    kernel.connect(DNS, "192.0.2.7", 1002, asked=1, answered=1)
    counted = [redirect.activity([WEB])["web"]]
    kernel.connect(WEB, "192.0.2.7", 1001, asked=3, answered=0)
    counted.append(redirect.activity([WEB])["web"])
    redirect.wire(WEB, Wiring(STANDBY, STANDBY.other))
    counted.append(redirect.activity([WEB])["web"])
    kernel.connect(WEB, "192.0.2.7", 1003, asked=2, answered=2)
    counted.append(redirect.activity([WEB])["web"])
    assert [(one.asked, one.answered) for one in counted] == [(5, 4), (8, 4), (8, 4), (10, 6)]
    assert tag_of("web") == "cfo.web"
