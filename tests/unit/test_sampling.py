"""Sampling: what is watched of how much traffic."""

from __future__ import annotations

import random
import selectors
from types import SimpleNamespace

import pytest

from check_failover.sniffer.capture.sampling import (
    BUDGET,
    LEAST,
    MAX_BITS,
    STRAY,
    STRAYS,
    TOTAL,
    WINDOW,
    Budget,
    Sampling,
    Strays,
)
from check_failover.sniffer.capture.taps import Taps
from check_failover.sniffer.stage1.packet import ACK, FIN, RST, SYN, UDP
from tests.unit import packets as made


def feed(sampling: Sampling, rate: float, start: float, seconds: float, port: int = 40000) -> float:
    """``rate`` frames a second, as many as the filter lets through; returns the rate kept at the end."""
    now = start
    while now < start + seconds:
        now += 0.01
        sampling.count(int(rate / sampling.share / 100), [port], now)
    return rate / sampling.share


@pytest.mark.parametrize("rate", [2_000, 10_000, 60_000, 100_000, 300_000])
def test_what_is_looked_at_does_not_grow_with_traffic(rate: int) -> None:
    """Whatever comes, the budget is kept after a moment, and some of it is always watched."""
    sampling = Sampling(0.0)
    kept = feed(sampling, rate, 0.0, 10.0)
    assert BUDGET / 8 <= kept <= BUDGET


def test_a_flood_is_sampled_within_its_first_frames() -> None:
    """The ring holds 30 ms of it: there is no time to measure."""
    sampling = Sampling(0.0)
    assert sampling.count(BUDGET + 128, [40000], 0.01)
    assert sampling.share > 32


def test_a_burst_is_no_flood() -> None:
    """One large answer now and then costs nobody his place."""
    sampling = Sampling(0.0)
    for second in range(1, 60):
        assert not sampling.count(900, [40000], float(second))
    assert sampling.share == 1


@pytest.mark.parametrize("after", [0, 100, 300])
def test_calm_brings_everything_back_at_once(after: int) -> None:
    """A fault right after a burst of three seconds is not looked for in one of 512 connections."""
    sampling = Sampling(0.0)
    feed(sampling, 36_000, 0.0, 3.0)
    assert sampling.share >= 32
    feed(sampling, after, 3.0, 2 * WINDOW + 0.02)
    assert sampling.share == 1


def test_a_lower_rate_is_followed_without_oscillation() -> None:
    """From 100,000 to 5,000 frames a second the share follows, and what is looked at keeps to the budget."""
    sampling = Sampling(0.0)
    feed(sampling, 100_000, 0.0, 5.0)
    before = sampling.share
    feed(sampling, 5_000, 5.0, 3.0)
    assert sampling.share <= before / 8
    changes = 0
    for step in range(1, 6_000):
        changes += sampling.count(int(5_000 / sampling.share / 100), [40000], 8.0 + step / 100)
    assert changes <= 4


def test_widening_in_vain_becomes_rare() -> None:
    """The drawn port is idle while others send 50,000 frames a second: each look at all costs a burst of frames."""
    sampling, kept = Sampling(0.0), 0
    for step in range(1, 6_000):
        frames = 500 if sampling.share == 1 else 0
        for _ in range(0, frames, 128):
            kept += 128
            if sampling.count(128, [40000], step / 100):
                break
        else:
            sampling.count(0, [], step / 100)
    assert kept < 60 * BUDGET / 4


def test_the_connection_seen_last_is_kept() -> None:
    """And with a wider filter still."""
    sampling = Sampling(0.0)
    feed(sampling, 100_000, 0.0, 1.0, port=51234)
    assert sampling.keeps(51234)
    assert not sampling.keeps(51234 ^ 16)
    assert sum(map(sampling.keeps, range(32768, 61000))) <= 2 * 28232 / sampling.share


def test_only_as_much_as_there_are_bits() -> None:
    """One connection with more than the budget stays watched: better dear than blind."""
    sampling = Sampling(0.0)
    for number in range(1, 100):
        sampling.count(3000, [40000], number / 100)
    assert sampling.bits == MAX_BITS
    assert sampling.keeps(40000)


@pytest.mark.parametrize("flood", [3_000, 20_000])
@pytest.mark.parametrize("alone", [0.0, 15.0], ids=["at once", "from before the others came"])
def test_who_floods_from_one_port_is_not_all_that_is_watched(flood: int, alone: float) -> None:
    """Fifty connections a second of others, ten frames each: some are watched, and the budget is kept."""
    random.seed(7)
    sampling, kept = Sampling(0.0), 0
    seen: list[int] = []
    for step in range(1, 12_000):
        frames = [5000] * (flood // 100)
        if step % 2 and step / 100 > alone:
            frames += [random.randrange(32768, 61000)] * 10
        random.shuffle(frames)
        passed = [port for port in frames if sampling.keeps(port)]
        if step / 100 > 30:
            seen += set(passed) - {5000}
            kept += len(passed)
        for first in range(0, len(passed), 128):
            sampling.count(len(passed[first : first + 128]), passed[first : first + 128], step / 100)
    assert len(seen) > 25, "nine is what the finest filter leaves"
    assert kept / 90 < BUDGET


def shared(rates: list[float], seconds: float) -> tuple[list[Sampling], Budget, float]:
    """Services with so many frames a second each; returns also what was kept per second at the end."""
    samplings, budget, kept = [Sampling(0.0) for _ in rates], Budget(0.0), 0.0
    due = [0.0] * len(rates)
    for step in range(1, int(seconds * 100) + 1):
        now, frames = step / 100, 0
        for n, (sampling, rate) in enumerate(zip(samplings, rates, strict=True)):
            due[n] += rate / sampling.share / 100
            passed, due[n] = int(due[n]), due[n] % 1
            frames += passed
            sampling.count(passed, [40000], now, budget.each)
        budget.count(frames, now)
        if now > seconds - 2:
            kept += frames / 2
    return samplings, budget, kept


def test_a_busy_service_takes_nothing_from_the_others() -> None:
    """One is flooded, fifty are not: all connections of these are watched."""
    samplings, budget, kept = shared([100_000.0, *[20.0] * 50], 10.0)
    assert samplings[0].share >= 128
    assert {sampling.share for sampling in samplings[1:]} == {1}
    assert budget.each == BUDGET
    assert kept <= TOTAL


@pytest.mark.parametrize("many", [20, 200])
def test_many_services_share_a_budget(many: int) -> None:
    """Below their own budgets, above the common one: the busy half is sampled, within a second, and the rest is not."""
    rates = [n % 2 * 880.0 + 5.0 for n in range(many)]
    samplings, budget, kept = shared(rates, 8.0)
    assert kept <= TOTAL
    assert LEAST <= budget.each < BUDGET
    assert {sampling.share for sampling in samplings[::2]} == {1}
    assert {sampling.share for sampling in samplings[1::2]} != {1}
    assert shared(rates, 2.0)[2] <= 3 * TOTAL


def test_the_common_budget_grows_again() -> None:
    """When there is less to watch."""
    budget = Budget(0.0)
    for step in range(100):
        budget.count(500, step / 100)
    assert budget.each < BUDGET / 8
    for step in range(100, 1500):
        budget.count(10, step / 100)
    assert budget.each == BUDGET


def test_what_the_server_never_answered_is_stray() -> None:
    """Data, FIN and RST of such a connection, not its SYN; the server's RST is no answer."""
    client = b"\xc6\x33\x64\x07"

    def watching(**service: str) -> Taps:
        controller = SimpleNamespace(client_interfaces=["cl0"])
        config = SimpleNamespace(controller=controller, services=(made.service(**service),))
        return Taps(config, selectors.DefaultSelector())  # type: ignore[arg-type]

    taps, server = watching(), made.service().address

    def stray(flags: int, port: int = 40000, *, answer: bool = False) -> bool:
        ends = (server.packed, server.port, client, port) if answer else (client, port, server.packed, server.port)
        return taps._between(made.Packet(1.0, 6, *ends, flags, 1, 1, b"", 0))[2]

    assert not stray(SYN)
    assert not stray(RST, answer=True)
    assert all(map(stray, (ACK, ACK | FIN, RST)))
    assert not stray(SYN | ACK, answer=True)
    assert not stray(ACK)
    assert stray(ACK, 40001)
    question = made.Packet(1.0, UDP, client, 1, server.packed, server.port, 0, 0, 0, b"", 0)
    assert watching(protocol="udp")._between(question) == (["ldap"], 1, False)


def test_answered_connections_are_remembered_for_a_while() -> None:
    """As many as a site has, in bounded memory."""
    strays = Strays()
    for number in range(100_000):
        strays.answered((b"x", number), number / 100)
    assert not strays.stray((b"x", 99_000))
    assert strays.stray((b"x", 10))
    assert len(strays._answered) + len(strays._before) < 40_000


def test_strays_neither_narrow_the_sample_nor_cost_much() -> None:
    """20,000 a second beside 200 frames of others: a few pass, and all connections are watched."""
    sampling, strays, passed = Sampling(0.0), Strays(), 0
    for step in range(1, 1000):
        few = sum(strays.passes("ldap", step / 100) for _ in range(200))
        passed += few
        assert not sampling.count(2 + few + STRAY * (200 - few), [40000], step / 100)
    assert sampling.share == 1
    assert 5 * STRAYS < passed <= 11 * STRAYS
