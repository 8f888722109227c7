"""The decision: every combination of facts against the written policy, and the situations of ``situations/``.

The policy is written here a second time and in another way, as the set of everything that speaks against a flip, so
that a row that was lost, swapped or inverted in the tables is found.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from check_failover.damping import proof
from check_failover.decide import (
    AUTO_FAIL_BACK,
    DRAIN,
    FAIL_BACK,
    FAIL_OVER,
    LAST_RESORT,
    MET,
    RESCUE,
    RETRYABLE,
    Reason,
    Row,
    Situation,
    checklist,
    decide,
    items,
)
from check_failover.model import Detector, Facts, Hold, Policy, Target

SITUATIONS = sorted((Path(__file__).parent / "situations").glob("*.toml"))
TABLES = {
    **{"fail-over": FAIL_OVER, "drain": DRAIN, "fail-back": FAIL_BACK, "auto-fail-back": AUTO_FAIL_BACK},
    "rescue": RESCUE,
}
HELD = Hold("ada", 0.0, "disk swap")
GOOD = Facts(Detector.UNANSWERED_REQUEST, 2, 2, 12, 0, standby_ok=True, sync_age=100.0)
HERE = Situation(Target.PRIMARY)


def against_fail_over(f: Facts, p: Policy, s: Situation) -> set[Reason]:
    """Everything the written policy has against moving the traffic to the standby."""
    found = set()
    if s.target is not Target.PRIMARY:
        found.add(Reason.ALREADY)
    if s.hold is not None:
        found.add(Reason.HOLD)
    if f.standby_ok is None:
        found.add(Reason.STANDBY_UNKNOWN)
    if f.standby_ok is not True:
        found.add(Reason.NO_HEALTHY_SERVER)
    if f.sync_running:
        found.add(Reason.SYNC_RUNNING)
    if s.manual:
        return found
    if p.shadow:
        found.add(Reason.SHADOW)
    if f.blind:
        found.add(Reason.BLIND)
    if f.downtime and p.downtime == "inhibit":
        found.add(Reason.DOWNTIME)
    loss_like = f.detector in (Detector.RETRANSMISSION, Detector.ERROR_SHARE)
    both = f.probes >= 2 and f.probes_failed == f.probes
    two_of_three = loss_like and f.probes_failed >= 2 and f.probes_failed / max(f.probes, 1) >= 2 / 3
    core_alone = f.detector is Detector.CORE and f.probes == f.probes_failed
    if not (both or two_of_three or core_alone):
        found.add(Reason.NOT_CONFIRMED)
    if f.requests and f.replies / f.requests >= p.min_useful:
        found.add(Reason.TRAFFIC_ANSWERED)
    fresh = f.sync_age is not None and p.max_sync_age is not None and f.sync_age <= p.max_sync_age
    if p.max_sync_age is not None and p.sync == "refuse" and not fresh:
        found.add(Reason.SYNC_STALE)
    if not s.manual and s.standby_good_for < proof(s.penalty, p.fail_back_seconds):
        found.add(Reason.FLAPPING)
    return found


def against_drain(f: Facts, p: Policy, s: Situation) -> set[Reason]:
    """Everything the written policy has against planned work: what speaks against a fail-over by a person, and what
    a person would put up with only in need."""
    found = against_fail_over(f, p, replace(s, manual=True))
    if p.shadow and not s.manual:
        found.add(Reason.SHADOW)
    fresh = f.sync_age is not None and p.max_sync_age is not None and f.sync_age <= p.max_sync_age
    if p.max_sync_age is not None and p.sync == "refuse" and not fresh:
        found.add(Reason.SYNC_STALE)
    if s.since_flip is not None and s.since_flip < p.hold_down:
        found.add(Reason.HOLD_DOWN)
    return found


def against_last_resort(f: Facts, p: Policy, s: Situation) -> set[Reason]:
    """Everything the written policy has against leaving a failed standby for the primary by itself."""
    found = against_fail_over(replace(f, standby_ok=s.primary_ok), replace(p, max_sync_age=None), s)
    found -= {Reason.ALREADY, Reason.STANDBY_UNKNOWN, Reason.FLAPPING}
    if s.target is not Target.STANDBY:
        found.add(Reason.ALREADY)
    if s.primary_ok is None:
        found.add(Reason.PRIMARY_UNKNOWN)
    if s.primary_passes < p.fail_back_passes:
        found.add(Reason.PRIMARY_UNPROVEN)
    if p.last_resort == "never":
        found.add(Reason.LAST_RESORT)
    if p.last_resort == "safe" and s.synced_back is False:
        found.add(Reason.NOT_SYNCED_BACK)
    if s.downtime and p.downtime != "ignore":
        found.add(Reason.DOWNTIME)
    if s.primary_good_for < proof(s.penalty, p.fail_back_seconds):
        found.add(Reason.FLAPPING)
    return found


def against_rescue(f: Facts, p: Policy, s: Situation) -> set[Reason]:
    """Everything the written policy has against serving one client from the standby: it is asked of the redirector
    when the sniffer has seen to the rest (the standby's health, its own eyes), and nobody orders it by hand."""
    asked = {Reason.ALREADY, Reason.HOLD, Reason.SHADOW, Reason.SYNC_RUNNING, Reason.SYNC_STALE}
    return asked & against_fail_over(f, p, replace(s, manual=False))


def against_fail_back(f: Facts, p: Policy, s: Situation) -> set[Reason]:
    """Everything the written policy has against moving the traffic back to the primary."""
    found = set()
    if s.target is not Target.STANDBY:
        found.add(Reason.ALREADY)
    if s.hold is not None:
        found.add(Reason.HOLD)
    if s.primary_ok is None:
        found.add(Reason.PRIMARY_UNKNOWN)
    if s.primary_ok is not True:
        found.add(Reason.PRIMARY_FAILED)
    if s.primary_passes < p.fail_back_passes or s.primary_good_for < p.fail_back_seconds:
        found.add(Reason.PRIMARY_UNPROVEN)
    if f.sync_running:
        found.add(Reason.SYNC_RUNNING)
    if s.synced_back is False:
        found.add(Reason.NOT_SYNCED_BACK)
    if s.since_flip is not None and s.since_flip < p.hold_down:
        found.add(Reason.HOLD_DOWN)
    if s.downtime and p.downtime != "ignore" and not s.manual:
        found.add(Reason.DOWNTIME)
    return found


def all_facts() -> Iterator[Facts]:
    for values in itertools.product(
        (None, Detector.REFUSED, Detector.ERROR_SHARE, Detector.CORE),
        ((0, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)),
        ((0, 0), (10, 4), (10, 5)),
        (None, False, True),
        (False, True),
        (None, 1800.0, 1801.0),
        (False, True),
        (False, True),
    ):
        detector, probes, traffic, standby_ok, blind, sync_age, sync_running, downtime = values
        yield Facts(detector, *probes, *traffic, standby_ok, blind, sync_age, sync_running, downtime)


def all_policies() -> list[Policy]:
    return [
        Policy(max_sync_age=1800.0),
        Policy(max_sync_age=None),
        Policy(max_sync_age=1800.0, sync="warn", downtime="ignore"),
        Policy(max_sync_age=1800.0, shadow=True),
    ]


def all_situations() -> list[Situation]:
    whole = itertools.product(Target, (None, HELD), (None, 59.9, 60.0), (False, True))
    return [Situation(target, hold, since, manual) for target, hold, since, manual in whole]


@pytest.mark.parametrize(
    ("table", "against"), [(FAIL_OVER, against_fail_over), (DRAIN, against_drain), (RESCUE, against_rescue)]
)
def test_leaving_the_primary_follows_the_written_policy_in_every_combination(
    table: tuple[Row, ...], against: Callable[[Facts, Policy, Situation], set[Reason]]
) -> None:
    """It flips exactly when nothing speaks against it, and the named reason is one that does."""
    policies, situations = all_policies(), all_situations()
    flips = 0
    for facts in all_facts():
        for policy in policies:
            for situation in situations:
                reasons = against(facts, policy, situation)
                decision = decide(table, facts, policy, situation)
                flips += decision.flip
                if decision.flip is bool(reasons) or (reasons and decision.reason not in reasons):
                    pytest.fail(f"{facts}\n{policy}\n{situation}\nagainst it: {reasons}\ndecided: {decision}")
    assert flips > 1000  # the product is no empty exercise


def test_fail_back_follows_the_written_policy_in_every_combination() -> None:
    """The same for the way back; a person's order passes none of its rows but the downtime."""
    flips = 0
    whole = itertools.product(
        Target, (None, HELD), (None, 59.9, 60.0), (False, True), (None, False, True), (0, 2, 3), (0.0, 9.9, 10.0)
    )
    for *first, ok, passes, good_for in whole:
        target, hold, since, manual = first
        for synced_back, running, downtime in itertools.product(
            (None, False, True), (False, True), (None, "ignore", "drain")
        ):
            situation = Situation(
                target, hold, since, manual, ok, passes, good_for, synced_back, downtime=downtime is not None
            )
            facts, policy = Facts(sync_running=running), Policy(downtime=downtime or "inhibit")
            reasons = against_fail_back(facts, policy, situation)
            decision = decide(FAIL_BACK, facts, policy, situation)
            flips += decision.flip
            assert decision.flip is not bool(reasons), (situation, facts, reasons, decision)
            assert decision.flip or decision.reason in reasons
    assert flips > 0


def test_the_last_resort_follows_the_written_policy_in_every_combination() -> None:
    """Away from a failed standby: exactly when nothing speaks against it, and the named reason is one that does."""
    flips = 0
    policies = [Policy(last_resort=word, downtime=downtime) for word in ("safe", "always", "never") for downtime in
                ("inhibit", "ignore")]  # fmt: skip
    primaries = itertools.product((None, False, True), (2, 3), (0.0, 10.0, 20.0), (None, False, True), (False, True))
    situations = [
        Situation(Target.STANDBY, None, 1.0, False, ok, passes, good, back, downtime=down, penalty=penalty)
        for (ok, passes, good, back, down), penalty in itertools.product(primaries, (0.0, 1000.0, 2000.0, 3000.0))
    ]
    situations += [replace(situations[-1], hold=HELD), replace(situations[-1], target=Target.PRIMARY)]
    for facts in itertools.islice(all_facts(), 0, None, 7):
        about = replace(facts, server=Target.STANDBY)
        for policy, situation in itertools.product(policies, situations):
            reasons = against_last_resort(about, policy, situation)
            decision = decide(LAST_RESORT, about, policy, situation)
            flips += decision.flip
            if decision.flip is bool(reasons) or (reasons and decision.reason not in reasons):
                pytest.fail(f"{about}\n{policy}\n{situation}\nagainst it: {reasons}\ndecided: {decision}")
    assert flips > 1000


def test_by_itself_it_goes_back_less_often_than_by_a_person() -> None:
    """The automatic fail-back is refused whatever a person would be refused, in shadow mode, locked, after a person."""
    good = Situation(Target.STANDBY, None, 60.0, False, True, 3, 10.0)
    assert decide(AUTO_FAIL_BACK, Facts(), Policy(), good).flip
    worse = {
        Reason.HOLD: replace(good, hold=HELD),
        Reason.HOLD_DOWN: replace(good, since_flip=59.0),
        Reason.PRIMARY_UNPROVEN: replace(good, primary_passes=2),
        Reason.NOT_SYNCED_BACK: replace(good, synced_back=False),
        Reason.DOWNTIME: replace(good, downtime=True),
        Reason.LOCKED: replace(good, locked=True),
        Reason.MOVED_BY_PERSON: replace(good, moved_by_person=True),
    }
    assert {decide(AUTO_FAIL_BACK, Facts(), Policy(), situation).reason for situation in worse.values()} == set(worse)
    assert decide(AUTO_FAIL_BACK, Facts(), Policy(shadow=True), good).reason is Reason.SHADOW


@pytest.mark.parametrize("order", TABLES)
def test_what_never_moves(order: str) -> None:
    """Whatever else is true: a hold, a running sync and shadow mode by itself; on evidence also blindness, a downtime
    that inhibits, probes that passed and a standby that nobody has seen well."""
    table = TABLES[order]
    at = Target.STANDBY if "back" in order else Target.PRIMARY
    good = Situation(at, None, 60.0, False, True, 3, 10.0)
    for facts, policy in itertools.product(all_facts(), all_policies()):
        for situation in (good, replace(good, hold=HELD)):
            if not decide(table, facts, policy, situation).flip:
                continue
            assert situation.hold is None
            assert not facts.sync_running
            assert order == "fail-back" or not policy.shadow
            if order == "fail-over":
                assert not facts.blind
                assert facts.standby_ok is True
                assert not (facts.downtime and policy.downtime == "inhibit")
                assert facts.probes_failed > facts.probes / 2 or facts.detector is Detector.CORE


def test_the_good_case_flips() -> None:
    """Everything known and well: the fail-over happens, and says how bad it was."""
    decision = decide(FAIL_OVER, GOOD, Policy(max_sync_age=1800.0), HERE)
    assert (decision.flip, decision.reason) == (True, Reason.FLIP)
    assert decision.text == "no useful reply to 12 of 12 requests"


@pytest.mark.parametrize("name", [field.name for field in fields(Facts)])
def test_what_nobody_looked_at_moves_nothing(name: str) -> None:
    """Each fact alone, unknown (its default): never a flip that would not also have happened with it known well."""
    unknown = replace(GOOD, **{name: next(f.default for f in fields(Facts) if f.name == name)})
    decision = decide(FAIL_OVER, unknown, Policy(max_sync_age=1800.0), HERE)
    if name in ("probes", "probes_failed", "standby_ok", "sync_age"):
        assert not decision.flip
        assert decision.reason in {Reason.NOT_CONFIRMED, Reason.STANDBY_UNKNOWN, Reason.SYNC_STALE}
    else:  # unknown is the good case there: no detector, no traffic, not blind, no sync, no downtime
        assert decision.flip


def test_nothing_known_moves_nothing() -> None:
    """No facts at all: no fail-over, not even by a person's order; no fail-back."""
    for manual in (False, True):
        assert not decide(FAIL_OVER, Facts(), Policy(), replace(HERE, manual=manual)).flip
        assert not decide(FAIL_BACK, Facts(), Policy(), Situation(Target.STANDBY, manual=manual)).flip


def test_passed_probes_beat_the_cores_opinion() -> None:
    """A core's own check may be wrong (its network, its timeout): where somebody probed, the probes count."""
    facts = replace(GOOD, detector=Detector.CORE, requests=0)
    assert decide(FAIL_OVER, replace(facts, probes=0, probes_failed=0), Policy(), HERE).flip
    passed = replace(facts, probes=2, probes_failed=0)
    assert decide(FAIL_OVER, passed, Policy(), HERE).reason is Reason.NOT_CONFIRMED


def test_the_veto_of_the_traffic_begins_at_min_useful() -> None:
    """Half of the requests answered is enough to stay; one less is not."""
    assert decide(FAIL_OVER, replace(GOOD, requests=100, replies=49), Policy(), HERE).flip
    decision = decide(FAIL_OVER, replace(GOOD, requests=100, replies=50), Policy(), HERE)
    assert decision.reason is Reason.TRAFFIC_ANSWERED
    assert decision.text == "the primary still answers 50 of 100 requests"


def test_refusals_that_no_later_fact_can_lift_are_not_tried_again() -> None:
    """Already there, shadow mode, a downtime, a last resort that is off and what only a fail-back asks end an order."""
    final = {Reason.ALREADY, Reason.SHADOW, Reason.DOWNTIME, Reason.FLIP, Reason.LAST_RESORT} | {
        *(Reason.PRIMARY_FAILED, Reason.HOLD_DOWN, Reason.MOVED_BY_PERSON, Reason.LOCKED),
    }
    assert set(Reason) == final | RETRYABLE
    assert not final & RETRYABLE


def test_every_refusal_has_a_text_for_a_person() -> None:
    """One line, no bare enum name, and the checklist says the same as the decision."""
    for facts in itertools.islice(all_facts(), 0, None, 97):
        for situation in all_situations():
            decision = decide(FAIL_OVER, facts, Policy(max_sync_age=1800.0), situation)
            assert decision.text
            assert "\n" not in decision.text
            rows = dict(checklist(FAIL_OVER, facts, Policy(max_sync_age=1800.0), situation))
            if not decision.flip:
                assert rows[decision.reason] == decision.text


def test_the_checklist_has_words_for_each_item_met_and_not() -> None:
    """Nothing known: every box is empty and says why; all good: every box is ticked, in words and not in enum names."""
    nothing = Situation(Target.STANDBY, HELD, 1.0, synced_back=False, downtime=True)
    empty = items([(str(r), why) for r, why in checklist(FAIL_BACK, Facts(sync_running=True), Policy(), nothing)])
    assert len(empty) == len(FAIL_BACK) - 1
    assert all(line.startswith("[ ] ") for line in empty)
    good = Situation(Target.STANDBY, None, 60.0, False, True, 3, 10.0)
    ticked = items([(str(r), why) for r, why in checklist(FAIL_BACK, Facts(), Policy(), good)])
    assert ticked == [f"[x] {MET[reason]}" for reason, _, _ in FAIL_BACK if reason is not Reason.ALREADY]


def read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


def situation_of(table: dict[str, Any]) -> Situation:
    hold = table.pop("hold", None)
    target = Target(table.pop("target"))
    return Situation(target, None if hold is None else Hold(**hold), **table)


@pytest.mark.parametrize("path", SITUATIONS, ids=lambda path: path.stem)
def test_situation(path: Path) -> None:
    """One situation as it is met in the field: facts, policy, what must be decided, and the words for it."""
    data = read(path)
    facts = dict(data.get("facts", {}))
    detector = facts.pop("detector", None)
    server = Target(facts.pop("server", Target.PRIMARY))
    known = Facts(detector=None if detector is None else Detector(detector), server=server, **facts)
    decision = decide(
        (TABLES | {"last-resort": LAST_RESORT})[data["order"]],
        known,
        Policy(**data.get("policy", {})),
        situation_of(dict(data["situation"])),
    )
    expected = data["expect"]
    assert (decision.flip, str(decision.reason)) == (expected["flip"], expected["reason"])
    assert expected["text"] in decision.text
    assert (decision.reason in RETRYABLE) is expected.get("tried_again", False)


def test_every_reason_has_a_situation() -> None:
    """A reason without a story in ``situations`` is a rule nobody can picture."""
    told = {read(path)["expect"]["reason"] for path in SITUATIONS}
    assert told == {str(reason) for reason in Reason}


def test_every_fault_of_the_design_has_a_situation() -> None:
    """The faults of the design's table that end in a decision are all told."""
    told = {read(path)["fault"] for path in SITUATIONS}
    assert told >= {
        *("process dies", "hang", "host dark", "application errors", "standby dead as well", "standby recovers"),
        *("controller's link down", "capture drops", "idle", "slow legal query", "port scan", "SYN flood"),
        *("one bad client", "core away", "core orders", "restarted while on the standby", "sync running", "sync stale"),
        *("hold set", "primary comes back", "handler called many times", "downtime", "just flipped", "planned"),
    }
