"""When a run may overwrite a server that clients may have written to: all combinations."""

from __future__ import annotations

import itertools

import pytest

from check_failover.model import Target, Why
from check_failover.records import Reach
from check_failover.sync.guard import SyncRefusedError, check_reached, check_written, ends
from check_failover.syncstate import Digests, Refusal, SyncDirection, SyncState, dump, parse

SAME, CHANGED, UNKNOWN, EMPTY = "same", "changed", None, ""


def expected(reached: bool, known: str | None, source: str | None, receiver: str | None) -> Refusal | None:
    """The rule, written another way: what is lost if the receiving server is overwritten."""
    if not reached or receiver == EMPTY:
        return None  # there is nothing that a client wrote
    if known is UNKNOWN or receiver is UNKNOWN:
        return Refusal.BOTH_SERVED  # it cannot be seen
    if receiver == SAME:
        return None
    return Refusal.OTHER_DIRECTION if source == SAME else Refusal.BOTH_SERVED


@pytest.mark.parametrize("direction", SyncDirection)
@pytest.mark.parametrize(
    ("reached", "known", "source", "receiver"),
    list(itertools.product([False, True], [SAME, UNKNOWN], [SAME, CHANGED], [SAME, CHANGED, UNKNOWN, EMPTY])),
)
def test_the_rule(
    direction: SyncDirection, reached: bool, known: str | None, source: str | None, receiver: str | None
) -> None:
    """Direction, how clients reached the receiver, digests of the last good run, digests now."""
    giver, taker = ends(direction)
    was = Digests().put(giver, SAME).put(taker, known)
    found = Digests().put(giver, source).put(taker, receiver)
    reason = expected(reached, known, source, receiver)
    if reason is None:
        check_written("web", direction, "6 connections rescued" if reached else "", was, found)
        return
    with pytest.raises(SyncRefusedError, match="6 connections rescued") as refused:
        check_written("web", direction, "6 connections rescued", was, found)
    assert refused.value.reason is reason
    assert f"--take {taker}" in refused.value.text


@pytest.mark.parametrize("direction", SyncDirection)
@pytest.mark.parametrize("server", Target)
@pytest.mark.parametrize(("end", "goes_on"), [(None, True), (200.0, True), (50.0, False)])
def test_a_receiving_server_that_is_reached_now(
    direction: SyncDirection, server: Target, end: float | None, goes_on: bool
) -> None:
    """An open record, or a lease that has not ended, of the receiving server; the source may be reached."""
    reached = (Reach(server, Why.RESCUE, 10.0, end, 2),)
    if goes_on and server is ends(direction)[1]:
        with pytest.raises(SyncRefusedError, match="2 connections rescued") as refused:
            check_reached(direction, reached, 100.0)
        assert refused.value.reason is Refusal.STILL_REACHED
    else:
        check_reached(direction, reached, 100.0)


def test_digests_are_in_the_record() -> None:
    """Written and read; unknown ones, and a record of an earlier version, are unknown."""
    state = SyncState(equal_at=1.0, digests=Digests("ab", None), kept="standby (local): /x.sync/kept-1")
    assert parse(dump(state)) == state
    assert parse('{"equal_at": 1.0}').digests == Digests()
    with pytest.raises(ValueError, match=r"digests.primary"):
        parse('{"digests": {"primary": 1}}')
