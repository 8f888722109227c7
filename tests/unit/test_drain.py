"""When a drain is over."""

from __future__ import annotations

import pytest

from check_failover.model import Target
from check_failover.records import Drain
from check_failover.redirector.draining import ending

AT = 1_000_000.0
DRAIN = Drain(Target.PRIMARY, AT)
UNTIL = Drain(Target.PRIMARY, AT, AT + 30.0)


@pytest.mark.parametrize(
    ("drain", "left", "old_failed", "after", "why"),
    [
        (DRAIN, 3, False, 1e9, None),
        (DRAIN, 0, False, 0.0, "no connection is left on the primary"),
        (DRAIN, 3, True, 0.0, "the primary fails its probes"),
        (UNTIL, 3, False, 29.9, None),
        (UNTIL, 3, False, 30.0, "the deadline is over"),
        (UNTIL, 0, False, 30.0, "no connection is left on the primary"),
        (Drain(Target.STANDBY, AT), 1, True, 0.0, "the standby fails its probes"),
    ],
)
def test_a_drain_ends_for_a_reason(drain: Drain, left: int, old_failed: bool, after: float, why: str | None) -> None:
    """Without a deadline it waits as long as clients do; a dead server is not waited for."""
    assert ending(drain, left, old_failed=old_failed, now=AT + after) == why
