"""An order, its decision by the tables of ``decide``, and the service's state after it. Pure.

``age``: seconds since the service's last flip (None: never); ``now``: the wall clock, as in the state.
"""

from dataclasses import asdict, dataclass, fields, replace

from check_failover import reach
from check_failover.damping import Damping, decayed, failed_over
from check_failover.decide import LAST_RESORT, TABLES, Decision, Situation, decide
from check_failover.model import Facts, Service, Target
from check_failover.records import Caller, Drain
from check_failover.redirector.state import ServiceState, next_generation


@dataclass(frozen=True, slots=True)
class Order:
    """An order to flip. Fields with a name of ``Situation``'s become that field."""

    service: Service
    verb: str  # a key of ``decide.TABLES``
    by: str
    facts: Facts
    manual: bool = False
    drain: bool = False
    deadline: float | None = None  # drain: seconds until the remaining connections are cut
    why: str = ""  # the cause, if it is neither a fault nor an operator
    note: str = ""  # follows the decision's text: why the order did not come from the core
    peer: Caller | None = None
    primary_ok: bool | None = None
    primary_passes: int = 0
    primary_good_for: float = 0.0
    synced_back: bool | None = None
    undecided: str = ""
    standby_good_for: float = 0.0


def situation(order: Order, state: ServiceState, age: float | None, now: float) -> Situation:
    """The redirector's own knowledge when it decides ``order``, and what the order itself says of the situation."""
    said = {one.name: getattr(order, one.name) for one in fields(Situation) if hasattr(order, one.name)}
    return Situation(
        target=state.target,
        hold=state.hold,
        since_flip=age,
        moved_by_person=state.moved_by_person,
        locked=state.damping.locked,
        downtime=bool(state.downtime),
        penalty=decayed(state.damping, now, order.service.policy.damping_half_life),
        **said,
    )


def decided(order: Order, known: Situation) -> Decision:
    """The decision by the order's table. A fail-over from the standby to the primary has its own one."""
    back = order.verb == "fail-over" and order.facts.server is Target.STANDBY and not order.manual
    decision = decide(LAST_RESORT if back else TABLES[order.verb], order.facts, order.service.policy, known)
    return replace(decision, text=f"{decision.text}; {order.note}") if order.note else decision


def explained(order: Order, known: Situation, decision: Decision) -> str:
    """An order, its facts and its decision as one line for the debug log."""
    facts, here = ([f"{k}={v}" for k, v in asdict(record).items() if v is not None] for record in (order.facts, known))
    head = f"{order.service.name}: {order.verb} by {order.by}: {decision.reason}: {decision.text}"
    return f"{head}; facts: {' '.join(facts)}; here: {' '.join(here)}"


def after(before: ServiceState, order: Order, now: float) -> ServiceState:
    """The service's state after the flip."""
    policy, damping = order.service.policy, before.damping
    if order.verb == "fail-over" and not order.manual:
        damping = failed_over(damping, now, policy.damping_half_life)
    elif order.verb == "fail-back":
        damping = Damping()
    drain = None
    if order.drain:
        drain = Drain(before.target, now, None if order.deadline is None else now + order.deadline)
    return replace(
        before,
        target=before.target.other,
        since=now,
        pending=None,
        refused=None,
        drain=drain,
        reached=reach.turned(before.reached, before.target.other, now, drain=order.drain),
        damping=damping,
        moved_by_person=order.manual,
        generation=next_generation(before.generation, now),
        changes=before.changes + 1,
    )
