"""Who may have reached which server: what flips, drains, leases and the other controller make of the records."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover import reach
from check_failover.model import Facts, Target, Why
from check_failover.records import Reach, RecordError
from check_failover.redirector.order import Order, after
from check_failover.redirector.state import ServiceState, outranks, parsed
from tests.unit import packets as made

PRIMARY, STANDBY = Target.PRIMARY, Target.STANDBY
NOON = time.mktime((2026, 3, 1, 12, 0, 0, 0, 0, -1))
START = reach.derived(PRIMARY, None)


def flip(state: ServiceState, now: float, *, drain: bool = False) -> ServiceState:
    return after(state, Order(made.service(), "fail-over", "me", Facts(), manual=True, drain=drain), now)


def test_a_flip_ends_one_and_begins_the_other() -> None:
    """Each server is reached exactly while it is the target."""
    state = flip(flip(ServiceState(reached=START), 100.0), 200.0)
    assert state.reached == (
        Reach(PRIMARY, Why.SERVES, 0.0, 100.0),
        Reach(STANDBY, Why.SERVES, 100.0, 200.0),
        Reach(PRIMARY, Why.SERVES, 200.0),
    )


def test_the_old_server_of_a_drain_stays_reached() -> None:
    """Until the drain is over, or the next flip makes it the target again."""
    state = flip(ServiceState(reached=START), 100.0, drain=True)
    assert reach.since(state.reached, PRIMARY, 150.0) == (Reach(PRIMARY, Why.DRAIN, 100.0),)
    assert reach.since(reach.closed(state.reached, Why.DRAIN, 150.0), PRIMARY, 150.0) == ()
    back = flip(state, 200.0, drain=True).reached
    assert reach.since(back, PRIMARY, 200.0) == (Reach(PRIMARY, Why.SERVES, 200.0),)
    assert reach.since(back, STANDBY, 200.0) == (Reach(STANDBY, Why.DRAIN, 200.0),)


def test_a_lease_is_written_once_in_half_a_minute() -> None:
    """One record while rescues follow each other; a new one after a pause."""
    reached, written = START, []
    for now in (100.0, 101.0, 129.0, 131.0, 200.0):
        reached, due = reach.leased(reached, STANDBY, Why.RESCUE, now)
        written.append(due)
        assert reach.since(reached, STANDBY, now + reach.RENEWED - 1)
    assert written == [True, False, False, True, True]
    rescued = [one for one in reached if one.why is Why.RESCUE]
    assert [(one.begin, one.end, one.count) for one in rescued] == [(100.0, 191.0, 4), (200.0, 260.0, 1)]


MOMENTS = st.floats(1.0, 1e9)
RECORDS = st.builds(
    lambda server, why, begin, length, count: Reach(
        server, why, begin, None if length is None else begin + length, count
    ),
    st.sampled_from(Target), st.sampled_from(Why), MOMENTS, st.none() | st.floats(0.0, 1e6), st.integers(0, 9),
)  # fmt: skip


@given(st.lists(RECORDS, max_size=80), st.sampled_from(Target), MOMENTS)
def test_the_records_have_a_bound_and_forget_nothing(records: list[Reach], server: Target, at: float) -> None:
    """At most 32; what was reached after a moment is still said to be, and each connection counts once."""
    found = reach.merged(tuple(records))
    assert len(found) <= reach.MOST
    assert bool(reach.since(found, server, at)) is bool(reach.since(records, server, at))
    assert sum(one.count for one in found) == sum(one.count for one in records)
    assert found == tuple(sorted(found, key=lambda one: one.begin))
    assert reach.merged(found) == found


@given(st.lists(RECORDS, max_size=40), st.lists(RECORDS, max_size=40), MOMENTS)
def test_what_the_other_controller_did_counts_here(mine: list[Reach], theirs: list[Reach], now: float) -> None:
    """All of its last records, said again without an effect; what is open there is open here."""
    own, others = reach.merged(tuple(mine)), reach.merged(tuple(theirs))
    found = reach.joined(own, others, now)
    assert len(found) <= reach.MOST
    for one in others:
        if one.why not in (Why.PEER, Why.PEER_SILENT):
            assert reach.since(found, one.server, one.begin if one.end is None else min(one.begin, one.end - 1))
            assert one.end is not None or any(f.end is None for f in found if f.server is one.server)
    assert reach.joined(found, others, now + 1) == reach.joined(reach.joined(found, others, now + 1), others, now + 2)


def test_a_drain_of_the_other_controller_ends_with_it() -> None:
    """It is open here as long as there, although this controller itself has no connection on the old server."""
    drain = Reach(PRIMARY, Why.DRAIN, 100.0)
    mine = reach.turned(START, STANDBY, 101.0, drain=True, begin=100.0)
    mine = reach.joined(reach.closed(mine, Why.DRAIN, 102.0), (drain,), 103.0)
    assert reach.since(mine, PRIMARY, 103.0) == (Reach(PRIMARY, Why.PEER, 100.0),)
    over = reach.joined(mine, (replace(drain, end=500.0),), 501.0)
    assert reach.since(over, PRIMARY, 400.0) == (Reach(PRIMARY, Why.PEER, 100.0, 500.0),)
    lost = reach.joined(mine, (), 600.0)  # its disk was replaced
    assert reach.since(lost, PRIMARY, 599.0) == (Reach(PRIMARY, Why.PEER, 100.0, 600.0),)


def test_what_each_sees_for_itself_is_no_rank() -> None:
    """Otherwise two controllers would follow each other for ever."""
    state = ServiceState(reached=START, generation=1)
    drained = flip(state, 100.0, drain=True)
    over = replace(drained, drain=None, reached=START)
    assert not outranks(drained, over)
    assert not outranks(over, drained)


def test_a_state_without_records() -> None:
    """An earlier version's: the target serves since the last flip, the other one did until then."""
    raw = {"target": "standby", "since": 100.0}
    assert parsed(raw).reached == (Reach(PRIMARY, Why.SERVES, 0.0, 100.0), Reach(STANDBY, Why.SERVES, 100.0))
    assert parsed({"target": "primary"}).reached == (Reach(PRIMARY, Why.SERVES, 0.0),)


def test_records_are_read_strictly() -> None:
    """The way to the disk and back; and what makes no sense is no state."""
    reached = (Reach(STANDBY, Why.RESCUE, 100.0, 160.0, 6), Reach(PRIMARY, Why.SERVES, 0.0))
    raw = [{**asdict(one), "server": str(one.server), "why": str(one.why)} for one in reached]
    assert parsed({"target": "primary", "reached": raw}).reached == reached
    for key, bad in (("server", "both"), ("why", "?"), ("begin", "now"), ("end", -1.0), ("count", -1), ("count", 1.5)):
        with pytest.raises(RecordError, match=rf"reached\[0\].{key}"):
            parsed({"target": "primary", "reached": [{**raw[0], key: bad}]})


def test_what_people_read() -> None:
    """One line, only where the server that does not serve was reached within the hour; older times have their date."""
    rescued = Reach(STANDBY, Why.RESCUE, NOON + 180, NOON + 300, 6)
    reached = (*START, rescued, Reach(STANDBY, Why.DRAIN, NOON + 60))
    now = NOON + 600
    assert reach.line(START, PRIMARY, now) is None
    assert reach.line(reached, PRIMARY, now) == (
        "standby still reached: 6 connections rescued 12:03-12:05, drain since 12:01"
    )
    assert reach.line((rescued,), PRIMARY, now) == "standby reached lately: 6 connections rescued 12:03-12:05"
    assert reach.line((rescued,), PRIMARY, now + reach.LATELY) is None
    assert reach.line(reached, STANDBY, now) == "primary still reached: serves"
    assert reach.text([replace(rescued, count=1)], now + 86400) == (
        "1 connection rescued 2026-03-01 12:03-2026-03-01 12:05"
    )
    assert reach.text(reach.derived(STANDBY, NOON), now) == "serves until 12:00, serves since 12:00"
