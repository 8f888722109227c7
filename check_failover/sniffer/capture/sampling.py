"""Sampling of a service's traffic, so that the cost does not grow with it. Pure; time is an argument.

Above ``BUDGET`` frames per second of a service the filter (``bpf``) keeps one of two, four, ... of its connections,
whole ones, by bits of the client's port. The port pattern comes from one recent port drawn at random, so that at least
one active connection stays. Each port has the same chance, whatever its packet rate: otherwise a client that floods
from one port would be the only one watched. A credit absorbs short bursts. When the rate falls, the filter widens at
once to what the rate allows: a fault right after a burst is as visible as any. If that proves too wide, the next
widening waits longer.

Segments of connections that the server never answered (``Strays``) must not narrow the filter: any client can send
20,000 a second. A few pass, since they may belong to connections that are older than the capture; the others cost next
to nothing.

All services together have a budget too (``TOTAL``). While they need more, each one's budget is halved again and again:
the busy services are sampled more, and the others are watched as before.
"""

import random
from collections.abc import Sequence

BUDGET = 1000  # frames per second of one service; as many as credit beyond it: a large answer, a wave of clients
TOTAL = 4 * BUDGET  # frames per second of all services
LEAST = 4  # frames per second of one service, when there are very many
CALM = 0.4  # of the budget; with fewer kept frames per second the filter may keep more connections
PATIENCE, LONGEST = 0.5, 16.0  # seconds below that rate until it does; after widenings in vain
MAX_BITS = 9
REDRAWN = 2.0  # seconds above the budget at the finest filter until another port is drawn
WINDOW = 0.5  # seconds over which the rate is measured
STRAYS = 100  # frames per second that pass
STRAY = 1 / 50  # what another one costs of the budget
_ANSWERED, _FOR = 16384, 30.0  # connections known as answered, and seconds, twice

Key = tuple[bytes, int]  # a client's address and port


class Strays:
    """Which connections the servers answered lately."""

    def __init__(self) -> None:
        self._answered: set[Key] = set()
        self._before: set[Key] = set()
        self._begun = float("-inf")
        self._credits: dict[str, tuple[float, float]] = {}  # of each service, and when

    def answered(self, key: Key, now: float) -> None:
        if len(self._answered) >= _ANSWERED or now - self._begun > _FOR:
            self._answered, self._before, self._begun = set(), self._answered, now
        self._answered.add(key)

    def stray(self, key: Key) -> bool:
        return key not in self._answered and key not in self._before

    def passes(self, service: str, now: float) -> bool:
        """Whether one more stray of this service may pass now."""
        credit, at = self._credits.get(service, (0.0, float("-inf")))
        credit = min(STRAYS, credit + STRAYS * (now - at))
        self._credits[service] = (credit - (credit >= 1.0), now)
        return credit >= 1.0


class Sampling:
    """The sampling of one service, or of the refusals. ``bits`` and ``port`` are the filter's arguments."""

    def __init__(self, now: float) -> None:
        self.bits = self.port = 0
        self._credit = float(BUDGET)
        self._counted = self._begun = self._calm_since = self._drawn_at = now
        self._widened_at, self._patience = float("-inf"), PATIENCE
        self._frames = 0.0
        # One port for each pattern of the finest filter: of this window, and of the window before.
        self._ports: dict[int, int] = {}
        self._ports_before: dict[int, int] = {}

    @property
    def share(self) -> int:
        """N, where the filter keeps one of N connections."""
        return 1 << self.bits

    def keeps(self, port: int) -> bool:
        """Whether the filter keeps connections from this client port."""
        return not (port ^ self.port) >> 4 & (1 << self.bits) - 1

    def count(self, frames: float, ports: Sequence[int], now: float, budget: float = BUDGET) -> bool:
        """Count captured frames; ``ports`` are the client ports of the last ones. True: the filter must change."""
        self._credit = min(budget, self._credit + budget * (now - self._counted)) - frames
        self._counted = now
        self._frames += frames
        self._ports.update((port >> 4 & (1 << MAX_BITS) - 1, port) for port in ports)
        passed = now - self._begun
        if passed < WINDOW and self._credit >= 0:
            return False
        ports_seen = list((self._ports_before | self._ports).values())
        self._ports_before, self._ports = self._ports, {}
        rate = self._frames / max(passed, 0.01)
        self._frames, self._begun = 0.0, now
        calm = CALM * budget
        if rate >= calm:
            self._calm_since = now
        if self._credit < 0:
            self._credit = budget
            return self._narrow(rate / budget, random.choice(ports_seen or [0]), now)
        if not self.bits or now - self._calm_since < self._patience:
            return False
        self._calm_since = self._widened_at = now
        self.bits = min(self.bits - 1, int(rate * self.share / calm).bit_length())
        return True

    def _narrow(self, times: float, port: int, now: float) -> bool:
        """``times``: how many times the budget the filter keeps."""
        bits = min(MAX_BITS, self.bits + max(1, int(times).bit_length()))
        if bits == self.bits:
            if now - self._drawn_at < REDRAWN:
                return False
            bits = 0  # the drawn port sends too much: watch all connections for a moment, then draw again
        in_vain = now - self._widened_at < 2 * self._patience
        self._patience = min(LONGEST, 2 * self._patience) if in_vain else PATIENCE
        self.bits, self.port, self._drawn_at = bits, port, now
        return True


class Budget:
    """How many frames per second of one service may be kept (``each``), so that all together keep to ``TOTAL``."""

    def __init__(self, now: float) -> None:
        self.each = float(BUDGET)
        self._credit = float(TOTAL)
        self._frames = 0
        self._counted = self._begun = now

    def count(self, frames: int, now: float) -> None:
        """Count the kept frames of all services."""
        self._credit = min(TOTAL, self._credit + TOTAL * (now - self._counted)) - frames
        self._counted = now
        self._frames += frames
        if self._credit < 0:
            self.each, self._credit = max(LEAST, self.each / 2), TOTAL / 2
        if now - self._begun >= 2 * WINDOW:
            if self._frames < TOTAL / 2 * (now - self._begun):
                self.each = min(BUDGET, 2 * self.each)
            self._frames, self._begun = 0, now
