"""Damping of the automatic fail-back: after too many fail-overs, only an operator may fail back.

After RFC 2439 (BGP route flap damping, section 4.2): each fail-over adds a penalty, which halves with every half-life.
A penalty of ``SUPPRESS`` or more locks the service. So a second fail-over within one half-life locks the service on the
standby. Unlike the RFC, time alone never unlocks: otherwise a primary that fails once per half-life would flap for
ever. A manual fail-back clears lock and penalty.

Pure. ``now`` is the wall clock, because it must survive a restart; if the clock goes back, the penalty does not decay.
"""

from dataclasses import dataclass

PENALTY = 1000.0  # of one fail-over
SUPPRESS = 1500.0
LONGEST_PROOF = 300.0  # seconds


@dataclass(frozen=True, slots=True)
class Damping:
    """The penalty at the time ``at``, and whether it has reached ``SUPPRESS`` since the last manual fail-back."""

    penalty: float = 0.0
    at: float = 0.0
    locked: bool = False


def decayed(damping: Damping, now: float, half_life: float) -> float:
    """The penalty now. ``half_life`` in seconds, above 0."""
    return float(damping.penalty * 2.0 ** (-max(0.0, now - damping.at) / half_life))


def proof(penalty: float, seconds: float) -> float:
    """For how many seconds the other server must have passed its probes before the next automatic flip.

    0 up to ``SUPPRESS``; then ``seconds`` per ``PENALTY`` above the first, at most ``LONGEST_PROOF``.
    """
    return 0.0 if penalty < SUPPRESS else min(LONGEST_PROOF, seconds * (penalty / PENALTY - 1.0))


def failed_over(damping: Damping, now: float, half_life: float) -> Damping:
    """The damping after one more automatic fail-over."""
    penalty = decayed(damping, now, half_life) + PENALTY
    return Damping(penalty, now, damping.locked or penalty >= SUPPRESS)
