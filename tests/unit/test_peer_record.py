"""The sync record of a pair: the run of either controller counts for both."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from check_failover import syncstate
from check_failover.listening import Server
from check_failover.model import Facts
from check_failover.pair import daemon
from check_failover.redirector import peer_record
from check_failover.syncstate import Phase, Problem, Refusal, Running, SyncDirection, SyncState

NOW = time.time()


def controller(state_dir: Path) -> Any:
    """What of a config counts here: one service with a sync, one without."""
    services = [SimpleNamespace(name="ldap", sync=True), SimpleNamespace(name="web", sync=None)]
    state_dir.mkdir(exist_ok=True)
    return SimpleNamespace(controller=SimpleNamespace(state_dir=state_dir), services=services)


def ran(config: Any, state: SyncState) -> None:
    """What failover-sync leaves on that controller."""
    place = syncstate.directory(config.controller.state_dir)
    place.mkdir(exist_ok=True)
    (place / "ldap.json").write_text(syncstate.dump(state))


def told(said_by: Any, to: Any) -> SyncState:
    """One hears what the other one says, as JSON."""
    peer_record.keep(to, json.loads(json.dumps(peer_record.ours(said_by))))
    return syncstate.read(to.controller.state_dir, "ldap")


def test_the_newer_run_counts_for_both(tmp_path: Path) -> None:
    """Whichever controller ran it; a failing one that never copied does not hide the other one's good run."""
    left, right = controller(tmp_path / "left"), controller(tmp_path / "right")
    ran(left, SyncState(equal_at=NOW - 60))
    assert told(left, right).equal_at == NOW - 60
    assert told(right, left).equal_at == NOW - 60
    ran(right, SyncState(equal_at=NOW - 30))
    assert told(left, right).equal_at == NOW - 30
    assert told(right, left).equal_at == NOW - 30
    refused = Problem(NOW, Refusal.BOTH_SERVED, "both")
    ran(left, SyncState(equal_at=NOW - 30, problem=refused))
    assert told(left, right).problem == told(right, left).problem == refused
    facts = syncstate.known(tmp_path / "left", SimpleNamespace(name="ldap", sync=True), Facts(), NOW)  # type: ignore[arg-type]
    assert facts.sync_age == 30.0
    assert set(peer_record.ours(left)) == {"ldap"}


def test_the_other_controllers_run_blocks_while_it_speaks(tmp_path: Path) -> None:
    """Its switch changes the standby just now. Neither its end nor its silence leaves it here; nobody echoes it."""
    left, right = controller(tmp_path / "left"), controller(tmp_path / "right")
    switching = Running(os.getpid(), NOW, SyncDirection.FORWARD, Phase.SWITCH, NOW + 600)
    said = {"ldap": json.loads(syncstate.dump(SyncState(equal_at=NOW - 60, running=switching)))}
    peer_record.keep(right, said)
    assert syncstate.read(tmp_path / "right", "ldap").blocks(NOW)
    assert not told(right, left).blocks(NOW)
    copy = syncstate.peer_record(tmp_path / "right", "ldap")
    os.utime(copy, (NOW - 60, NOW - 60))
    assert syncstate.read(tmp_path / "right", "ldap").blocks(NOW)  # it counts on that, whether it is heard or not
    assert not syncstate.read(tmp_path / "right", "ldap").blocks(NOW + 600)
    assert peer_record.heard(right) == {"ldap": NOW + 600}
    assert peer_record.heard(left) == {"ldap": None}
    back = Running(os.getpid(), NOW, SyncDirection.REVERSE, Phase.TRANSFER)
    peer_record.keep(right, {"ldap": json.loads(syncstate.dump(SyncState(running=back)))})
    assert syncstate.read(tmp_path / "right", "ldap").blocks(NOW)
    os.utime(copy, (NOW - 60, NOW - 60))
    assert not syncstate.read(tmp_path / "right", "ldap").blocks(NOW)
    peer_record.keep(right, said)
    assert syncstate.read(tmp_path / "right", "ldap").blocks(NOW)
    peer_record.keep(right, {"ldap": json.loads(syncstate.dump(SyncState(equal_at=NOW)))})
    assert not syncstate.read(tmp_path / "right", "ldap").blocks(NOW)


def test_a_damaged_record_is_not_believed(tmp_path: Path) -> None:
    """Garbage, a time in the future, another version: this controller's own record stays, and people are told."""
    config = controller(tmp_path / "left")
    ran(config, SyncState(equal_at=NOW - 600))
    for bad in ({"equal_at": NOW + 3600}, {"equal_at": "now"}, [], {"running": 1}):
        peer_record.keep(config, {"ldap": bad})
        record = syncstate.read(tmp_path / "left", "ldap")
        assert record.equal_at == NOW - 600
        assert "peer/ldap.json: damaged" in record.note
    for nothing in (None, [], {}, {"ldap": None}, {"other": {}}):
        peer_record.keep(config, nothing)
    ran(config, SyncState())
    syncstate.directory(tmp_path / "left").joinpath("ldap.json").write_text("{")
    peer_record.keep(config, {"ldap": json.loads(syncstate.dump(SyncState(equal_at=NOW)))})
    assert syncstate.read(tmp_path / "left", "ldap").damaged is not None
    assert peer_record.ours(config) == {}


class Once(io.StringIO):
    """The other controller, which hangs up after a line."""

    def flush(self) -> None:
        raise BrokenPipeError


def test_the_records_travel_with_the_state(tmp_path: Path) -> None:
    """What failover-pair says to the other controller has all that the redirector says."""
    state: dict[str, Any] = {"state": {"ldap": {"target": "primary"}}, "sync": {"ldap": {"equal_at": NOW}}}
    state["heard"] = {"ldap": NOW + 30}
    path, out = tmp_path / "redirector.sock", Once()
    server = Server(path, frozenset({"subscribe", "state"}), lambda *_: state, lambda *_: None, dict)
    server.start()
    try:
        with pytest.raises(BrokenPipeError):
            daemon.serve(SimpleNamespace(redirector_socket=path), out)  # type: ignore[arg-type]
    finally:
        server.close()
    assert json.loads(out.getvalue()) == state
