"""What a person reads in the text: the redirector's own lines, through the notification command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.config import load
from check_failover.handlers.sms import OPTIONS, notification
from check_failover.model import Facts, Target
from check_failover.records import JournalEntry, ServiceStatus
from check_failover.redirector.report import fail_back_state, outcome
from check_failover.sms.text import parts
from tests.unit.test_sync_config import with_sync


def told(state: str, output: str) -> str:
    """The text of a notification about "ldap fail-back"."""
    about = {"type": "PROBLEM", "host": "ldap.example.org", "service": "ldap fail-back", "date": "21:02:33"}
    return notification(OPTIONS | about | {"state": state, "output": f"{state}: {output}"})


def test_ready_to_fail_back() -> None:
    """Says what to do, in one message."""
    state, line = fail_back_state(ServiceStatus(Target.STANDBY, Target.STANDBY, fail_back=(("locked", None),)))
    text = told(state.name, line)
    assert "fail-back WARNING on ldap.example.org: ready to fail back: submit OK here" in text
    assert parts(text) == 1


def test_fail_back_is_done() -> None:
    """OK, on the primary."""
    state, line = fail_back_state(ServiceStatus(Target.PRIMARY, Target.PRIMARY))
    assert "fail-back OK on ldap.example.org: on the primary" in told(state.name, line)


@pytest.mark.parametrize(("flipped", "age"), [(True, 7.0), (False, 7.0), (True, None), (False, None)])
def test_the_datas_age_after_a_fail_over_and_after_a_refusal(tmp_path: Path, flipped: bool, age: float | None) -> None:
    """Where it is known, and that it never was in step; within one message however long the reason is."""
    synced, plain = load(with_sync(tmp_path, 'from = "/srv/www/"')).services[:2]
    entry = JournalEntry("1", 1.0, "ldap", "fail-over", "nagios", line="", to=Target.STANDBY, reason="sync-stale")
    entry = replace(entry, flipped=flipped, text="x" * 300, facts=Facts(sync_age=age))
    text = told("CRITICAL", outcome(synced, entry))
    assert ("(data never in step): x" if age is None else "(data 7 s old): x") in text
    assert parts(text) == 1
    assert "data" not in outcome(plain, entry)
    entry = replace(entry, facts=Facts(sync_age=age, sync_undecided=True))
    assert "not all writes): x" in told("CRITICAL", outcome(synced, entry))
