"""How a drain ends. Pure.

A drain is planned work: new connections go to the new target, open ones finish where they are. It ends when none is
left, or when those that are left are cut, as a fail-over does with all: at the drain's deadline, or because the server
that they are on died meanwhile, and waiting for it would leave them stranded.
"""

from __future__ import annotations

from check_failover.redirector.state import Drain


def ending(drain: Drain, left: int, *, old_failed: bool, now: float) -> str | None:
    """Why the drain is over, in words; None while it goes on. ``now`` is the wall clock, ``left`` open connections."""
    if left == 0:
        return f"no connection is left on the {drain.old}"
    if drain.deadline is not None and now >= drain.deadline:
        return "the deadline is over"
    if old_failed:
        return f"the {drain.old} fails its probes"
    return None
