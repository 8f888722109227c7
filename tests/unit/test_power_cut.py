"""A power cut leaves any beginning of a file that was being written: state, intent and journal at every byte."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from check_failover.damping import Damping
from check_failover.model import Hold, State, Target
from check_failover.reach import derived
from check_failover.records import Drain, JournalEntry, ServiceStatus
from check_failover.redirector.journal import Journal
from check_failover.redirector.report import redirect_state
from check_failover.redirector.state import ServiceState, intend, load, settle
from check_failover.redirector.store import StateStore

OLD = ServiceState(since=1e9, downtime=("ldap.example.org",), reached=derived(Target.PRIMARY, 1e9))
NEW = ServiceState(
    Target.STANDBY, 2e9, Hold("me", 1e9, "work"), "hold", Drain(Target.PRIMARY, 2e9), Damping(1000.0, 2e9), True,
    reached=derived(Target.STANDBY, 2e9),
)  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where a state was settled and another one intended."""
    logging.disable(logging.CRITICAL)
    place = tmp_path / "target"
    place.mkdir()
    intend(place, "ldap", OLD)
    settle(place, "ldap")
    intend(place, "ldap", NEW)
    yield place
    logging.disable(logging.NOTSET)


def started(tmp_path: Path, kernel: Target | None = None) -> tuple[StateStore, list[str]]:
    store = StateStore(tmp_path, ["ldap"])
    return store, store.load(lambda _name: kernel)


def test_the_intent(directory: Path, tmp_path: Path) -> None:
    """Whole, it is followed and the flip is known as unfinished; cut short, the old state stands."""
    path = directory / ".ldap.json.new"
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the newline at its end tells nothing
        path.write_bytes(whole[:length])
        store, unfinished = started(tmp_path)
        assert (store.state["ldap"], unfinished, store.problems["ldap"]) == (OLD, [], {}), length
    path.write_bytes(whole)
    store, unfinished = started(tmp_path)
    assert (store.state["ldap"], unfinished) == (NEW, ["ldap"])
    store.settle("ldap")
    assert load(directory, "ldap") == NEW
    assert not path.exists()


@pytest.mark.parametrize("kernel", [None, *Target])
def test_the_state(directory: Path, tmp_path: Path, kernel: Target | None) -> None:
    """Whole, it is right; cut short, the kernel's rule is kept and "NAME redirect" is CRITICAL until the next flip."""
    (directory / ".ldap.json.new").unlink()
    path = directory / "ldap.json"
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        store, unfinished = started(tmp_path, kernel)
        assert (store.state["ldap"].target, unfinished) == (kernel or Target.PRIMARY, []), length
        (problem,) = store.problems["ldap"].values()
        assert "damaged" in problem
        state, text = redirect_state(ServiceStatus(Target.PRIMARY, None, problem=problem))
        assert (state, text) == (State.CRITICAL, problem)
        assert path.read_bytes() == whole[:length], "what a person may want to see"
    store.save("ldap", NEW)
    assert store.problems["ldap"] == {}
    assert started(tmp_path)[0].state["ldap"] == replace(NEW, changes=1)


@pytest.mark.parametrize("garbage", [b"[]", b"null", b'{"target": 1}', b'{"target": "both"}', b"\0" * 300, b"{" * 9999])
def test_garbage(directory: Path, tmp_path: Path, garbage: bytes) -> None:
    """JSON that makes no sense, zeros that a file system left: damaged, as if it were cut short."""
    for path in (directory / "ldap.json", directory / ".ldap.json.new"):
        path.write_bytes(garbage)
    store, unfinished = started(tmp_path, Target.STANDBY)
    assert (store.state["ldap"].target, unfinished) == (Target.STANDBY, [])
    assert "damaged" in store.problems["ldap"]["damaged"]


def test_the_journal(tmp_path: Path) -> None:
    """The lines before the cut are read, the cut one is left out, and the next one is whole again."""
    path = tmp_path / "journal.jsonl"
    one = JournalEntry("1", 1e9, "ldap", "hold", "eve", line="")
    Journal(path).write(one)
    first = path.stat().st_size
    Journal(path).write(replace(one, id="2", text="x" * 80))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        before = ["1"] * (length >= first - 1) + ["2"] * (length >= len(whole) - 1)
        assert [entry.id for entry in Journal(path).read(9)] == before
        Journal(path).write(replace(one, id="3"))
        assert [entry.id for entry in Journal(path).read(9)] == [*before, "3"], length


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hold-down's age follows no jump of the wall clock; after a restart it is never below zero."""
    now = [1e9]
    monkeypatch.setattr("time.time", lambda: now[0])
    store, _ = started(tmp_path)
    assert store.since_move("ldap") is None
    store.intend("ldap", replace(NEW, since=now[0]))
    store.mark_moved("ldap", replace(NEW, since=now[0]))
    store.settle("ldap")
    for jump in (-86400.0, 0.0, 86400.0):
        now[0] = 1e9 + jump
        age = store.since_move("ldap")
        assert age is not None
        assert 0 <= age < 60
        again = started(tmp_path)[0].since_move("ldap")
        assert again is not None
        assert max(0.0, jump) <= again < max(0.0, jump) + 60
    assert asdict(store.state["ldap"])["since"] == 1e9
    assert json.loads((tmp_path / "target" / "ldap.json").read_bytes())["since"] == 1e9
