"""Random faults in sequences, both daemons and the core among what fails: what ``make chaos`` does, in short rounds."""

from __future__ import annotations

import pytest

from tests.chaos.run import run
from tests.chaos.sequence import NOT_YET, generate

pytestmark = pytest.mark.system

SEEDS = (*range(81, 89), *range(90, 99), 89, 99, 109)  # of rounds that take few seconds; the last three on Icinga 2


def test_twenty_rounds() -> None:
    """After each quiet: one possible target, the same everywhere; served clients; no traceback, no part that ended."""
    said: list[str] = []
    failures = run([generate(seed, most=2, quick=True, without=NOT_YET) for seed in SEEDS], said.append, quick=True)
    assert not failures, "\n\n".join(failures)
    assert sum(line.strip().startswith("ok, ") for line in said) == 20
