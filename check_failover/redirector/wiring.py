"""What the kernel must have for a service: computed from its state, so that no path can forget to switch it back. Pure.

While nothing is decided, a refusal of a new connection is kept from the client: a flip or the sniffer's rescue serves
it in a moment. When an automatic fail-over stands refused, clients hear the truth, unless the rescue still serves them.
"""

from check_failover.decide import RESCUE, Reason, Situation, decide
from check_failover.model import Facts, Service, Target
from check_failover.redirector import Wiring
from check_failover.redirector.state import ServiceState

# Refusals with which the sniffer rescues no connection; decide.RESCUE names those that forbid the standby.
_NO_RESCUE = frozenset({Reason.NO_HEALTHY_SERVER, Reason.STANDBY_UNKNOWN, Reason.BLIND})


def wiring(service: Service, state: ServiceState, leaving: Target | None, synced: Facts) -> Wiring:
    """``leaving``: the server whose connections a flip or a cut is ending just now; ``synced``: the sync's record."""
    dead = leaving if state.drain is None and leaving is not state.target else None
    withheld = state.standing is None or _rescued(service, state, synced)
    return Wiring(state.target, dead, withheld)


def _rescued(service: Service, state: ServiceState, synced: Facts) -> bool:
    """Whether the standby may serve single connections, although the fail-over is refused."""
    allowed = decide(RESCUE, synced, service.policy, Situation(state.target, state.hold)).flip
    return service.policy.rescue and state.standing not in _NO_RESCUE and allowed
