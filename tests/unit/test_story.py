"""What people are told of an incident: whole, in order, bounded, and true to the evidence and the journal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover.config import load
from check_failover.model import Detector, Facts, PassiveResult, State, Target
from check_failover.records import JournalEntry, ServiceStatus
from check_failover.redirector.report import detail_lines
from check_failover.story import MAX_LINE_BYTES, MAX_LINES, done, further, seen, way_back
from check_failover.transports import SIZE, output
from check_failover.transports.command_file import PIPE_BUF, command
from tests.unit.test_incident import ENTRY, STORY
from tests.unit.test_transports_remote import GOOD

FACTS = Facts(Detector.REFUSED, probes=2, probes_failed=2, requests=8, replies=0, standby_ok=True, sync_age=7.4)
FLIP = replace(ENTRY, line="ldap: primary -> standby (gone)", facts=FACTS, freed=3, forgotten=0)
REFUSED = JournalEntry(
    "9", 1000.0, "ldap", "fail-over", "nagios", line="ldap: fail-over: held by eve: disks", reason="hold",
    text="held by eve: disks", facts=replace(FACTS, standby_ok=None, sync_age=None),
)  # fmt: skip
STATUS = ServiceStatus(Target.PRIMARY, Target.PRIMARY)


def test_what_was_seen_and_probed() -> None:
    lines = seen(STORY)
    assert lines[:2] == ["suspicion: refused: connection refused", "from the first victim to the verdict: 0.200 s"]
    assert lines[2].startswith("probe of the primary: failed after 0.001 s: ")


def test_what_was_done_and_on_which_facts() -> None:
    """A flip: who, how fast, what became of open connections, the facts; only what was looked at, and where is more."""
    lines = done(FLIP)
    assert lines[0].endswith(" ldap: primary -> standby (gone)")
    assert lines[1:] == [
        "ordered by nagios, took 20 ms, open connections reset: 3",
        "seen: no useful reply to 8 of 8 requests (refused)",
        "the primary failed 2 of 2 probes, the standby passed its probe",
        "the standby's data was 7 s old",
        "more: failoverctl history --show 7",
    ]


def test_a_refusal_says_its_reason() -> None:
    lines = done(REFUSED)
    assert lines[0].endswith(" fail-over refused, hold: held by eve: disks")
    assert "the primary failed 2 of 2 probes" in lines


def test_a_flip_that_failed() -> None:
    """The kernel did not do it: its own words, not the reason's name."""
    assert done(replace(REFUSED, reason="error", line="ldap: flip failed: no nft"))[0].endswith("flip failed: no nft")


@pytest.mark.parametrize(
    ("changes", "first", "last"),
    [
        ({}, None, "tcp 192.0.2.10:389: primary 10.0.0.11:389, standby 10.0.0.12:1389"),
        ({"target": Target.STANDBY, "flip": FLIP, "last": REFUSED}, "primary -> standby", way_back("ldap")),
        ({"last": REFUSED}, "refused, hold", "more: failoverctl history --show 9"),
        ({"last": REFUSED, "pending": "hold"}, "refused, hold", "when that has changed and the fault still stands"),
        ({"target": Target.STANDBY}, None, way_back("ldap")),
    ],
)
def test_what_the_redirect_tells(changes: dict[str, Any], first: str | None, last: str) -> None:
    """On the standby the flip that led there, whatever was refused since; a refusal on the primary, and what to do."""
    lines = detail_lines(load(GOOD).service("ldap"), replace(STATUS, **changes))
    assert lines[0].startswith("tcp 192.0.2.10:389")
    assert last in lines[-1]
    assert first is None or first in lines[1]


def test_the_page_of_an_incident_is_linked() -> None:
    """Of a flip and of a refused fail-over, just above the way back; a hold has no page."""
    service = load(GOOD).service("ldap")
    lines = detail_lines(service, replace(STATUS, target=Target.STANDBY, flip=FLIP), "https://c.example.org/reports/")
    assert lines[-2] == "report: https://c.example.org/reports/7.html"
    assert detail_lines(service, replace(STATUS, last=REFUSED), "/r")[-1] == "report: /r/9.html"
    hold = replace(REFUSED, verb="hold", reason="hold")
    assert "report" not in "\n".join(detail_lines(service, replace(STATUS, last=hold), "/r"))


@given(st.lists(st.text(max_size=600), max_size=40), st.text(max_size=80))
def test_further_lines_are_bounded_and_the_last_one_arrives(lines: list[str], end: str) -> None:
    """Whatever servers said: never so much that a way to the core cuts off the end, and nothing that is perfdata."""
    text = further([*lines, end, way_back("ldap")])
    assert len(text.splitlines()) <= MAX_LINES
    assert all(0 < len(line.encode()) <= MAX_LINE_BYTES for line in text.split("\n"))
    assert "|" not in text
    result = PassiveResult("h" * 60, "ldap redirect", State.WARNING, "x" * 300, 0.0, text, "standby=1 held=0")
    assert way_back("ldap") in output(result, 100.0)
    assert len(output(result, 100.0).encode()) < SIZE
    assert way_back("ldap").encode() in command(result)
    assert len(command(result)) < PIPE_BUF
