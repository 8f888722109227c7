"""Damping of the automatic fail-back: how often may a service come and go before a person has to look.

After RFC 2439 (BGP route flap damping, section 4.2): each fail-over adds a penalty that halves with every half-life;
one that lifts it to ``SUPPRESS`` or above locks. So a second fail-over within one half-life of the first locks the
service on the standby. Other than in the RFC nothing unlocks by itself: a primary that comes and goes with the patience
of its half-life would go on for ever. A person who fails back has looked: lock and penalty are gone.

Pure. ``now`` is the wall clock, because it must survive a restart; a clock that went back decays nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

PENALTY = 1000.0  # of one fail-over
SUPPRESS = 1500.0
LONGEST_PROOF = 300.0  # seconds


@dataclass(frozen=True, slots=True)
class Damping:
    """The penalty as it was at ``at``, and whether it ever went too high since a person last failed back."""

    penalty: float = 0.0
    at: float = 0.0
    locked: bool = False


def decayed(damping: Damping, now: float, half_life: float) -> float:
    """The penalty now. ``half_life`` in seconds, above 0."""
    return float(damping.penalty * 2.0 ** (-max(0.0, now - damping.at) / half_life))


def proof(penalty: float, seconds: float) -> float:
    """For how long the other server must have passed its probes before the next automatic flip, in seconds.

    Nothing up to ``SUPPRESS``; then ``seconds`` for each penalty of a flip above the first, at most ``LONGEST_PROOF``.
    """
    return 0.0 if penalty < SUPPRESS else min(LONGEST_PROOF, seconds * (penalty / PENALTY - 1.0))


def failed_over(damping: Damping, now: float, half_life: float) -> Damping:
    """After one more fail-over that no person ordered."""
    penalty = decayed(damping, now, half_life) + PENALTY
    return Damping(penalty, now, damping.locked or penalty >= SUPPRESS)
