"""Acknowledged writes in random sequences of faults, flips and runs of failover-sync: what ``make chaos-data`` does."""

from __future__ import annotations

import pytest

from tests.chaos.data.run import run
from tests.chaos.data.sequence import generate

pytestmark = pytest.mark.system

SEEDS = {"ldap": range(1, 6), "files": range(10001, 10006)}


@pytest.mark.parametrize("kind", SEEDS)
def test_five_rounds(kind: str) -> None:
    """Each acknowledged write is served in the end, or lies in a place that a run named; none is lost in silence."""
    said: list[str] = []
    failures = run([generate(seed) for seed in SEEDS[kind]], said.append)
    assert not failures, "\n\n".join(failures)
    assert sum(line.strip().startswith("ok, ") for line in said) == 5
