"""The learned waiting times, against the numbers of the design and RFC 6298."""

from __future__ import annotations

import random

import pytest

from check_failover.sniffer.stage1.thresholds import Errors, Quiet, ReplyTimes, RoundTrip, Scale


def reply_times(*seconds: float) -> ReplyTimes:
    made = ReplyTimes()
    for each in seconds:
        made.add(each)
    return made


@pytest.mark.parametrize("known", [0, 1, 10, 99])
def test_until_100_replies_are_known_the_wait_is_300_ms(known: int) -> None:
    """Whatever those few took: the slowest of ten says nothing, and must not make deaf for long."""
    assert reply_times(*[0.001] * known).wait() == 0.3
    assert reply_times(*[5.0] * known).wait() == 0.3


def test_one_slow_reply_of_100_is_not_the_usual() -> None:
    """p99 is the nearest rank: of 100, the second largest."""
    learned = reply_times(*[0.002] * 50, 5.0, *[0.002] * 49)
    assert learned.p99 == 0.002
    assert learned.wait() == 0.1


@pytest.mark.parametrize(("usual", "wait"), [(0.001, 0.1), (0.025, 0.1), (0.03, 0.12), (0.2, 0.8), (2.0, 8.0)])
def test_the_wait_is_four_times_p99_and_100_ms_at_least(usual: float, wait: float) -> None:
    """From the 100th reply on."""
    assert reply_times(*[usual] * 100).wait() == pytest.approx(wait)


def test_p50_and_p99_are_those_of_the_last_replies() -> None:
    """Within 32 replies of what sorting everything would say; old ones are forgotten."""
    chance = random.Random(1)
    seen = [chance.expovariate(100) for _ in range(5120)]
    learned = reply_times(*seen)
    last = sorted(seen[-512:])
    assert learned.p50 == last[255]
    assert learned.p99 == last[506]
    for _ in range(512):
        learned.add(0.5)
    assert (learned.p50, learned.p99) == (0.5, 0.5)


def test_nothing_is_known_of_nothing() -> None:
    """No reply yet: no percentile."""
    assert (ReplyTimes().p50, ReplyTimes().p99) == (None, None)


def test_the_first_round_trip() -> None:
    """RFC 6298, 2.2: SRTT = R, RTTVAR = R/2; so R + 4 * R/2 = 3 R."""
    trip = RoundTrip()
    trip.add(0.08)
    assert trip.wait() == pytest.approx(0.24)


def test_further_round_trips() -> None:
    """RFC 6298, 2.3: RTTVAR first, with the old SRTT."""
    trip = RoundTrip()
    trip.add(0.08)
    trip.add(0.16)
    srtt = 0.875 * 0.08 + 0.125 * 0.16
    assert trip.wait() == pytest.approx(srtt + 4 * (0.75 * 0.04 + 0.25 * 0.08))


@pytest.mark.parametrize(("seconds", "wait"), [(0.0001, 0.1), (0.03, 0.1), (1.0, 0.5), (60.0, 0.5)])
def test_the_wait_for_a_handshake_stays_between_100_and_500_ms(seconds: float, wait: float) -> None:
    """However near or far the server is."""
    trip = RoundTrip()
    assert 0.1 <= trip.wait() <= 0.5
    for _ in range(50):
        trip.add(seconds)
    assert trip.wait() == wait


def test_a_threshold_doubles_and_decays_over_minutes() -> None:
    """Twice refuted: four times as slow; half of that after two minutes; as before after four, and never faster."""
    scale = Scale()
    assert scale.now(100.0) == 1.0
    scale.double(100.0)
    scale.double(100.0)
    assert scale.now(100.0) == 4.0
    assert scale.now(220.0) == pytest.approx(2.0)
    assert scale.now(340.0) == pytest.approx(1.0)
    assert scale.now(10_000.0) == 1.0


def test_a_threshold_does_not_grow_for_ever() -> None:
    """A hundred refutations in a row leave a detector that still works."""
    scale = Scale()
    for _ in range(100):
        scale.double(0.0)
    assert scale.now(0.0) == 64.0


def test_doubling_begins_at_what_is_left() -> None:
    """Decay and doubling together."""
    scale = Scale()
    scale.double(0.0)
    scale.double(120.0)
    assert scale.now(120.0) == pytest.approx(2.0)


def outcomes(errors: Errors, kinds: str, now: float = 0.0, scale: float = 1.0) -> list[bool]:
    """For each error ("x") whether it was suspicious."""
    found = []
    for kind in kinds:
        errors.add(kind == "x")
        if kind == "x":
            found.append(errors.suspicious(now, scale) is not None)
    return found


def test_the_first_error_is_worth_a_look() -> None:
    """And the next four are not, while they are few."""
    assert outcomes(Errors(), "." * 50 + "xxxx") == [True, False, False, False]


def test_a_fifth_of_the_last_100_is_suspicious() -> None:
    """20 of 100; not 19."""
    errors = Errors()
    assert outcomes(errors, "." * 100 + "x" * 19) == [True] + [False] * 18
    assert outcomes(errors, "xx") == [True, True]
    assert errors.share == 0.21


def test_a_few_replies_are_enough_when_most_are_errors() -> None:
    """A service with one request a second is not watched for two minutes first."""
    assert outcomes(Errors(), "xxxxx") == [True, False, False, False, True]


def test_old_errors_are_forgotten() -> None:
    """Behind 100 good replies nothing is left, and the next error is a first one, once a minute."""
    errors = Errors()
    assert outcomes(errors, "x", now=0.0) == [True]
    assert outcomes(errors, "." * 100 + "x", now=59.0) == [False]
    assert outcomes(errors, "." * 100 + "x", now=60.0) == [True]
    assert outcomes(errors, "." * 100 + "x", now=170.0, scale=2.0) == [False]


def test_a_refuted_share_has_to_be_larger_and_all_errors_always_are() -> None:
    """Doubled, the share is 40 %; however often refuted, a server that only fails is suspicious."""
    errors = Errors()
    outcomes(errors, "." * 100)
    assert outcomes(errors, "x" * 40, scale=2.0)[1:] == [False] * 38 + [True]
    assert outcomes(errors, "x" * 60, scale=64.0)[-1]


def test_silence_begins_after_60_s() -> None:
    """With busy traffic before."""
    quiet, scale = Quiet(), Scale()
    assert quiet.due(scale) is None
    for number in range(100):
        quiet.traffic(1000 + number * 0.01)
    assert quiet.due(scale) == pytest.approx(1060.99)


def test_silence_is_ten_usual_gaps() -> None:
    """Clients that come every five minutes make no silence of 60 s; the packets of one visit are no gap."""
    quiet, scale = Quiet(), Scale()
    now = 0.0
    for _ in range(100):
        for _ in range(10):
            quiet.traffic(now)
            now += 0.01
        now += 300
    due = quiet.due(scale)
    assert quiet.last is not None
    assert due is not None
    assert due - quiet.last == pytest.approx(3000, rel=0.1)


def test_one_long_night_is_not_the_usual_gap() -> None:
    """The next morning's silence is noticed in minutes, not in days."""
    quiet, scale = Quiet(), Scale()
    for now in (0.0, 5.0, 10.0, 36_000.0):
        quiet.traffic(now)
    due = quiet.due(scale)
    assert due is not None
    assert due - 36_000 <= 120


def test_silence_is_looked_at_once() -> None:
    """One probe; the next one after somebody has spoken and fallen silent again."""
    quiet, scale = Quiet(), Scale()
    quiet.traffic(0.0)
    quiet.probed = True
    assert quiet.due(scale) is None
    quiet.traffic(500.0)
    assert quiet.due(scale) is not None


def test_a_refuted_silence_has_to_last_longer() -> None:
    """Doubled, and decayed by the time of the next one."""
    quiet, scale = Quiet(), Scale()
    scale.double(100.0)
    quiet.traffic(100.0)
    assert quiet.due(scale) == 220.0
    quiet = Quiet()
    quiet.traffic(10_000.0)
    assert quiet.due(scale) == 10_060.0
