"""A sync record that cannot be true is damaged: UNKNOWN, never believed, never a traceback."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from check_failover import syncstate
from check_failover.config import load
from check_failover.model import State
from check_failover.redirector import inquiry
from check_failover.syncstate import Phase, Problem, Refusal, Running, Size, SyncDirection, SyncState
from tests.unit.test_sync_config import with_sync

NOW = time.time()
FULL = SyncState(
    equal_at=NOW - 10,
    took=2.5,
    size=Size(10, 20000, 7),
    synced_back=NOW - 20,
    synced_back_end=NOW - 15,
    skew=-1.5,
    note="not copied: ACLs",
    running=Running(4711, NOW - 5, SyncDirection.FORWARD, Phase.SWITCH, NOW + 25),
    problem=Problem(NOW - 50, Refusal.FAILED, "x"),
)


def judged(tmp_path: Path, text: str) -> tuple[State, str, float | None]:
    """What a reader makes of a record's text."""
    syncstate.directory(tmp_path).mkdir(exist_ok=True)
    (syncstate.directory(tmp_path) / "ldap.json").write_text(text)
    state = syncstate.read(tmp_path, "ldap")
    return *syncstate.judge(state, time.time(), 600, 1800), state.age(time.time())


def changed(path: str, value: Any) -> str:
    """The full record with one value replaced."""
    raw = json.loads(syncstate.dump(FULL))
    *tables, key = path.split(".")
    at = raw
    for table in tables:
        at = at[table]
    at[key] = value
    return json.dumps(raw)


def test_the_full_record_is_believed(tmp_path: Path) -> None:
    """The base of the other tests; written and read back it is the same."""
    assert syncstate.parse(syncstate.dump(FULL)) == FULL
    assert judged(tmp_path, syncstate.dump(replace(FULL, problem=None)))[0] is State.OK


@pytest.mark.parametrize("path", ["equal_at", "synced_back", "synced_back_end", "problem.at", "running.since"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "not JSON"),
        (float("inf"), "not JSON"),
        (float("-inf"), "not JSON"),
        (NOW + 3600, "in the future: compare the controller's clock with it"),
        ("1", "Expected `float"),
        (True, "Expected `float"),
        ([], "Expected `float"),
        ({}, "Expected `float"),
        (-1.0, ">= 0.0"),
        (10**400, "not JSON"),
    ],
)
def test_a_time_that_cannot_be_is_damaged(tmp_path: Path, path: str, value: Any, text: str) -> None:
    """NaN compares with nothing, so it was "0 s ago, OK"; so was a time ahead of the clock."""
    level, said, age = judged(tmp_path, changed(path, value))
    assert level is State.UNKNOWN, said
    assert "ldap.json: damaged: " in said
    assert text in said
    assert age is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("took", "long"),
        ("took", float("nan")),
        ("changed", "no"),
        ("differed_files", 1.5),
        ("sent", -1),
        ("size", [1, 2]),
        ("size", {"files": 1}),
        ("size.files", "10"),
        ("size.entries", True),
        ("note", 5),
        ("skew", "x"),
        ("direction", 1),
        ("direction", "up"),
        ("running", 5),
        ("running.pid", None),
        ("running.phase", ["switch"]),
        ("running.until", "later"),
        ("problem", "x"),
        ("problem.reason", {}),
        ("problem.text", None),
    ],
)
def test_a_wrong_type_is_damaged(tmp_path: Path, path: str, value: Any) -> None:
    """Each value is checked where it is read; no reader fails later."""
    level, said, _ = judged(tmp_path, changed(path, value))
    assert level is State.UNKNOWN, said
    assert "damaged" in said


@pytest.mark.parametrize("text", ["[" * 100000, '{"size": ' * 50000, "null", '"x"', ""])
def test_what_is_no_object_is_damaged(tmp_path: Path, text: str) -> None:
    """Also nesting that no parser follows."""
    assert judged(tmp_path, text)[0] is State.UNKNOWN


def test_a_time_within_the_slack_is_believed(tmp_path: Path) -> None:
    """Two clocks are never the same."""
    assert judged(tmp_path, syncstate.dump(SyncState(time.time() + syncstate.CLOCK_SLACK / 2)))[0] is State.OK


@pytest.mark.parametrize(
    ("began", "ended", "since", "counts"),
    [
        (1000.0, 2500.0, 900.0, True),  # took 25 minutes; ended a minute ago
        (1000.0, 1500.0, 900.0, False),  # ended too long ago
        (1000.0, 2500.0, 1100.0, False),  # its export began before the flip
        (2000.0, None, 900.0, True),  # a record of an older version
        (1000.0, 9000.0, 900.0, False),  # from a clock that was wrong
    ],
)
def test_a_long_reverse_run_counts_from_its_end(began: float, ended: float | None, since: float, counts: bool) -> None:
    """Its export must have begun after the flip; its validity begins when it is done."""
    state = SyncState(synced_back=began, synced_back_end=ended)
    assert state.brought_back(since, 2560.0, 900.0) is counts


def test_a_switch_blocks_no_longer_than_its_limit() -> None:
    """``after`` may hang; a run in reverse blocks from its start."""
    switch = Running(1, 0.0, SyncDirection.FORWARD, Phase.SWITCH, until=30.0)
    assert SyncState(running=switch).blocks(29.0)
    assert not SyncState(running=switch).blocks(30.0)
    assert SyncState(running=Running(1, 0.0, SyncDirection.REVERSE, Phase.TRANSFER)).blocks(1e6)


@pytest.mark.parametrize(
    ("skew", "text"),
    [
        (4.9, None),
        (5.1, "the primary's clock is 5 s ahead of the controller's"),
        (-180.0, "the primary's clock is 3 min behind the controller's"),
    ],
)
def test_a_large_skew_is_told(skew: float, text: str | None) -> None:
    """In what Nagios shows of a good run."""
    said = syncstate.judge(SyncState(equal_at=990.0, skew=skew), 1000.0, 600.0, 1800.0)[1]
    assert ("clock" in said) is (text is not None)
    assert text is None or said.endswith(text)


@pytest.mark.parametrize(("key", "asked"), [("required", True), ("unnecessary", False)])
def test_the_fail_back_of_replicating_servers_asks_the_record(tmp_path: Path, key: str, asked: bool) -> None:
    """As ``replicated`` promises: whether the primary has the standby's contextCSN, by a comparison since the flip."""
    config = with_sync(tmp_path, f'method = "syncrepl"\nsync_back = "{key}"\n')
    loaded = load(config)
    controller, service = replace(loaded.controller, state_dir=tmp_path), loaded.services[0]
    since = time.time() - 60
    assert inquiry.synced_back(controller, service, since, planned=True)[0] is (False if asked else None)
    syncstate.directory(tmp_path).mkdir(exist_ok=True)
    state = SyncState(synced_back=since + 30, synced_back_end=since + 31)
    (syncstate.directory(tmp_path) / f"{service.name}.json").write_text(syncstate.dump(state))
    assert inquiry.synced_back(controller, service, since, planned=True)[0] is (True if asked else None)
    assert inquiry.synced_back(controller, service, time.time(), planned=False)[0] is None  # a last resort cannot wait
