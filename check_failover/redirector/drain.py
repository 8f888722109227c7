"""The end of a drain. Pure.

A drain is planned work: new connections go to the new target, open ones finish on the old server. It ends when no open
connection is left. The redirector cuts the rest, as in a fail-over, at the drain's deadline or when the old server
fails, because the connections would be stranded then.
"""

from check_failover.records import Drain


def ending(drain: Drain, left: int, *, old_failed: bool, now: float) -> str | None:
    """Why the drain is over; None while it goes on. ``now``: the wall clock; ``left``: number of open connections."""
    if left == 0:
        return f"no connection is left on the {drain.old}"
    if drain.deadline is not None and now >= drain.deadline:
        return "the deadline is over"
    if old_failed:
        return f"the {drain.old} fails its probes"
    return None
