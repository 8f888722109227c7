"""The journal's entries and the redirector's status as JSON: as earlier versions wrote them, and strict but total."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover import story
from check_failover.admin import reports, show
from check_failover.checks.redirect import judge
from check_failover.config import load
from check_failover.model import Detector, Facts, State, Target
from check_failover.records import (
    Caller,
    DrillPart,
    JournalEntry,
    RecordError,
    ServiceStatus,
    from_json,
    journal_entries,
    service_statuses,
    to_json,
)
from check_failover.redirector.journal import Journal
from check_failover.redirector.report import fail_back_state, outcome, redirect_state
from tests.unit.test_transports_remote import GOOD

# Written by version 0.1.0 itself: one run of each verb, an error and a drill among them.
FIXTURES = Path(__file__).parents[1] / "fixtures" / "records"
LINES: list[dict[str, Any]] = [json.loads(line) for line in (FIXTURES / "journal-0.1.jsonl").read_text().splitlines()]
STATUS: dict[str, Any] = json.loads((FIXTURES / "status-0.1.json").read_text())
VERBS = {
    "fail-over", "fail-back", "drain", "drained", "hold", "release", "downtime", "restore", "drill", "drill-end",
    "follow", "resume",
}  # fmt: skip


def as_before(now: Any, then: Any) -> Any:
    """``now`` without the keys that a later version added, in the order it has them."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {key: as_before(value, then[key]) for key, value in now.items() if key in then}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [as_before(one, other) for one, other in zip(now, then, strict=True)]
    return now


def test_the_fixture_has_every_verb() -> None:
    """Flips, refusals, an error, and what happens without an order."""
    assert {line["verb"] for line in LINES} == VERBS
    assert {True, False} == {line["flipped"] for line in LINES if line["verb"] == "fail-over"}
    assert "error" in {line["reason"] for line in LINES}


@pytest.mark.parametrize("line", LINES, ids=[f"{line['verb']}-{line['reason']}" for line in LINES])
def test_a_line_of_an_earlier_version_is_read_whole_and_written_as_it_was(line: dict[str, Any]) -> None:
    """Each key is known, and the JSON is the same for the scripts of others, down to the keys' order."""
    entry = from_json(JournalEntry, line)
    assert json.dumps(as_before(json.loads(json.dumps(to_json(entry))), line)) == json.dumps(line)


def test_what_a_flip_and_a_drill_were_read_as() -> None:
    """The fields by name, not only the way there and back."""
    flip = next(entry for entry in (from_json(JournalEntry, line) for line in LINES) if entry.flipped)
    assert (flip.service, flip.verb, flip.by, flip.reason) == ("ldap", "fail-over", "nagios", "flip")
    assert (flip.from_, flip.to, flip.peer) == (Target.PRIMARY, Target.STANDBY, Caller(4242, 118))
    assert (flip.forgotten, flip.freed, flip.left, flip.error) == (1, 3, None, None)
    assert flip.facts == Facts(Detector.REFUSED, 2, 2, 8, 0, standby_ok=True, sync_age=7.4, evidence=1764082714123)
    (end,) = (from_json(JournalEntry, line) for line in LINES if line["verb"] == "drill-end")
    assert end.parts is not None
    assert [(name, part.uid, part.problem) for name, part in end.parts.items()] == [
        ("handler", 118, None),
        ("notification", 118, "no contact"),
    ]


def test_the_status_of_an_earlier_version() -> None:
    """The same for a status, with a drill, a hold, the checklist, and the journal's entries in it."""
    found = service_statuses(STATUS)
    for name, raw in STATUS["services"].items():
        assert as_before(json.loads(json.dumps(to_json(found[name]))), raw) == raw
    drilled, moved = found["ldap"], found["again"]
    assert drilled.drill is not None
    assert drilled.drill.parts["handler"] == DrillPart(drilled.drill.parts["handler"].at, 118)
    assert (moved.state, moved.target, moved.kernel) == (State.WARNING, Target.STANDBY, Target.STANDBY)
    assert moved.hold is not None
    assert moved.hold.by == "eve"
    assert moved.flip is not None
    assert moved.flip.to is Target.STANDBY


def test_a_damaged_line_hides_no_other(tmp_path: Path) -> None:
    """Cut short, of another shape, out of range, too deep: left out; what an unknown key says is ignored."""
    good = LINES[2]
    bad = [
        b'{"id": "1", "at"', b"[]", b"7", b"null", b"", b"\xff\xfe", b"[" * 100000,
        json.dumps({**good, "at": "now"}).encode(), json.dumps({**good, "at": float("nan")}).encode(),
        json.dumps({**good, "at": 1e300}).encode(), json.dumps({**good, "to": "both"}).encode(),
        json.dumps({**good, "peer": {"pid": 10**25, "uid": 0}}).encode(),
        json.dumps({**good, "took": 7.5}).replace("7.5", "1e400").encode(),
        json.dumps({**good, "facts": {"probes": "2"}}).encode(),
        json.dumps({key: value for key, value in good.items() if key != "service"}).encode(),
    ]  # fmt: skip
    lines = [*bad, json.dumps({**good, "of_a_later_version": {"x": 1}}).encode()]
    (tmp_path / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for _ in range(2):
        assert Journal(tmp_path / "journal.jsonl").read(100) == [from_json(JournalEntry, good)]
    aside = (tmp_path / "journal.jsonl.damaged").read_bytes().splitlines()
    assert sorted(aside) == sorted(line for line in bad if line), "each once, for a person"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("at", "now", "Expected `float`, got `str` - at `$.at`"),
        ("at", True, "Expected `float`, got `bool` - at `$.at`"),
        ("at", -1.0, "Expected `float` >= 0.0 - at `$.at`"),
        ("flipped", 1, "Expected `bool`, got `int` - at `$.flipped`"),
        ("to", "both", "Invalid enum value 'both' - at `$.to`"),
        ("peer", {"pid": 1}, "Object missing required field `uid` - at `$.peer`"),
        ("peer", {"pid": 1, "uid": -1}, "Expected `int` >= 0 - at `$.peer.uid`"),
        ("peer", [], "Expected `object | null`, got `array` - at `$.peer`"),
        ("by", None, "Expected `str`, got `null` - at `$.by`"),
        ("parts", {"handler": {"at": 1, "uid": "x"}}, "Expected `int`, got `str` - at `$.parts[...].uid`"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(key: str, value: object, said: str) -> None:
    """One line: which value, what was wanted, what type was there."""
    with pytest.raises(RecordError, match=f"^{re.escape(said)}$"):
        from_json(JournalEntry, {**LINES[0], key: value})


def test_a_status_of_another_kind_says_what_to_do() -> None:
    """A plugin or ``failoverctl`` that talks to a redirector it does not understand ends with one line."""
    for services in (None, [], {"ldap": []}, {"ldap": {"target": "primary"}}, {"ldap": {"target": 1, "kernel": None}}):
        with pytest.raises(
            RecordError, match=r"^failover-redirector's status is not understood: services.*restart it$"
        ):
            service_statuses({"services": services})


ANYTHING = st.recursive(  # ``control.parse`` lets nothing in that is not finite
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([1e300, 1 << 70]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(LINES), st.dictionaries(st.sampled_from(sorted(LINES[2])), ANYTHING, max_size=4))
def test_an_entry_is_refused_or_can_be_used(line: dict[str, Any], changes: dict[str, object]) -> None:
    """Whatever stands in a line: RecordError and nothing else, or an entry that everything can print."""
    try:
        entry = from_json(JournalEntry, {**line, **changes})
    except RecordError:
        return
    service = load(GOOD).service("ldap")
    printed = [
        *story.done(entry),
        *show.entry(entry),
        reports.html(entry, [entry], None, None, []),
        outcome(service, entry),
    ]
    "\n".join(printed).encode()
    assert journal_entries(json.loads(json.dumps([to_json(entry)]))) == [entry]


@given(
    st.sampled_from(sorted(STATUS["services"])),
    st.dictionaries(st.sampled_from([one.name for one in fields(ServiceStatus)]), ANYTHING, max_size=4),
)
def test_a_status_is_refused_or_can_be_used(name: str, changes: dict[str, object]) -> None:
    """The same for a status."""
    try:
        status = from_json(ServiceStatus, {**STATUS["services"][name], **changes})
    except RecordError:
        return
    judge({**STATUS["services"][name], **changes})
    redirect_state(status)
    fail_back_state(status)
    "\n".join(show.status(load(GOOD).service("ldap"), status, None, None, 2e9)).encode()
