"""When the sniffer orders a fail-over itself, because the core does not.

There are two cases. The transport could not deliver the last result: the sniffer orders at once. Or the core accepted
the verdict, and no order followed within ``core_deadline`` seconds: only a queue accepted it, the core behind it is
stopped, or the core cannot reach the redirector. A refused order counts as an order: the core has decided (a
downtime, for example), and the facts that follow decide about a pending order.

After the deadline the watchdog also overrules a core that is alive and orders nothing, for example because its event
handler cannot be run. Before the order the sniffer asks the core for what a person set there (``core_state``): in a
downtime the service's policy decides, and event handlers that are switched off are not replaced. While such a refusal
stands, the sniffer asks again, and orders once the core no longer forbids it.
"""

from dataclasses import dataclass

from check_failover.decide import Reason

ORDER_INTERVAL = 2.0  # seconds between two of the sniffer's orders without a reply
ASK_INTERVAL = 5.0  # seconds between two questions whether the core still forbids it
AWAY, SILENT, ALLOWED = "the core is away", "the core is silent", "the core allows it now"
_SET_IN_THE_CORE = (Reason.DOWNTIME, Reason.HANDLERS_OFF)


@dataclass(slots=True)
class _Case:
    """A standing failed verdict. Monotonic seconds."""

    since: float
    ordered: float | None = None


class CoreWatchdog:
    """Times are monotonic seconds. ``deadline``: seconds; None: only an unreachable core makes the sniffer order.

    state      event                                                           next
    ---------  --------------------------------------------------------------  ---------
    idle       a verdict fails (``due``)                                       waiting
    waiting    the core is unreachable, or ``deadline`` passed: order          ordered
    ordered    ``ORDER_INTERVAL`` passed and the verdict still fails: order    ordered
    either     the redirector refuses an order, or refused one at most         deferred
               ``deadline`` seconds before the fault
    deferred   the target changes                                              waiting
    deferred   the refusal was for what is set in the core, and each
               ``ASK_INTERVAL``: ask, and order if it is set no longer         ordered
    any        the verdict ends (``must_withdraw``: take the order back)       idle
    """

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._cases: dict[str, _Case] = {}
        self._refused: dict[str, tuple[float, str]] = {}  # when, and for which reason
        self._asked: dict[str, float] = {}
        self._ordered: dict[str, float] = {}  # services with an order of the sniffer's, pending or carried out: when
        # it may be withdrawn, and again: a redirector that restarts meanwhile keeps a pending order

    def concerned(self, name: str) -> bool:
        """Whether ``due`` or ``must_withdraw`` may soon answer otherwise than now."""
        return name in self._cases or name in self._ordered

    def order_refused(self, name: str, now: float, reason: str = "") -> None:
        """The redirector refused an order for this service, from the core or from the sniffer."""
        if reason != Reason.ALREADY:  # about a server that does not serve: no decision on the present fault
            self._refused[name] = (now, reason)

    def since_refusal(self, name: str, now: float) -> float:
        """Seconds; infinite without a refusal."""
        return now - self._refused.get(name, (float("-inf"), ""))[0]

    def target_changed(self, name: str) -> None:
        """The target changed: earlier orders and refusals no longer count."""
        self._refused.pop(name, None)
        self._ordered.pop(name, None)

    def must_withdraw(self, name: str, now: float, *, well: bool) -> bool:
        """Whether the sniffer must withdraw its order, because the server recovered. The core withdraws only its own.

        A pending order would be carried out at the next fault and overrule a core that is back (a downtime, say).
        """
        if not well or now < self._ordered.get(name, float("inf")):
            return False
        self._ordered[name] = now + ORDER_INTERVAL
        return True

    def withdrawn(self, name: str, asked: float) -> None:
        """The redirector has the withdrawal that was due at ``asked``; an order since then stands."""
        if self._ordered.get(name) == asked + ORDER_INTERVAL:
            del self._ordered[name]

    def due(self, name: str, now: float, *, failed: bool, reachable: bool) -> str | None:
        """Why the sniffer must order a fail-over now; None: it must not. ``failed``: a failed verdict stands.

        ``ALLOWED``: only if the core, when asked, no longer forbids it.
        """
        if not failed:
            self._cases.pop(name, None)
            return None
        case = self._cases.setdefault(name, _Case(now))
        refused_at, reason = self._refused.get(name, (float("-inf"), ""))
        if refused_at >= case.since - (self._deadline or 0.0):
            if reason not in _SET_IN_THE_CORE or now - max(refused_at, self._asked.get(name, 0.0)) < ASK_INTERVAL:
                return None
            self._asked[name] = now
            self._ordered[name] = now
            return ALLOWED
        if case.ordered is not None and now - case.ordered < ORDER_INTERVAL:
            return None
        why = None if reachable else AWAY
        if why is None and self._deadline is not None and now - case.since >= self._deadline:
            why = SILENT
        if why is not None:
            case.ordered = now
            self._ordered[name] = now
        return why
