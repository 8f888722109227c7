"""Refused orders by the thousand: the journal stays bounded, and no flip leaves it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.records import JournalEntry
from check_failover.redirector import journal
from check_failover.redirector.journal import Journal
from tests.attack.table import measured


def test_flips_outlive_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the second rotation erased them."""
    monkeypatch.setattr(journal, "LIMIT", 20_000)
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)
    kept, one = (
        Journal(tmp_path / "journal.jsonl"),
        JournalEntry("", 1e9, "ldap", "fail-over", "nagios", line="x" * 100),
    )
    for number in range(1000):
        refused = replace(one, id=f"r{number}", reason="hold", text='"flipped": true')
        kept.write(replace(one, id=f"f{number}", flipped=True) if number % 100 == 0 else refused)
    found = [entry.id for entry in kept.read(10_000)]
    assert [number for number in found if number.startswith("f")] == [f"f{number}" for number in range(0, 1000, 100)]
    assert found[-1] == "r999"
    assert len(found) == len(set(found)), "each once"
    measured("refused", "990 erased no flip")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 20_000


def test_a_kill_in_the_middle_of_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flips are copied before their file goes: the next rotation repeats none and loses none."""
    monkeypatch.setattr(journal, "LIMIT", 5_000)
    kept, one = (
        Journal(tmp_path / "journal.jsonl"),
        JournalEntry("", 1e9, "ldap", "fail-over", "nagios", line="x" * 100),
    )
    for number in range(60):
        kept.write(replace(one, id=f"f{number}", flipped=True))
    copied = (tmp_path / "journal.jsonl.1").read_bytes()
    with (tmp_path / "journal.jsonl.flips").open("ab") as file:
        file.write(copied)  # as if it had been killed before the rename
    for number in range(60, 90):
        kept.write(replace(one, id=f"f{number}", flipped=True))
    assert [entry.id for entry in kept.read(1000)] == [f"f{number}" for number in range(90)]
