"""What a person reads in the text: the redirector's own lines, through the notification command."""

from __future__ import annotations

from check_failover.handlers.sms import OPTIONS, notification
from check_failover.redirector.report import fail_back_state
from check_failover.sms.text import parts


def told(state: str, output: str) -> str:
    """The text of a notification about "ldap fail-back"."""
    about = {"type": "PROBLEM", "host": "ldap.example.org", "service": "ldap fail-back", "date": "21:02:33"}
    return notification(OPTIONS | about | {"state": state, "output": f"{state}: {output}"})


def test_ready_to_fail_back() -> None:
    """Says what to do, in one message."""
    state, line = fail_back_state({"target": "standby", "auto_fail_back": None, "fail_back": [("locked", None)]})
    text = told(state.name, line)
    assert "fail-back WARNING on ldap.example.org: ready to fail back: submit OK here" in text
    assert parts(text) == 1


def test_fail_back_is_done() -> None:
    """OK, on the primary."""
    state, line = fail_back_state({"target": "primary"})
    assert "fail-back OK on ldap.example.org: on the primary" in told(state.name, line)
