"""A bit that changed in a key's name: the value must not read as missing, as if it had never been set."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from check_failover import syncstate
from check_failover.damping import Damping
from check_failover.model import Hold, State, Target
from check_failover.reach import derived
from check_failover.records import Drain, RecordError
from check_failover.redirector import state
from check_failover.redirector.state import ServiceState, StateError
from check_failover.syncstate import Digests, Phase, Problem, Refusal, Running, Size, SyncDirection, SyncState

NOW = time.time()
RECORD = SyncState(
    equal_at=NOW - 10,
    size=Size(10, 20000, 7),
    digests=Digests("ab", ""),
    running=Running(4711, NOW - 5, SyncDirection.FORWARD, Phase.SWITCH, NOW + 25),
    problem=Problem(NOW - 50, Refusal.FAILED, "x"),
)
SAVED = ServiceState(
    Target.STANDBY, NOW - 9, Hold("me", NOW, "x"), "hold", Drain(Target.PRIMARY, NOW - 9), Damping(1000.0, NOW),
    reached=derived(Target.STANDBY, NOW - 9), generation=5,
)  # fmt: skip


def flipped_keys(text: str) -> Iterator[str]:
    """The text with the lowest bit of each letter of each key changed, one at a time; and without each key."""
    for key in re.finditer(r'"([a-z_]+)": ', text):
        for at in range(key.start(1), key.end(1)):
            yield text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]


def test_each_key_of_a_sync_record(tmp_path: Path) -> None:
    """UNKNOWN with the reason; the run in progress and the problem are not forgotten silently."""
    syncstate.directory(tmp_path).mkdir()
    path = syncstate.directory(tmp_path) / "ldap.json"
    for text in flipped_keys(syncstate.dump(RECORD)):
        path.write_text(text)
        level, said = syncstate.judge(syncstate.read(tmp_path, "ldap"), NOW, 600, 1800)
        assert level is State.UNKNOWN, text
        assert "ldap.json: damaged: " in said


@pytest.mark.parametrize("key", ["equal_at", "synced_back", "running", "problem"])
def test_a_sync_record_without_a_key_that_every_version_writes(tmp_path: Path, key: str) -> None:
    """It was not written by any."""
    syncstate.directory(tmp_path).mkdir()
    raw = {name: one for name, one in json.loads(syncstate.dump(RECORD)).items() if name != key}
    (syncstate.directory(tmp_path) / "ldap.json").write_text(json.dumps(raw))
    assert syncstate.read(tmp_path, "ldap").damaged


def test_an_earlier_versions_record_is_read(tmp_path: Path) -> None:
    """Without the keys that came later."""
    syncstate.directory(tmp_path).mkdir()
    later = {"skew", "digests", "kept", "note"}
    raw = {name: one for name, one in json.loads(syncstate.dump(RECORD)).items() if name not in later}
    (syncstate.directory(tmp_path) / "ldap.json").write_text(json.dumps(raw))
    found = syncstate.read(tmp_path, "ldap")
    assert (found.damaged, found.problem) == (None, RECORD.problem)


def test_the_other_controllers_newer_record_is_taken() -> None:
    """Of a message; ``peer_record.keep`` writes what this version knows."""
    text = json.dumps({**json.loads(syncstate.dump(RECORD)), "new": 1})
    assert syncstate.parse(text) == RECORD
    with pytest.raises(RecordError, match="no such key: 'new'"):
        syncstate.parse(text, own=True)


def test_each_key_of_the_redirectors_state(tmp_path: Path) -> None:
    """A hold whose name is damaged would be a hold that nobody set. An earlier version's keys are read."""
    whole = json.dumps(asdict(SAVED))
    for text in flipped_keys(whole):
        (tmp_path / "ldap.json").write_text(text)
        with pytest.raises(StateError, match="state damaged"):
            state.load(tmp_path, "ldap")
    (tmp_path / "ldap.json").write_text(json.dumps({**asdict(SAVED), "flips": 3}))
    assert state.load(tmp_path, "ldap") == SAVED
    old = {name: one for name, one in asdict(SAVED).items() if name in ("target", "since", "hold", "pending")}
    (tmp_path / "ldap.json").write_text(json.dumps({**old, "flips": 3}))
    assert state.load(tmp_path, "ldap") == replace(
        SAVED, drain=None, damping=Damping(), generation=int(NOW * 1000 - 9000)
    )
