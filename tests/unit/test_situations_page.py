"""The page of situations says what the tables decide, and no wrong thing in the rows that matter most."""

from __future__ import annotations

import pytest

from check_failover.model import Target
from tests.lab.situations import CASES, HEALTH, PAGE, effect, page


def test_the_page_is_up_to_date() -> None:
    """Otherwise: python -m tests.lab.situations."""
    assert PAGE.read_text("utf-8") == page()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("unknown", ["primary", "standby"])
def test_what_is_unknown_moves_nothing(case: str, unknown: str) -> None:
    """Whichever server it is, and whatever else is so."""
    for health in HEALTH.values():
        for target in Target:
            primary, standby = (None, health) if unknown == "primary" else (health, None)
            assert effect(target, primary, standby, case).startswith("stays")


def test_the_rows_that_people_ask_for() -> None:
    """Whoever is healthy serves, unless a person forbade it."""
    assert effect(Target.PRIMARY, False, True, "") == "**fail-over**"
    assert effect(Target.STANDBY, True, False, "") == "**last resort: to the primary**"
    assert effect(Target.PRIMARY, False, False, "") == "stays: `no-healthy-server`"
    assert effect(Target.STANDBY, True, False, CASES[3]) == "stays: `not-synced-back`"
    assert {effect(target, False, True, CASES[1]) for target in Target if target is Target.PRIMARY} == {"stays: `hold`"}
