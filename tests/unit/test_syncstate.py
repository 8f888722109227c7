"""The sync record: ages, locks, what blocks a flip, what counts as brought back, and damaged files."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from check_failover import syncstate
from check_failover.model import State
from check_failover.syncstate import Phase, Problem, Refusal, Running, Size, SyncDirection, SyncState

FULL = SyncState(
    equal_at=1000.0,
    direction=SyncDirection.REVERSE,
    took=2.5,
    changed=True,
    differed_files=3,
    differed_bytes=4096,
    sent=512,
    size=Size(10, 20000, 7),
    synced_back=1000.0,
    running=Running(4711, 1100.0, SyncDirection.FORWARD, Phase.TRANSFER),
    problem=Problem(1050.0, Refusal.SHRUNK, "only 1 of 10 files left"),
)


def write(state_dir: Path, state: SyncState | str) -> None:
    """Leave a record where failover-sync would."""
    syncstate.directory(state_dir).mkdir(exist_ok=True)
    text = state if isinstance(state, str) else syncstate.dump(state)
    (syncstate.directory(state_dir) / "ldap.json").write_text(text)


def test_a_record_survives_being_written_and_read() -> None:
    """dump and parse are inverse, for the fullest and the emptiest record."""
    assert syncstate.parse(syncstate.dump(FULL)) == FULL
    assert syncstate.parse(syncstate.dump(SyncState())) == SyncState()


def test_a_service_never_synced_has_an_empty_record(tmp_path: Path) -> None:
    """No file is not an error; the age is unknown, not zero."""
    state = syncstate.read(tmp_path, "ldap")
    assert state == SyncState()
    assert state.age(1e9) is None


@pytest.mark.parametrize("length", range(0, 380, 7))
def test_a_truncated_record_is_damaged_never_believed(tmp_path: Path, length: int) -> None:
    """Cut at any byte it gives an unknown age and says which file it was."""
    text = syncstate.dump(FULL)
    assert length < len(text) - 1
    write(tmp_path, text[:length])
    state = syncstate.read(tmp_path, "ldap")
    assert "ldap.json: damaged" in (state.damaged or "")
    assert state.age(1e9) is None


@pytest.mark.parametrize(
    "raw",
    [
        "[]",
        '{"size": 3}',
        '{"running": {}}',
        '{"problem": {"at": 1, "reason": "nonsense", "text": ""}}',
        '{"equal_at": []}',
        '{"direction": "up"}',
    ],
)
def test_a_record_of_another_shape_is_damaged(tmp_path: Path, raw: str) -> None:
    """Valid JSON that is no record is refused without an exception."""
    json.loads(raw)
    write(tmp_path, raw)
    assert syncstate.read(tmp_path, "ldap").damaged is not None


@pytest.mark.parametrize("name", ["ldap.json", "ldap.lock"])
def test_a_fifo_in_a_files_place_stops_nobody(tmp_path: Path, name: str) -> None:
    """Redirector and sniffer read the record all the time; who syncs may be another user."""
    write(tmp_path, FULL)
    path = tmp_path / "sync" / "ldap.json"
    (tmp_path / "sync" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "sync" / name)
    found: list[SyncState] = []
    reader = threading.Thread(target=lambda: found.append(syncstate.read(tmp_path, "ldap")), daemon=True)
    reader.start()
    reader.join(5)
    assert [state.damaged for state in found] == [f"{path}: damaged: not a file" if name == "ldap.json" else None]


def test_the_age_counts_from_the_start_of_the_good_run() -> None:
    """A record a little ahead is a clock's slack; far ahead it is a clock that was wrong, so the age is unknown."""
    state = SyncState(equal_at=1000.0)
    assert state.age(1600.0) == 600.0
    assert state.age(990.0) == 0.0
    assert state.age(900.0) is None


def test_a_run_is_believed_only_while_it_holds_its_lock(tmp_path: Path) -> None:
    """A killed run leaves its record behind; the kernel takes back the lock."""
    write(tmp_path, FULL)
    assert syncstate.read(tmp_path, "ldap").running is None
    fd = os.open(syncstate.directory(tmp_path) / "ldap.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert syncstate.read(tmp_path, "ldap").running == FULL.running
    os.close(fd)
    assert syncstate.read(tmp_path, "ldap").running is None


@pytest.mark.parametrize(
    ("direction", "phase", "blocks"),
    [
        (SyncDirection.FORWARD, Phase.PREPARE, False),
        (SyncDirection.FORWARD, Phase.TRANSFER, False),
        (SyncDirection.FORWARD, Phase.SWITCH, True),
        (SyncDirection.REVERSE, Phase.TRANSFER, True),
        (SyncDirection.REVERSE, Phase.SWITCH, True),
    ],
)
def test_a_transfer_does_not_forbid_a_fail_over(direction: SyncDirection, phase: Phase, blocks: bool) -> None:
    """The standby is whole while its staging directory fills; only the switch itself holds a flip up."""
    assert SyncState(running=Running(1, 0.0, direction, phase)).blocks(0.0) is blocks


@pytest.mark.parametrize(
    ("synced_back", "since", "now", "brought_back"),
    [
        (None, 100.0, 200.0, False),
        (150.0, 100.0, 200.0, True),
        (150.0, None, 200.0, True),
        (50.0, 100.0, 200.0, False),  # before the flip
        (150.0, 100.0, 1051.0, False),  # too long ago: clients went on writing
        (1e6, 100.0, 200.0, False),  # from a clock that was wrong
    ],
)
def test_what_counts_as_brought_back(
    synced_back: float | None, since: float | None, now: float, brought_back: bool
) -> None:
    """A reverse run counts when it began after the flip and not too long ago."""
    assert SyncState(synced_back=synced_back).brought_back(since, now, 900.0) is brought_back


@pytest.mark.parametrize(
    ("state", "level", "text"),
    [
        (SyncState(), State.CRITICAL, "never in step"),
        (SyncState(damaged="x: damaged"), State.UNKNOWN, "x: damaged"),
        (SyncState(equal_at=940.0), State.OK, "in step 60 s ago"),
        (SyncState(equal_at=100.0), State.WARNING, "in step 15 min ago"),
        (SyncState(equal_at=-9000.0), State.CRITICAL, "in step 3 h ago"),
        (
            SyncState(equal_at=940.0, problem=Problem(990.0, Refusal.FAILED, "rsync: x")),
            State.WARNING,
            "60 s ago; rsync: x",
        ),
        (
            SyncState(equal_at=940.0, problem=Problem(990.0, Refusal.SHRUNK, "only 1 left")),
            State.CRITICAL,
            "only 1 left",
        ),
        (SyncState(equal_at=-9000.0, problem=Problem(990.0, Refusal.FAILED, "x")), State.CRITICAL, "3 h ago; x"),
        (SyncState(problem=Problem(990.0, Refusal.FAILED, "x")), State.CRITICAL, "never in step; x"),
        (SyncState(equal_at=-9000.0, problem=Problem(990.0, Refusal.TARGET_STANDBY, "x")), State.OK, "standby serves"),
        (
            SyncState(equal_at=-9000.0, problem=Problem(-900.0, Refusal.TARGET_STANDBY, "x")),
            State.CRITICAL,
            "3 h ago",
        ),
    ],
)
def test_what_nagios_is_told(state: SyncState, level: State, text: str) -> None:
    """Age against both limits; a refused or failed run is at least a warning, a shrunk source is critical."""
    assert syncstate.judge(state, 1000.0, 600.0, 1800.0)[0] is level
    assert text in syncstate.judge(state, 1000.0, 600.0, 1800.0)[1]
