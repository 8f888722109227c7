"""The damping of the automatic fail-back, over simulated clocks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover.damping import PENALTY, SUPPRESS, Damping, decayed, failed_over

DAY = 86400.0
NOON = 1_700_000_000.0


def after(times: list[float], half_life: float = DAY) -> Damping:
    """What fail-overs at these times leave."""
    damping = Damping()
    for at in times:
        damping = failed_over(damping, at, half_life)
    return damping


def test_the_second_fail_over_locks() -> None:
    """One is forgiven, a second within the half-life is not; the day after the next it would have been."""
    assert not after([NOON]).locked
    assert after([NOON, NOON + 60.0]).locked
    assert after([NOON, NOON + DAY]).locked
    assert not after([NOON, NOON + DAY + 60.0]).locked


def test_a_penalty_halves_with_each_half_life() -> None:
    """1000, 500, 250, ... as in RFC 2439, whatever the half-life."""
    for half_life in (1.0, 900.0, DAY):
        one = after([NOON], half_life)
        halves = [decayed(one, NOON + count * half_life, half_life) for count in range(4)]
        assert halves == pytest.approx([PENALTY, PENALTY / 2, PENALTY / 4, PENALTY / 8])


def test_a_lock_outlasts_its_penalty() -> None:
    """Time alone unlocks nothing: next year's fail-over finds it locked, though nothing is left of the penalty."""
    locked = after([NOON, NOON + 1.0])
    assert decayed(locked, NOON + 365 * DAY, DAY) == pytest.approx(0.0)
    assert after([NOON, NOON + 1.0, NOON + 365 * DAY]).locked


def test_a_clock_that_went_back_forgives_nothing() -> None:
    """After a jump into the past the penalty stands as it was."""
    assert decayed(after([NOON]), NOON - DAY, DAY) == PENALTY
    assert after([NOON, NOON - DAY]).locked


def test_a_primary_that_fails_with_patience_is_never_locked() -> None:
    """A fault every two days: the penalty has a limit below the lock, as the geometric series says, for ever."""
    damping = Damping()
    for count in range(1000):
        damping = failed_over(damping, NOON + count * 2 * DAY, DAY)
    assert damping.penalty == pytest.approx(PENALTY / (1 - 0.25))
    assert not damping.locked


@given(st.lists(st.floats(0.0, 10 * DAY), min_size=1, max_size=20), st.floats(1.0, 10 * DAY))
def test_locked_is_what_the_sum_says(gaps: list[float], half_life: float) -> None:
    """At each fail-over the penalty is the sum over all so far; it locks the first time that reaches the limit."""
    times = [NOON + total for total in itertools.accumulate(gaps)]
    sums = [
        sum(PENALTY * 0.5 ** ((now - then) / half_life) for then in times[: index + 1])
        for index, now in enumerate(times)
    ]
    damping = after(times, half_life)
    assert damping.penalty == pytest.approx(sums[-1], rel=1e-6)
    if all(abs(one - SUPPRESS) > 1e-3 for one in sums):
        assert damping.locked is any(one >= SUPPRESS for one in sums)
