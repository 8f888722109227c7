"""Stage 2: which probes are due when, and what their outcomes mean."""

from __future__ import annotations

import pytest

from check_failover.model import Detector, Probe, Suspicion, Target
from check_failover.sniffer.investigation import Investigation, Verdict
from tests.unit import packets as made

PRIMARY, STANDBY = Target.PRIMARY, Target.STANDBY
LOSSY = (Detector.RETRANSMISSION, Detector.ERROR_SHARE)
OTHERS = [detector for detector in Detector if detector not in LOSSY]
GOOD = Probe(True, 0.01, "search done")
BAD = Probe(False, 0.01, "no reply")
NO = Probe(False, 0.001, "connection refused", refused=True)


def look(detector: Detector = Detector.UNANSWERED_REQUEST, serving: Target = PRIMARY) -> Investigation:
    """Begun at 10.0."""
    return Investigation(made.service(), Suspicion("ldap", detector, 10.0, "why"), serving, 10.0)


def starts(investigation: Investigation, until: float = 11.0) -> list[tuple[float, Target]]:
    """All probes with the moment they are due, when none of them ends."""
    found = [(10.0, target) for target in investigation.due(10.0)]
    while (due := investigation.deadline()) is not None and due <= until:
        found += [(due, target) for target in investigation.due(due)]
    return found


def answer(investigation: Investigation, *outcomes: Probe, other: Probe | None = GOOD) -> Verdict | None:
    """The verdict behind these outcomes of the serving server, each as soon as its probe was begun."""
    now = 10.0
    investigation.due(now)
    if other is not None:
        investigation.outcome(investigation.serving.other, other, now)
    for outcome in outcomes:
        investigation.outcome(investigation.serving, outcome, now + outcome.seconds)
        now = investigation.deadline() or now
        investigation.due(now)
    return investigation.verdict(12, 0)


@pytest.mark.parametrize("detector", OTHERS)
def test_two_probes_50_ms_apart_and_the_standby_in_parallel(detector: Detector) -> None:
    """The standby's and the first at once, the second 50 ms after the first."""
    assert starts(look(detector)) == [(10.0, STANDBY), (10.0, PRIMARY), (10.05, PRIMARY)]


@pytest.mark.parametrize("detector", LOSSY)
def test_a_third_probe_where_one_failure_may_be_chance(detector: Detector) -> None:
    """Loss and error shares."""
    expected = [(10.0, STANDBY), (10.0, PRIMARY), (10.05, PRIMARY), (10.1, PRIMARY)]
    found = starts(look(detector))
    assert [target for _, target in found] == [target for _, target in expected]
    assert [at for at, _ in found] == pytest.approx([at for at, _ in expected])


def test_on_the_standby_the_roles_are_swapped() -> None:
    """The serving server is probed twice, the primary once."""
    assert starts(look(serving=STANDBY)) == [(10.0, PRIMARY), (10.0, STANDBY), (10.05, STANDBY)]


@pytest.mark.parametrize("detector", OTHERS)
def test_two_of_two_must_fail(detector: Detector) -> None:
    """Both: failed, with the facts for the decision."""
    verdict = answer(look(detector), BAD, BAD)
    assert verdict is not None
    assert verdict.failed
    facts = verdict.facts
    assert (facts.detector, facts.probes, facts.probes_failed, facts.standby_ok) == (detector, 2, 2, True)
    assert (facts.requests, facts.replies) == (12, 0)
    assert verdict.text == "primary 10.0.0.11:389: no reply; no useful reply to 12 of 12 requests"


@pytest.mark.parametrize("detector", OTHERS)
@pytest.mark.parametrize("outcomes", [(GOOD,), (BAD, GOOD)], ids=["first", "second"])
def test_a_passed_probe_refutes(detector: Detector, outcomes: tuple[Probe, ...]) -> None:
    """The first or the second: no failure, and no further probe."""
    investigation = look(detector)
    verdict = answer(investigation, *outcomes)
    assert verdict is not None
    assert not verdict.failed
    assert verdict.text == "primary 10.0.0.11:389 passes its probe (why)"
    assert investigation.deadline() is None
    assert investigation.due(20.0) == []


@pytest.mark.parametrize("detector", LOSSY)
@pytest.mark.parametrize(
    ("outcomes", "failed"),
    [
        ((BAD, BAD), True),
        ((BAD, GOOD, BAD), True),
        ((GOOD, BAD, BAD), True),
        ((GOOD, GOOD), False),
        ((GOOD, BAD, GOOD), False),
        ((BAD, GOOD, GOOD), False),
    ],
)
def test_two_of_three_when_lossy(detector: Detector, outcomes: tuple[Probe, ...], failed: bool) -> None:
    """Either way, as soon as two agree."""
    verdict = answer(look(detector), *outcomes)
    assert verdict is not None
    assert verdict.failed is failed
    assert (verdict.facts.probes, verdict.facts.probes_failed) == (len(outcomes), outcomes.count(BAD))


@pytest.mark.parametrize("detector", LOSSY)
def test_one_of_each_decides_nothing(detector: Detector) -> None:
    """The third one does."""
    assert answer(look(detector), BAD, GOOD) is None
    assert answer(look(detector), GOOD) is None


def test_one_failure_decides_nothing() -> None:
    """The second probe is still on its way."""
    assert answer(look(), BAD) is None


def test_behind_a_refusal_the_next_probe_waits_150_ms() -> None:
    """A process that is being restarted refuses too; no timeout is waited for."""
    investigation = look()
    assert investigation.due(10.0) == [STANDBY, PRIMARY]
    investigation.outcome(PRIMARY, NO, 10.001)
    assert investigation.deadline() == pytest.approx(10.151)
    assert investigation.due(10.15) == []
    assert investigation.due(10.1511) == [PRIMARY]
    investigation.outcome(STANDBY, GOOD, 10.152)
    investigation.outcome(PRIMARY, NO, 10.152)
    verdict = investigation.verdict(0, 0)
    assert verdict is not None
    assert verdict.failed
    assert verdict.text == "primary 10.0.0.11:389: connection refused"


def test_a_lossy_suspicion_waits_behind_each_refusal() -> None:
    """150 ms after the last refusal."""
    investigation = look(Detector.RETRANSMISSION)
    investigation.due(10.0)
    investigation.outcome(PRIMARY, NO, 10.001)
    assert investigation.deadline() == pytest.approx(10.151)
    investigation.due(10.151)
    investigation.outcome(PRIMARY, GOOD, 10.16)
    assert investigation.deadline() == pytest.approx(10.301)


def test_a_quick_restart_is_no_failure() -> None:
    """Refused, and 150 ms later served."""
    verdict = answer(look(Detector.REFUSED), NO, GOOD)
    assert verdict is not None
    assert not verdict.failed


def test_a_failure_waits_for_the_standbys_probe() -> None:
    """Whether there is somewhere to go belongs to the verdict; a pass does not wait."""
    investigation = look()
    assert answer(investigation, BAD, BAD, other=None) is None
    investigation.outcome(STANDBY, BAD, 10.3)
    verdict = investigation.verdict(0, 0)
    assert verdict is not None
    assert verdict.facts.standby_ok is False
    assert verdict.text == "primary 10.0.0.11:389: no reply; no healthy server: standby no reply"
    passed = answer(look(), GOOD, other=None)
    assert passed is not None
    assert passed.facts.standby_ok is None


def test_a_standby_that_serves_and_fails_is_no_healthy_standby() -> None:
    """However well the primary is: the facts must not look like a reason to move to the standby."""
    verdict = answer(look(serving=STANDBY), BAD, BAD, other=GOOD)
    assert verdict is not None
    assert verdict.failed
    assert verdict.facts.standby_ok is False
    assert verdict.text.startswith("standby 10.0.0.12:389: no reply")


def test_a_probe_that_never_ends_proves_nothing() -> None:
    """It could not be tried: no verdict; where only the standby's is missing, the verdict says so."""
    investigation = look()
    investigation.due(10.0)
    assert not investigation.expired(14.9)
    assert investigation.expired(15.1)
    assert investigation.verdict(0, 0, expired=True) is None
    assert answer(look(), BAD, other=None) is None
    investigation = look()
    assert answer(investigation, BAD, BAD, other=None) is None
    verdict = investigation.verdict(0, 0, expired=True)
    assert verdict is not None
    assert verdict.failed
    assert verdict.facts.standby_ok is None


def test_a_probe_from_before_the_suspicion_says_nothing() -> None:
    """It began while all was well, or while another fault was looked at."""
    investigation = look()
    investigation.due(10.0)
    investigation.outcome(PRIMARY, Probe(True, 2.0, "long ago"), 10.01)
    investigation.outcome(PRIMARY, Probe(False, 2.0, "timeout"), 10.02)
    assert investigation.outcomes == []
