"""Sampling of a service's traffic, so that the cost does not grow with it. Pure; time is an argument.

Above ``BUDGET`` frames per second the filter (``bpf``) keeps one of two, four, ... connections, whole ones, by bits of
the client's port. The port pattern comes from one recent port drawn at random, so that at least one active connection
stays. Each port has the same chance, whatever its packet rate: otherwise a client that floods from one port would be
the only one watched. A credit absorbs short bursts. When the rate falls, the filter widens at once to what the rate
allows: a fault right after a burst is as visible as any. If that proves too wide, the next widening waits longer.

Segments of connections that the server never answered (``Strays``) must not narrow the filter: any client can send
20,000 a second. A few pass, since they may belong to connections that are older than the capture; the others cost next
to nothing.
"""

import random
from collections.abc import Sequence

BUDGET = 1000  # frames per second
BURST = 1000  # frames of credit beyond it: a large answer, a wave of clients
CALM = 400  # kept frames per second; below this rate the filter may keep more connections
PATIENCE, LONGEST = 0.5, 16.0  # seconds below that rate until it does; after widenings in vain
MAX_BITS = 9
REDRAWN = 2.0  # seconds above the budget at the finest filter until another port is drawn
WINDOW = 0.5  # seconds over which the rate is measured
STRAYS = 100  # frames per second that pass
STRAY = 1 / 50  # what another one costs of the budget
_ANSWERED, _FOR = 4096, 30.0  # connections known as answered, and seconds, twice

Key = tuple[bytes, int]  # a client's address and port


class Strays:
    """Which connections of a service the server answered lately."""

    def __init__(self) -> None:
        self._answered: set[Key] = set()
        self._before: set[Key] = set()
        self._begun = self._at = float("-inf")
        self._credit = 0.0

    def answered(self, key: Key, now: float) -> None:
        if len(self._answered) >= _ANSWERED or now - self._begun > _FOR:
            self._answered, self._before, self._begun = set(), self._answered, now
        self._answered.add(key)

    def stray(self, key: Key) -> bool:
        return key not in self._answered and key not in self._before

    def passes(self, now: float) -> bool:
        """Whether one more stray may pass now."""
        self._credit = min(STRAYS, self._credit + STRAYS * (now - self._at))
        self._at, one = now, self._credit >= 1.0
        self._credit -= one
        return one


class Sampling:
    """The sampling of one service, or of the refusals. ``bits`` and ``port`` are the filter's arguments."""

    def __init__(self, now: float) -> None:
        self.bits = self.port = 0
        self._credit = float(BURST)
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

    def count(self, frames: float, ports: Sequence[int], now: float) -> bool:
        """Count captured frames; ``ports`` are the client ports of the last ones. True: the filter must change."""
        self._credit = min(BURST, self._credit + BUDGET * (now - self._counted)) - frames
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
        if rate >= CALM:
            self._calm_since = now
        if self._credit < 0:
            self._credit = BURST
            return self._narrow(rate, random.choice(ports_seen or [0]), now)
        if not self.bits or now - self._calm_since < self._patience:
            return False
        self._calm_since = self._widened_at = now
        self.bits = min(self.bits - 1, int(rate * self.share / CALM).bit_length())
        return True

    def _narrow(self, rate: float, port: int, now: float) -> bool:
        bits = min(MAX_BITS, self.bits + max(1, int(rate / BUDGET).bit_length()))
        if bits == self.bits:
            if now - self._drawn_at < REDRAWN:
                return False
            bits = 0  # the drawn port sends too much: watch all connections for a moment, then draw again
        in_vain = now - self._widened_at < 2 * self._patience
        self._patience = min(LONGEST, 2 * self._patience) if in_vain else PATIENCE
        self.bits, self.port, self._drawn_at = bits, port, now
        return True
