"""A sentry from packets to results: what is probed, reported and handed on, at simulated moments."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from check_failover.decide import FAIL_OVER, LAST_RESORT, Decision, Reason, Situation, decide
from check_failover.model import Detector, Facts, PassiveResult, Policy, Probe, Service, State, Suspicion, Target
from check_failover.sniffer.monitor import Condition, ServiceMonitor
from check_failover.sniffer.stage1.packet import Packet
from check_failover.story import way_back
from tests.unit import packets as made
from tests.unit.packets import Stage, Talk, learn

PRIMARY, STANDBY = Target.PRIMARY, Target.STANDBY
Answer = Callable[[], Probe | None]


def good() -> Probe:
    return Probe(True, 0.002, "search done")


def hangs() -> Probe:
    return Probe(False, 0.2, "no reply within 0.2 s")


def refuses() -> Probe:
    return Probe(False, 0.0005, "connection refused", refused=True)


class Scene(Stage):
    """A sentry with a clock. ``servers`` says how each server answers probes; None: the probe never ends."""

    def __init__(self, service: Service | None = None) -> None:
        super().__init__(service)
        self.servers: dict[Target, Callable[[], Probe | None]] = {PRIMARY: good, STANDBY: good}
        self.probes: list[tuple[float, Target, float]] = []
        self.results: list[PassiveResult] = []
        self.sent_facts: list[tuple[float, Facts]] = []
        self.notes: list[str] = []
        self.debug: list[str] = []
        self.stories: list[dict[str, object]] = []
        self.known = Facts(sync_age=7.0)
        self._running: list[tuple[float, Target, Probe]] = []
        self.monitor = ServiceMonitor(self.service, self, self.now)
        self.traffic = self.monitor.traffic
        self.wait(0.01)  # the standby's first probe
        self.probes.clear()

    # what a sentry has done for it

    def probe(self, _service: Service, target: Target, timeout: float) -> None:
        self.probes.append((self.now, target, timeout))
        outcome = self.servers[target]()
        if outcome is not None:
            self._running.append((self.now + outcome.seconds, target, outcome))

    def keep(self, _service: Service, story: dict[str, object]) -> int | None:
        self.stories.append(story)
        return None  # facts are compared as wholes below

    def report(self, result: PassiveResult) -> None:
        self.results.append(result)

    def note(self, text: str, level: int = logging.INFO) -> None:
        (self.notes if level >= logging.INFO else self.debug).append(text)

    def facts(self, _service: Service, facts: Facts) -> None:
        self.sent_facts.append((self.now, facts))

    def sync(self, _service: Service, facts: Facts) -> Facts:
        return replace(facts, sync_age=self.known.sync_age)

    # the loop

    def feed(self, packet: Packet, frame: bytes | None = None) -> None:
        found = self.monitor.packet(packet, frame)
        if found is not None:
            self.found.append(found)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(200_000):
            ends = min((at for at, *_ in self._running), default=end)
            due = min(ends, self.monitor.deadline(self.now), self.now + 0.5)
            if due > end:
                break
            self.now = max(self.now, due)
            for running in [each for each in self._running if each[0] <= self.now]:
                self._running.remove(running)
                self.monitor.probed(running[1], running[2], self.now)
            self.monitor.tick(self.now)
            if self.now >= end:
                break
        else:
            raise AssertionError("the clock rings for ever")
        self.now = end

    def probed(self, target: Target) -> list[float]:
        return [at for at, probed, _ in self.probes if probed is target]

    def hang(self, **servers: Answer) -> float:
        """A client asks and nobody answers; the moment."""
        for name, answer in servers.items():
            self.servers[Target(name)] = answer
        begun = self.now
        Talk(self, 20000 + int(begun) % 40000).connect().ask(made.search(1))
        return begun

    def orders(self) -> list[Facts]:
        """The facts of every CRITICAL result, as the core's event handler hands them on."""
        return [Facts.parse(result.perfdata) for result in self.results if result.state is State.CRITICAL]


def decision(facts: Facts) -> Reason:
    return decide(FAIL_OVER, facts, Policy(max_sync_age=60.0), Situation(PRIMARY)).reason


def resort(facts: Facts) -> Decision:
    well = Situation(STANDBY, primary_ok=True, primary_passes=3)
    return decide(LAST_RESORT, facts, Policy(), well)


class TestHealthy:
    """While the server answers, nobody probes it."""

    def test_no_probe_of_a_server_that_answers(self) -> None:
        """An hour of traffic: none of the primary, one of the standby every 30 s, a result every minute."""
        scene = Scene()
        talk = Talk(scene).connect()
        made.repeatedly(scene, 3600.0, 1.0, lambda n: talk.serve(made.search(n % 9999), made.result(n % 9999)))
        assert scene.probed(PRIMARY) == []
        assert len(scene.probed(STANDBY)) == pytest.approx(120, abs=2)
        assert len(scene.results) == pytest.approx(60, abs=2)
        assert {result.state for result in scene.results} == {State.OK}
        assert scene.results[-1].text == "OK: primary 10.0.0.11:389 answers, 1 requests/s"
        assert (scene.results[-1].host, scene.results[-1].service) == ("host", "ldap primary")

    def test_a_standby_that_is_not_well_is_looked_at_more_often(self) -> None:
        """Every three seconds instead of thirty, until it passes: nothing may be rescued nor moved before."""
        scene = Scene()
        scene.servers[STANDBY] = refuses
        scene.wait(60.0)
        scene.probes.clear()
        scene.wait(30.0)
        assert len(scene.probed(STANDBY)) == pytest.approx(10, abs=1)
        scene.servers[STANDBY] = good
        scene.wait(3.1)
        scene.probes.clear()
        scene.wait(60.0)
        assert len(scene.probed(STANDBY)) == pytest.approx(2, abs=1)
        assert scene.probed(PRIMARY) == []

    def test_an_idle_night_is_no_failure(self) -> None:
        """Eight hours with nobody: one look, refuted, and OK all the time."""
        scene = Scene()
        Talk(scene).connect()
        scene.wait(8 * 3600.0)
        assert len(scene.probed(PRIMARY)) == 1
        assert {result.state for result in scene.results} == {State.OK}

    def test_a_slow_query_costs_a_handful_of_probes(self) -> None:
        """Nobody else is there to excuse it: 5 s of one search, and no flip."""
        scene = Scene()
        learn(scene)
        scene.hang()
        scene.wait(5.0)
        assert 1 <= len(scene.probed(PRIMARY)) <= 5
        assert {result.state for result in scene.results} == {State.OK}
        assert scene.monitor.condition is Condition.OK

    def test_probes_are_rate_limited_whatever_the_traffic_does(self) -> None:
        """A client whose every connection is refused by something in between: at most one look a second."""
        scene = Scene()

        def refused(number: int) -> None:
            talk = Talk(scene, 30000 + number)
            talk.syn()
            talk.refused()

        made.repeatedly(scene, 60.0, 0.05, refused)
        assert len(scene.probed(PRIMARY)) <= 61
        assert scene.orders() == []


class TestStory:
    """The further lines of "NAME primary"."""

    def test_until_the_primary_serves_again(self) -> None:
        """What was seen and probed comes with the verdict and stays while the standby serves, with the way back."""
        scene = Scene()
        learn(scene)
        scene.hang(primary=hangs)
        scene.wait(1.0)
        (told, *_) = (result.details.splitlines() for result in scene.results if result.state is State.CRITICAL)
        assert "primary 10.0.0.11:389: no reply within 0.2 s" in told[0]
        assert told[1].startswith("suspicion: unanswered-request: ")
        assert [line.split(" after")[0] for line in told[3:6]] == [
            "probe of the primary: failed", "probe of the primary: failed", "probe of the standby: passed",
        ]  # fmt: skip
        assert '"ldap redirect" tells what came of it' in told[-1]
        scene.monitor.flipped(STANDBY, scene.now)
        scene.servers[PRIMARY] = good
        scene.wait(120.0)
        assert scene.results[-1].state is State.OK
        assert scene.results[-1].details.splitlines() == [*told[:-1], way_back("ldap")]
        scene.monitor.flipped(PRIMARY, scene.now)
        assert scene.results[-1].details == ""

    def test_a_primary_that_recovered_by_itself_has_none(self) -> None:
        scene = Scene()
        learn(scene)
        scene.hang(primary=hangs)
        scene.wait(1.0)
        scene.servers[PRIMARY] = good
        scene.wait(5.0)
        assert scene.results[-1].state is State.OK
        assert scene.results[-1].details == ""


class TestFailure:
    """From the first victim to the order."""

    def test_a_hang(self) -> None:
        """Suspected after 100 ms, two probes 50 ms apart, the standby in parallel; then CRITICAL, with all facts."""
        scene = Scene()
        learn(scene)
        scene.probes.clear()
        begun = scene.hang(primary=hangs)
        scene.wait(0.6)
        at = scene.probed(PRIMARY)
        assert at[0] - begun == pytest.approx(0.1, abs=0.01)
        assert at[1] - at[0] == pytest.approx(0.05, abs=0.001)
        assert at[0] in scene.probed(STANDBY)
        [facts] = scene.orders()
        assert facts == Facts(Detector.UNANSWERED_REQUEST, 2, 2, 1, 0, standby_ok=True, sync_age=7.0)
        assert decision(facts) is Reason.FLIP
        assert scene.results[-1].text.startswith("CRITICAL: primary 10.0.0.11:389: no reply within 0.2 s; no useful")
        assert scene.monitor.last_facts() == facts

    def test_a_dead_process(self) -> None:
        """Refused at once: the second probe 150 ms behind the first refusal, and the order."""
        scene = Scene()
        talk = Talk(scene).connect()
        talk.serve(made.search(1), made.result(1))
        scene.wait(5.0)
        scene.servers[PRIMARY] = refuses
        victim = Talk(scene, 50000)
        victim.syn()
        begun = scene.now
        victim.refused()
        scene.wait(0.3)
        at = scene.probed(PRIMARY)[-2:]
        assert at[0] == begun
        assert at[1] - at[0] == pytest.approx(0.1505, abs=0.001)
        [facts] = scene.orders()
        assert (facts.detector, facts.standby_ok) == (Detector.REFUSED, True)
        assert decision(facts) is Reason.FLIP

    def test_a_dark_host(self) -> None:
        """No packet from it at all."""
        scene = Scene()
        Talk(scene).connect().serve(made.search(1), made.result(1))
        scene.wait(5.0)
        scene.servers[PRIMARY] = hangs
        Talk(scene, 50000).syn()
        scene.wait(1.0)
        [facts] = scene.orders()
        assert facts.detector is Detector.UNANSWERED_SYN
        assert decision(facts) is Reason.FLIP

    def test_a_sick_application(self) -> None:
        """Errors instead of answers: two of three probes."""
        scene = Scene()
        answers = iter([hangs(), good(), hangs()])
        scene.servers[PRIMARY] = lambda: next(answers)
        Talk(scene).connect().serve(made.search(1), made.result(1, 52))
        scene.wait(1.0)
        [facts] = scene.orders()
        assert (facts.detector, facts.probes, facts.probes_failed) == (Detector.ERROR_SHARE, 3, 2)
        assert decision(facts) is Reason.FLIP

    def test_loss_with_a_server_that_passes_two_of_three(self) -> None:
        """One failed probe may be chance."""
        scene = Scene()
        answers = iter([good(), hangs(), good()])
        scene.servers[PRIMARY] = lambda: next(answers)
        Talk(scene).connect().serve(made.search(1), made.result(1, 52))
        scene.wait(0.9)
        assert scene.orders() == []

    def test_a_fault_before_its_first_victim(self) -> None:
        """Found by the look at a silent service."""
        scene = Scene()
        Talk(scene).connect().serve(made.search(1), made.result(1))
        scene.servers[PRIMARY] = hangs
        scene.wait(70.0)
        [facts, *_] = scene.orders()
        assert (facts.detector, facts.requests) == (Detector.SILENCE, 0)
        assert decision(facts) is Reason.FLIP

    def test_the_traffic_is_in_the_facts(self) -> None:
        """Probes that fail while the clients are served: the order carries what vetoes it."""
        scene = Scene()
        busy = learn(scene)
        lone = Talk(scene, 50000).connect()
        scene.servers[PRIMARY] = hangs
        lone.ask(made.ldap(5, 0x6E, b"x" * 20))  # a compare that hangs, among searches that do not
        made.repeatedly(scene, 1.0, 0.01, lambda n: busy.serve(made.search(500 + n), made.result(500 + n)))
        facts = scene.orders()[0]
        assert facts.replies > 0.9 * facts.requests
        assert decision(facts) is Reason.TRAFFIC_ANSWERED

    def test_a_request_lost_long_ago_delays_no_fail_over(self) -> None:
        """The fault began after the server's last answer: earlier answers veto no order."""
        scene = Scene()
        busy = learn(scene)
        lone = Talk(scene, 50000).connect()
        lone.ask(made.ldap(5, 0x6E, b"x" * 20))  # a compare whose reply was lost; the probes refute it
        made.repeatedly(scene, 9.0, 0.1, lambda n: busy.serve(made.search(500 + n), made.result(500 + n)))
        assert scene.orders() == []
        scene.servers[PRIMARY] = hangs
        begun = scene.now
        made.repeatedly(scene, 6.0, 0.1, lambda n: busy.ask(made.search(700 + n)))
        assert {decision(facts) for facts in scene.orders()} == {Reason.FLIP}
        first = next(at for at in scene.probed(PRIMARY) if at >= begun)
        assert first - begun < 1.0

    def test_both_dead_then_one_recovers(self) -> None:
        """CRITICAL "no healthy server"; looked at every second; the standby's recovery is reported and evidence."""
        scene = Scene()
        begun = scene.hang(primary=hangs, standby=refuses)
        scene.wait(5.0)
        [facts] = scene.orders()
        assert decision(facts) is Reason.NO_HEALTHY_SERVER
        assert "no healthy server: standby connection refused" in scene.results[-1].text
        looks = scene.probed(STANDBY)
        assert len(looks) == pytest.approx(scene.now - begun, abs=2)
        scene.servers[STANDBY] = good
        scene.wait(1.5)
        assert decision(scene.orders()[-1]) is Reason.FLIP
        assert scene.sent_facts[-1][1].standby_ok is True

    def test_facts_are_not_repeated_every_second(self) -> None:
        """The same facts every five seconds, while an order is pending."""
        scene = Scene()
        scene.hang(primary=hangs, standby=hangs)
        scene.wait(31.0)
        moments = [at for at, _ in scene.sent_facts]
        assert 4 <= len(moments) <= 8

    def test_the_primary_recovers_by_itself(self) -> None:
        """OK again, with no flip, within a second or so."""
        scene = Scene()
        scene.hang(primary=hangs, standby=hangs)
        scene.wait(3.0)
        scene.servers[PRIMARY] = good
        scene.wait(1.5)
        assert scene.monitor.condition is Condition.OK
        assert scene.results[-1].state is State.OK
        assert scene.monitor.last_facts() is None

    def test_timeouts_follow_the_traffic(self) -> None:
        """max(200 ms, 10 * p99), within the configured limit."""
        for seconds, timeout in ((0.002, 0.2), (0.05, 0.5), (0.5, 2.0)):
            scene = Scene()
            learn(scene, 64, seconds)
            scene.probes.clear()
            scene.hang()
            scene.wait(30.0)
            assert {round(each, 6) for _, target, each in scene.probes if target is PRIMARY} == {timeout}

    def test_a_probe_that_takes_its_time_gets_it(self) -> None:
        """A plugin that starts an interpreter, a slow bind: the standby's probes tell before the first suspicion."""
        scene = Scene()
        scene.servers[STANDBY] = lambda: Probe(True, 0.3, "all well")
        scene.wait(180.0)
        scene.hang(primary=lambda: Probe(True, 0.6, "all well"))
        scene.wait(5.0)
        assert {round(each, 6) for _, target, each in scene.probes if target is PRIMARY} <= {1.2, 2.0}
        assert scene.orders() == []


class TestBlind:
    """Both silent, and it may be our own eyes."""

    @pytest.mark.parametrize("first", ["blind", "suspicious"])
    def test_our_own_link_is_down(self, first: str) -> None:
        """UNKNOWN "blind", no order, whichever is noticed first."""
        scene = Scene()
        if first == "blind":
            scene.monitor.set_blind("cl0 has no carrier", scene.now)
        scene.hang(primary=hangs, standby=hangs)
        scene.wait(0.31)
        scene.monitor.set_blind("cl0 has no carrier", scene.now)
        scene.wait(10.0)
        assert scene.orders() == []
        assert scene.sent_facts == []
        assert scene.results[-1].state is State.UNKNOWN
        assert scene.results[-1].text == "UNKNOWN: blind: cl0 has no carrier"
        facts = Facts.parse(scene.results[-1].perfdata)
        assert facts.blind
        assert decision(replace(facts, probes=2, probes_failed=2, standby_ok=True)) is Reason.BLIND
        assert scene.monitor.last_facts() is None

    def test_capture_drops_are_blindness(self) -> None:
        """For as long as there are any, and two seconds more."""
        scene = Scene()
        scene.hang(primary=hangs)
        scene.traffic.lost(scene.now, 5)
        scene.monitor.set_blind(None, scene.now)
        scene.wait(1.9)
        scene.monitor.set_blind(None, scene.now)
        assert scene.monitor.condition is Condition.BLIND
        assert scene.orders() == []
        assert scene.results[-1].text == "UNKNOWN: blind: the capture dropped packets"
        scene.wait(0.2)
        scene.monitor.set_blind(None, scene.now)
        assert scene.monitor.condition is Condition.OK

    def test_who_sees_again_looks_again(self) -> None:
        """A failure that stood before is looked at once more, and not taken for healed."""
        scene = Scene()
        scene.hang(primary=hangs, standby=hangs)
        scene.wait(2.0)
        scene.monitor.set_blind("cl0 is down", scene.now)
        scene.wait(5.0)
        before = len(scene.probed(PRIMARY))
        scene.wait(5.0)
        assert len(scene.probed(PRIMARY)) == before
        scene.monitor.set_blind(None, scene.now)
        assert scene.results[-1].state is State.CRITICAL
        scene.servers[PRIMARY] = good
        scene.wait(1.0)
        assert scene.results[-1].state is State.OK

    def test_blindness_is_reported_once(self) -> None:
        """Not with every look at the interface."""
        scene = Scene()
        before = len(scene.results)
        for _ in range(20):
            scene.monitor.set_blind("cl0 is down", scene.now)
            scene.wait(0.5)
        assert len(scene.results) == before + 1


class TestFlipped:
    """The redirect moved."""

    def test_it_resets_everything(self) -> None:
        """The verdict, the investigation, what is pending: all were about the other server."""
        scene = Scene()
        scene.hang(primary=hangs)
        scene.wait(1.0)
        assert scene.monitor.condition is Condition.FAILED
        scene.monitor.flipped(STANDBY, scene.now)
        assert (scene.monitor.condition, scene.monitor.target) == (Condition.OK, STANDBY)
        assert scene.monitor.last_facts() is None
        assert scene.traffic.detect.since(0.0) == (0, 0)
        sent_facts = len(scene.sent_facts)
        scene.wait(5.0)
        assert len(scene.sent_facts) == sent_facts
        assert scene.results[-1].text.startswith("CRITICAL: standby serves; primary 10.0.0.11:389: no reply")

    def test_in_the_middle_of_a_look(self) -> None:
        """A probe of the old target that ends afterwards decides nothing about the new one."""
        scene = Scene()
        begun = scene.hang(primary=hangs)
        scene.wait(0.45)
        assert len(scene.probed(PRIMARY)) == 2
        scene.monitor.flipped(STANDBY, scene.now)
        scene.wait(begun + 1.0 - scene.now)
        assert scene.monitor.condition is Condition.OK
        assert [
            each.state for each in scene.results if each.state is State.CRITICAL and "serves" not in each.text
        ] == []

    def test_the_same_target_again_resets_nothing(self) -> None:
        """A subscription that is renewed says where the target is."""
        scene = Scene()
        scene.hang(primary=hangs, standby=hangs)
        scene.wait(1.0)
        scene.monitor.flipped(PRIMARY, scene.now)
        assert scene.monitor.condition is Condition.FAILED

    def test_while_blind_it_stays_blind(self) -> None:
        """The redirect moving opens no eyes."""
        scene = Scene()
        scene.monitor.set_blind("cl0 is down", scene.now)
        scene.monitor.flipped(STANDBY, scene.now)
        assert scene.monitor.condition is Condition.BLIND
        assert scene.results[-1].state is State.UNKNOWN

    def test_the_primary_is_probed_for_the_way_back(self) -> None:
        """Every three seconds; nothing moves, but what the checklist wants to know is known."""
        scene = Scene()
        scene.monitor.flipped(STANDBY, scene.now)
        scene.wait(30.0)
        assert len(scene.probed(PRIMARY)) == pytest.approx(10, abs=1)
        assert scene.probed(STANDBY) == []
        status = scene.monitor.status(scene.now)["primary"]
        assert status["passes"] >= 9
        assert status["good_for"] > 25
        assert scene.monitor.target is STANDBY
        assert scene.sent_facts == []
        scene.servers[PRIMARY] = refuses
        scene.wait(4.0)
        assert scene.monitor.status(scene.now)["primary"]["passes"] == 0

    def test_the_primary_that_comes_back_is_told(self) -> None:
        """Once it has passed as often as a fail-back asks for; at once when it fails; not when it comes and goes."""
        scene = Scene()
        scene.servers[PRIMARY] = refuses
        scene.monitor.flipped(STANDBY, scene.now)
        scene.wait(10.0)
        assert scene.results[-1].state is State.CRITICAL
        told = len(scene.results)
        for answer in (good, refuses) * 3:
            scene.servers[PRIMARY] = answer
            scene.wait(3.0)
        assert len(scene.results) == told
        scene.servers[PRIMARY] = good
        scene.wait(3.0 * scene.service.policy.fail_back_passes + 0.5)
        assert [result.state for result in scene.results[told:]] == [State.OK]
        scene.servers[PRIMARY] = refuses
        scene.wait(3.5)
        assert [result.state for result in scene.results[told:]] == [State.OK, State.CRITICAL]

    def test_a_standby_that_fails_is_a_fault_of_its_own(self) -> None:
        """The facts say which server they are about: none of them moves the traffic from a primary to this standby."""
        scene = Scene()
        scene.monitor.flipped(STANDBY, scene.now)
        scene.hang(standby=hangs)
        scene.wait(20.0)
        assert scene.monitor.failed
        for facts in [*scene.orders(), *(facts for _, facts in scene.sent_facts)]:
            assert facts.server is STANDBY
            assert decision(facts) is not Reason.FLIP  # even if the target were the primary by now
            assert resort(facts).flip

    def test_the_primary_back_in_time_is_news_for_a_pending_order(self) -> None:
        """Both fail: the order waits; once the primary has passed often enough the redirector hears of it at once."""
        scene = Scene()
        scene.monitor.flipped(STANDBY, scene.now)
        scene.hang(standby=hangs, primary=refuses)
        scene.wait(20.0)
        sent = len(scene.sent_facts)
        scene.servers[PRIMARY] = good
        back = scene.now
        scene.wait(4.5)
        assert [at for at, _ in scene.sent_facts[sent:] if at - back < 4.5]
        assert scene.monitor.health[PRIMARY].passes >= scene.service.policy.fail_back_passes


class TestLooks:
    """What a look may run into."""

    def test_a_probe_that_never_ends(self) -> None:
        """Loudly unknown, no order, and the next suspicion is looked at."""
        scene = Scene()
        scene.hang(primary=lambda: None, standby=lambda: None)
        scene.wait(7.0)
        assert scene.orders() == []
        assert scene.results[-1].state is State.UNKNOWN
        assert scene.results[-1].text == "UNKNOWN: the primary could not be probed, though there is a suspicion"
        scene.servers = {PRIMARY: hangs, STANDBY: good}
        scene.hang()
        scene.wait(3.0)
        assert decision(scene.orders()[-1]) is Reason.FLIP

    def test_only_the_standbys_probe_never_ends(self) -> None:
        """The verdict stands, the decision refuses by name."""
        scene = Scene()
        scene.hang(primary=hangs, standby=lambda: None)
        scene.wait(6.0)
        assert decision(scene.orders()[0]) is Reason.STANDBY_UNKNOWN

    def test_a_refusal_right_after_a_refuted_suspicion_is_not_lost(self) -> None:
        """Looked at as soon as another look is allowed: it will not be said twice."""
        scene = Scene()
        learn(scene)
        scene.hang()
        scene.wait(0.3)
        assert scene.monitor.condition is Condition.OK
        scene.servers[PRIMARY] = refuses
        victim = Talk(scene, 61000)
        victim.syn()
        victim.refused(None)  # not withheld: nothing stays open that would speak again
        scene.wait(1.5)
        assert decision(scene.orders()[0]) is Reason.FLIP

    def test_one_look_at_a_time(self) -> None:
        """Suspicions of every kind during a look start no second one."""
        scene = Scene()
        scene.hang(primary=hangs)
        scene.wait(0.32)
        for number in range(20):
            talk = Talk(scene, 50000 + number)
            talk.syn()
            talk.refused()
        scene.wait(0.1)
        assert len(scene.probed(PRIMARY)) == 2

    def test_a_perfect_service_never_says_anything_odd(self) -> None:
        """No bar in the text: perfdata begins there for a core."""
        scene = Scene()
        scene.hang(primary=lambda: Probe(False, 0.1, "said a|b"))
        scene.wait(2.0)
        assert all("|" not in result.text for result in scene.results)


class TestDebug:
    """What a person who debugs is shown of suspicions: each one, and why it led to no investigation."""

    def test_a_refuted_one_and_one_too_soon_after_it(self) -> None:
        """The refuted one is named with its detector; the next one waits, which only the debug line says."""
        scene = Scene()
        suspicion = Suspicion("ldap", Detector.REFUSED, scene.now, "connection refused")
        for _ in range(2):
            scene.monitor.suspect(suspicion, scene.now)
        scene.wait(0.1)
        scene.monitor.suspect(suspicion, scene.now)
        assert scene.notes == [
            "ldap: suspicion, refused: connection refused",
            "ldap: refuted, refused: connection refused: primary passes its probe",
        ]
        ignored = "ldap: suspicion, refused: connection refused: not investigated: "
        assert scene.debug == [f"{ignored}already investigating", f"{ignored}too soon after the last investigation"]

    def test_a_refusal_waits_only_for_another_refusal(self) -> None:
        """A client can provoke other suspicions: refuted ones must not hide a crash for a second each time."""
        scene = Scene()
        for detector in (Detector.UNANSWERED_REQUEST, Detector.REFUSED, Detector.REFUSED):
            scene.monitor.suspect(Suspicion("ldap", detector, scene.now, "told"), scene.now)
            scene.wait(0.2)
        assert [note.split(", ")[1] for note in scene.notes if "refuted" not in note] == [
            "unanswered-request: told",
            "refused: told",
        ]

    def test_a_failed_server_and_a_blind_sniffer(self) -> None:
        """Neither needs another suspicion."""
        scene = Scene()
        scene.servers[PRIMARY] = refuses
        suspicion = Suspicion("ldap", Detector.UNANSWERED_SYN, scene.now, "no answer")
        scene.monitor.suspect(suspicion, scene.now)
        scene.wait(0.5)
        scene.monitor.suspect(suspicion, scene.now)
        scene.monitor.set_blind("cl0 has no carrier", scene.now)
        scene.monitor.suspect(suspicion, scene.now)
        assert [line.partition(": not investigated: ")[2] for line in scene.debug] == [
            "failed already, looked at every second",
            "blind, cl0 has no carrier",
        ]
