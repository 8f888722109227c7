"""The model of tests.chaos.data: which end of a round loses a write; and the sequences it is given."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.data.model import Found, decided, judge
from tests.chaos.data.sequence import FILES, KINDS, Event, generate

ALL = frozenset({1, 2, 3})
OK = "OK: ldap: the standby's data was in step 1 s ago"
DIVIDED = "CRITICAL: ldap: both servers have changed (standby: drain 12:00-12:01): --take … [both-served]"
PLACE = "/srv/data.sync/kept-20260102T030405-standby"


def found(**fields: Any) -> Found:
    """After a good run from the primary, with all there; ``fields`` say what is otherwise."""
    usual = {"serving": "primary", "acknowledged": ALL, "on": {"primary": ALL, "standby": ALL}, "code": 0, "line": OK}
    return Found(**{**usual, "status": "sync: CRITICAL: in step", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"on": {"primary": ALL | {4}, "standby": ALL | {4}}},  # a write whose answer was lost
        {"on": {"primary": ALL | {4}, "standby": ALL}},  # one that arrived after the run's export
        {"on": {"primary": {1, 2}, "standby": ALL}, "code": 2, "line": DIVIDED},
        {"on": {"primary": {1, 2}, "standby": {1, 2}}, "kept": {PLACE: {3}}},
        {"on": {"primary": ALL, "standby": {1}}, "code": 2, "line": DIVIDED},
        {"on": {"primary": {1}, "standby": ALL}, "code": 1, "line": "clients may write to the standby [still-reached]"},
    ],
    ids=["in step", "not acknowledged", "late", "reported", "put aside", "reported, nothing missing", "still reached"],
)
def test_no_write_is_lost(fields: dict[str, Any]) -> None:
    """Where each acknowledged write is served, or in a place that was named, all is as promised."""
    assert judge(found(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"on": {"primary": {1, 2}, "standby": {1, 2}}}, "lost: 1 writes (3)"),
        ({"on": {"primary": {1, 2}, "standby": {1, 2}}, "code": 2, "line": DIVIDED}, "lost: 1 writes (3)"),
        ({"on": {"primary": {1, 2}, "standby": ALL}}, "in silence: the run says OK; 1 writes (3) are on the standby"),
        ({"on": {"primary": ALL, "standby": {1, 2}}}, "only on one server: 1 writes (3)"),
        ({"on": {"primary": ALL, "standby": ALL}, "code": 1, "line": "WARNING: ssh [failed]"}, "neither ends well"),
        (
            {"on": {"primary": {1}, "standby": ALL}, "code": 2, "line": "both have changed [both-served]"},
            "which the run does not name",
        ),
        (
            {"on": {"primary": {1}, "standby": ALL}, "code": 2, "line": DIVIDED, "status": "sync: OK: in step"},
            "failoverctl status: sync: OK",
        ),
    ],
)
def test_a_lost_write_is_seen(fields: dict[str, Any], problem: str) -> None:
    """Each way to lose a write in silence is told."""
    assert any(problem in one for one in judge(found(**fields))), judge(found(**fields))


def test_a_decision_is_carried_out() -> None:
    """After --take nothing may be left to decide."""
    assert decided(found(kept={PLACE: {3}}, on={"primary": {1, 2}, "standby": {1, 2}})) == []
    left = decided(found(on={"primary": {1}, "standby": ALL}, code=2, line=DIVIDED))
    assert any("not carried out" in one for one in left)


def test_a_sequence_is_its_seed() -> None:
    """The same seed, the same round; each event is possible when it comes, and can be read back from its words."""
    seen = set()
    for seed in (*range(1, 800), *range(FILES, FILES + 800)):
        this = generate(seed)
        scene = this.scene
        assert this == generate(seed)
        assert this.kind == ("files" if seed >= FILES else "ldap")
        assert this.pair or not any("split" in one.kind or "other" in one.kind for one in this.events)
        for one in this.events:
            assert KINDS[one.kind].weight(scene, one.what) > 0, one
            assert Event.parse(str(one)) == one
            scene = KINDS[one.kind].effect(scene, one.what)
            seen.add((one.kind, one.what))
    assert seen == {(name, what) for name, kind in KINDS.items() for what in kind.whats}
