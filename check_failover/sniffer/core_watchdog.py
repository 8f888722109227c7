"""When the sniffer asks the redirector itself, because the core that should judge is not there.

It knows so in two ways. The core, or the way to it, did not take the last result: then the verdict goes to the
redirector at once. Or it took the verdict, and no order followed within ``core_deadline`` seconds: only a queue took
it while the core behind it is stopped, or the way back is cut. Any order about the service counts, a refused one too:
then the core has spoken (a downtime, say), and what is pending is decided by the evidence that follows.

A core that is alive and ordered nothing, e.g. because its event handler is switched off there, is taken for dead once
the deadline is over. Whoever wants no flip says so with a downtime or ``failoverctl hold``.
"""

from __future__ import annotations

from dataclasses import dataclass

ORDER_INTERVAL = 2.0  # seconds between two own orders that nobody answered


@dataclass(slots=True)
class _Case:
    """A failed verdict that stands. Monotonic seconds."""

    since: float
    ordered: float | None = None


class CoreWatchdog:
    """``deadline``: seconds, None where only a result that was not taken counts. Times are monotonic seconds."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._cases: dict[str, _Case] = {}
        self._refused_at: dict[str, float] = {}
        self._ordered: set[str] = set()  # our order stands, and is done or pending

    def order_refused(self, name: str, now: float) -> None:
        """An order for this service reached the redirector and was refused, whoever gave it."""
        self._refused_at[name] = now

    def target_changed(self, name: str) -> None:
        """The target changed: whatever was said before is about something that is over."""
        self._refused_at.pop(name, None)
        self._ordered.discard(name)

    def must_withdraw(self, name: str, *, well: bool) -> bool:
        """Whether our order must be taken back, because the server is well again: the core, which gave none, does not.

        Left pending it would be carried out at the next fault, over the head of a core that is back (a downtime, say).
        """
        if not well or name not in self._ordered:
            return False
        self._ordered.discard(name)
        return True

    def due(self, name: str, now: float, *, failed: bool, reachable: bool) -> str | None:
        """Why the redirector should be asked now; None: it should not. ``failed``: a verdict stands on the primary."""
        if not failed:
            self._cases.pop(name, None)
            return None
        case = self._cases.setdefault(name, _Case(now))
        if self._refused_at.get(name, float("-inf")) >= case.since - (self._deadline or 0.0):
            return None
        if case.ordered is not None and now - case.ordered < ORDER_INTERVAL:
            return None
        why = None if reachable else "the core is away"
        if why is None and self._deadline is not None and now - case.since >= self._deadline:
            why = "the core is silent"
        if why is not None:
            case.ordered = now
            self._ordered.add(name)
        return why
