"""How much of a service's traffic is looked at, so that cost does not grow with it. Pure; time is an argument.

Above ``BUDGET`` frames a second only one of two, four, ... connections is kept: whole ones, by bits of the client's
port (the filter does it, see ``bpf``), and so that one of those seen last stays, because a handful of busy ones must
not all be left out. Which one is drawn by lot, and who sends much has no more lots than others: a client that floods
from one port would else be all that is watched. A short burst is nothing to act upon; it lives on credit. When it is
calm, more is watched again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

BUDGET = 1000  # frames a second
BURST = 1000  # frames beyond it that are taken in one go: a large answer, a wave of clients
CALM = 400  # below this many kept frames a second twice as much could be watched
PATIENCE = 10.0  # seconds of calm until it is
MAX_BITS = 9
REDRAWN = 2.0  # seconds with too much at the finest filter until the lot is drawn anew
WINDOW = 0.5  # seconds over which the rate is measured


class Sampling:
    """Of one service, or of the refusals. ``bits`` and ``port`` are the filter's arguments."""

    __slots__ = (
        "_begun",
        "_calm_since",
        "_counted",
        "_credit",
        "_drawn_at",
        "_frames",
        "_ports",
        "_ports_before",
        "bits",
        "port",
    )

    def __init__(self, now: float) -> None:
        self.bits = self.port = 0
        self._credit = float(BURST)
        self._counted = self._begun = self._calm_since = self._drawn_at = now
        self._frames = 0
        # One for all ports that even the finest filter takes for the same: of this window, and of the one before.
        self._ports: dict[int, int] = {}
        self._ports_before: dict[int, int] = {}

    @property
    def share(self) -> int:
        """One of how many connections is watched."""
        return 1 << self.bits

    def keeps(self, port: int) -> bool:
        """Whether connections from this port of a client are watched."""
        return not (port ^ self.port) >> 4 & (1 << self.bits) - 1

    def count(self, frames: int, ports: Sequence[int], now: float) -> bool:
        """So many frames were captured, the last ones of these clients' ports. True: the filter must change."""
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
        self._frames, self._begun = 0, now
        if rate >= CALM:
            self._calm_since = now
        if self._credit < 0:
            self._credit = BURST
            return bool(ports_seen) and self._narrow(rate, random.choice(ports_seen), now)
        if not self.bits or now - self._calm_since < PATIENCE:
            return False
        self._calm_since = now
        self.bits -= 1
        return True

    def _narrow(self, rate: float, port: int, now: float) -> bool:
        bits = min(MAX_BITS, self.bits + max(1, int(rate / BUDGET).bit_length()))
        if bits == self.bits:
            if now - self._drawn_at < REDRAWN:
                return False
            bits = 0  # the lot fell on who sends too much: for a moment everybody has one
        self.bits, self.port, self._drawn_at = bits, port, now
        return True
