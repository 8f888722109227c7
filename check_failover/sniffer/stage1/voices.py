"""How much one client's evidence weighs: its thresholds, its errors, its share of the counts. Pure.

A client is an IPv4 address, or the /64 of an IPv6 address, because one host may use all of it (RFC 4941). It can
raise suspicions in vain, provoke errors, or leave its own requests unfinished; other clients' evidence stays as it is.
"""

from collections import OrderedDict
from collections.abc import Iterable

from check_failover.sniffer.stage1.flows import Request
from check_failover.sniffer.stage1.thresholds import Scale

MAX_CLIENTS = 64  # with a threshold of their own, for each kind of suspicion
MAX_SHARED = 8.0  # the largest factor that the refuted suspicions of some clients put on all others

Kind = tuple[str | bool, ...]  # what is scaled together: a detector, an operation, whether the server has the request


def client(address: bytes) -> bytes:
    return address if len(address) == 4 else address[:8]


class Scales:
    """The factors on the thresholds, for each kind of suspicion and each client.

    A refuted suspicion doubles its client's factor. All others get the second largest factor, up to ``MAX_SHARED``:
    what two clients raised in vain is the server's usual behaviour, what one raised may be its own doing.
    """

    def __init__(self) -> None:
        self._scales: dict[Kind, OrderedDict[bytes, Scale]] = {}

    def own(self, kind: Kind, who: bytes, now: float) -> float:
        """The factor that this client's refuted suspicions have caused."""
        scales = self._scales.get(kind)
        return scales[who].now(now) if scales and who in scales else 1.0

    def now(self, kind: Kind, who: bytes, now: float) -> float:
        """The factor for this client."""
        scales = self._scales.get(kind)
        if not scales:
            return 1.0
        own = self.own(kind, who, now)
        if len(scales) == 1:
            return own
        return max(own, min(MAX_SHARED, sorted(scale.now(now) for scale in scales.values())[-2]))

    def double(self, kind: Kind, who: bytes, now: float) -> None:
        """Double the factor that is in force for this client."""
        in_force = self.now(kind, who, now)
        scales = self._scales.setdefault(kind, OrderedDict())
        scales.setdefault(who, Scale()).double(now, in_force)
        scales.move_to_end(who)
        if len(scales) > MAX_CLIENTS:
            scales.popitem(last=False)


def weigh(requests: Iterable[Request]) -> tuple[int, int]:
    """(requests, usefully answered ones among them), each client with the same weight: the mean of their shares."""
    shares: dict[bytes, list[int]] = {}
    for request in requests:
        share = shares.setdefault(client(request.flow[0]), [0, 0])
        share[0] += 1
        share[1] += request.answered is True
    asked = sum(share[0] for share in shares.values())
    if len(shares) <= 1:
        return asked, sum(share[1] for share in shares.values())
    answered = asked * sum(share[1] / share[0] for share in shares.values()) / len(shares)
    return asked, -int(-answered // 1)  # rounded up: the veto stands in doubt
