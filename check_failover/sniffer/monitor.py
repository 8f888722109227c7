"""One service as the sniffer sees it: watch, suspect, investigate, report. The monitor does no I/O: time is an
argument, and effects leave through ``Actions``.

The sniffer does not probe a primary that serves and answers. While a failed verdict stands, the monitor repeats the
investigation every second and sends fresh facts for a pending order. While the standby serves, the monitor probes the
primary every three seconds, because the fail-back checklist needs that result.
"""

import logging
import time
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any

from check_failover import story
from check_failover.model import Detector, Facts, PassiveResult, Probe, Service, State, Suspicion, Target
from check_failover.sniffer.health import Health
from check_failover.sniffer.investigation import Investigation, Verdict, traffic_evidence
from check_failover.sniffer.monitor_actions import Actions
from check_failover.sniffer.stage1.packet import Packet
from check_failover.sniffer.stage1.traffic import TrafficMonitor

HEARTBEAT = 60.0  # seconds between two results of an unchanged state
RECHECK_INTERVAL = 1.0  # seconds between two investigations of a failed server
IDLE_PROBE_INTERVAL = 30.0  # seconds between two probes of the server that has no traffic
URGENT_PROBE_INTERVAL = 3.0  # the same while the standby serves, or its last probe failed
MIN_INTERVAL = 1.0  # seconds between two investigations that suspicions start
FACTS_INTERVAL = 5.0  # seconds until unchanged facts are sent again
DROPS_SETTLE = 2.0  # seconds without a dropped packet until the sniffer trusts the capture again
_ONE_SHOT = frozenset({Detector.REFUSED, Detector.ERROR_SHARE})  # these might suspect once only, so it is kept
_TOO_SOON = "too soon after the last investigation"


class Condition(StrEnum):
    """The state of a ``ServiceMonitor``."""

    OK = "ok"
    SUSPECT = "suspect"
    FAILED = "failed"
    BLIND = "blind"


class ServiceMonitor:
    """The state machine of one service. Times are monotonic seconds, except in results.

    from         event                                                  to
    -----------  -----------------------------------------------------  ---------------------------------------
    ok           suspicion (silence only starts an investigation)       suspect
    ok, suspect  the investigation's probes fail                        failed
    suspect      a probe passes, or the server could not be probed      ok
    failed       a repeated investigation passes                        ok
    any          the capture stops working                              blind
    blind        the capture works again                                failed if it was before, else ok
    any          the redirect moves (``flipped``)                       ok, or blind while the capture is down
    """

    def __init__(self, service: Service, actions: Actions, now: float) -> None:
        self.service, self._actions = service, actions
        self.traffic = TrafficMonitor(service)
        self.target = Target.PRIMARY
        self.condition = Condition.OK
        self.blind: str | None = None
        self.health = {target: Health() for target in Target}
        self._investigation: Investigation | None = None
        self._verdict: Verdict | None = None
        self._suspicion: Suspicion | None = None
        self._pending: Suspicion | None = None  # came too soon after the last investigation
        self._refuted_by = Detector.REFUSED  # the last suspicion that was refuted
        self._failed_at = now  # when the present run of failed verdicts began
        self._was_failed = False  # the condition before the monitor became blind
        self._probe_fault: str | None = None  # why the last investigation reached no verdict
        self._next_investigation = now
        self._reported = float("-inf")
        self._state: State | None = None  # in the last result
        self._evidence: int | None = None
        self._detail_lines: list[str] = []  # of the last failed verdict, for as long as it explains how things are
        self._sent_facts: tuple[float, object] = (float("-inf"), None)

    # ------------------------------------------------------------ events

    def packet(self, p: Packet, frame: bytes | None = None) -> Suspicion | None:
        """Feed a captured packet to stage 1; returns the suspicion that it raised."""
        suspicion = self.traffic.packet(p, frame)
        self.suspect(suspicion, p.now)
        return suspicion

    def tick(self, now: float) -> None:
        """Do everything that is due: clocks of stage 1, probes, the heartbeat."""
        self.suspect(self.traffic.tick(now), now)
        if self._investigation is not None and self._investigation.expired(now):
            self._abandon(now)
        if self._investigation is None and now >= self._next_investigation and self.blind is None:
            if self.condition is Condition.FAILED:
                again = Suspicion(self.service.name, Detector.SILENCE, now, "investigated again")
                self._investigate(self._suspicion or again, now)
            elif self._pending is not None:
                self.suspect(self._pending, now)
        self._start_probes(now)
        self._probe_idle_server(now)
        if now >= self._reported + HEARTBEAT:
            self._report(now)

    def deadline(self, now: float) -> float:
        """The latest moment at which the loop must call ``tick`` again."""
        moments = [self._reported + HEARTBEAT]
        if self._investigation is not None:
            moments.append(self._investigation.deadline() or now + 1.0)
        else:
            waits = self.condition is Condition.FAILED or self._pending is not None
            moments += [self._idle_probe_due(), *([self._next_investigation] if waits else [])]
        return min(*moments, *filter(None, [self.traffic.deadline()]))

    def probed(self, target: Target, probe: Probe, now: float) -> None:
        """A probe ended."""
        self.health[target].record(probe, now)
        if self._investigation is None:
            if target is Target.PRIMARY and self._primary_result_due():
                self._report(now)
            return
        self._investigation.outcome(target, probe, now)
        self._conclude(now)
        self._start_probes(now)

    def _primary_result_due(self) -> bool:
        """Whether to report the primary while the standby serves: a failure at once, a recovery after
        ``fail_back_passes`` passes in a row, so that a flapping primary does not page each time."""
        if self.target is Target.PRIMARY or self.blind is not None or self.condition is Condition.FAILED:
            return False
        health = self.health[Target.PRIMARY]
        if health.ok:
            return self._state is not State.OK and health.passes >= self.service.policy.fail_back_passes
        return self._state is not State.CRITICAL

    def flipped(self, target: Target, now: float) -> None:
        """The redirect points to ``target`` now: it was flipped, or the sniffer learned it at the subscription."""
        if target is self.target:
            return
        self.target = target
        self.traffic.flipped(now)
        self._investigation = self._verdict = self._suspicion = self._pending = self._probe_fault = None
        self._was_failed, self._sent_facts = False, (float("-inf"), None)
        if target is Target.PRIMARY:
            self._detail_lines = []
        self.condition = Condition.OK if self.blind is None else Condition.BLIND
        self._report(now)

    def set_blind(self, blind: str | None, now: float) -> None:
        """Set why the capture does not work, or None. Dropped packets make it blind: they may have been replies."""
        if blind is None and now - self.traffic.lost_at < DROPS_SETTLE:
            blind = "the capture dropped packets"
        if blind == self.blind:
            return
        if blind is None:
            self.condition = Condition.FAILED if self._was_failed else Condition.OK
            self._next_investigation = now
        elif self.blind is None:
            self._was_failed = self.condition is Condition.FAILED
            self.condition = Condition.BLIND
            self._investigation = self._pending = None
        self.blind = blind
        self._report(now)

    # ------------------------------------------------------------ stage 2

    def _ignored(self, suspicion: Suspicion, now: float) -> str | None:
        """Why it is not investigated now; None: it is. One that a client provoked delays none of a refusal."""
        if self.blind is not None:
            return f"blind, {self.blind}"
        if self.condition is Condition.FAILED:
            return "failed already, looked at every second"
        if self._investigation is not None:
            return "already investigating"
        other = suspicion.detector is Detector.REFUSED and self._refuted_by is not Detector.REFUSED
        return _TOO_SOON if now < self._next_investigation and not other else None

    def suspect(self, suspicion: Suspicion | None, now: float) -> None:
        """Investigate a suspicion of stage 1, if this is the moment for it."""
        if suspicion is None:
            return
        ignored = self._ignored(suspicion, now)
        if ignored is not None:
            if ignored == _TOO_SOON and suspicion.detector in _ONE_SHOT:
                self._pending = suspicion
            self._actions.note(f"{suspicion}: not investigated: {ignored}", logging.DEBUG)
            return
        if suspicion.detector is not Detector.SILENCE:
            self.condition = Condition.SUSPECT
        self._investigate(suspicion, now)

    def _investigate(self, suspicion: Suspicion, now: float) -> None:
        if self.condition is not Condition.FAILED:
            self._actions.note(str(suspicion))
        self._suspicion, self._pending = suspicion, None
        self._investigation = Investigation(self.service, suspicion, self.target, now)
        self._start_probes(now)

    def _start_probes(self, now: float) -> None:
        if self._investigation is None:
            return
        for target in self._investigation.due(now):
            self._probe(target, now)

    def _probe(self, target: Target, now: float) -> None:
        self.health[target].probe_started = now
        self._actions.probe(self.service, target, self.patience())

    def patience(self) -> float:
        """Timeout of a probe: max(200 ms, 10 * p99 of the traffic, 4 * median probe), at most the configured one.

        500 ms while no p99 is known. The median counts both servers: the standby's probes have measured it already.
        """
        usual = self.traffic.usual()
        took = max(health.median() for health in self.health.values())
        timeout = max(0.5 if usual is None else max(0.2, 10 * usual), 4 * took)
        return min(timeout, self.service.check.timeout)

    def _conclude(self, now: float, *, expired: bool = False) -> None:
        investigation = self._investigation
        if investigation is None:
            return
        failed_at = self._failed_at if self.condition is Condition.FAILED else None
        counts = traffic_evidence(self.traffic.detect.since, investigation.suspicion, failed_at)
        verdict = investigation.verdict(*counts, expired=expired)
        if verdict is None:
            return
        self._investigation, self._probe_fault = None, None
        if verdict.failed:
            self._failed(verdict, investigation, now)
        else:
            self._refuted(investigation.suspicion, now)

    def _abandon(self, now: float) -> None:
        """Probes did not end: conclude without the standby's, or report UNKNOWN when the primary's are missing."""
        self._conclude(now, expired=True)
        if self._investigation is None:
            return
        before, self._probe_fault = self._probe_fault, f"the {self.target} could not be probed"
        self._investigation, self._next_investigation = None, now + RECHECK_INTERVAL
        if self.condition is Condition.SUSPECT:
            self.condition = Condition.OK
        if before is None:
            self._report(now)

    def _failed(self, verdict: Verdict, investigation: Investigation, now: float) -> None:
        first = self.condition is not Condition.FAILED
        same = self._verdict is not None and self._verdict.other_ok == verdict.other_ok
        if first or not same:
            evidence = investigation.story(verdict, self.traffic.stats(now), now)
            self._detail_lines = [f"{story.moment(time.time())} {verdict.text}", *story.seen(evidence)]
            if first:
                self._failed_at = now
                self._evidence = self._actions.keep(self.service, evidence)
        verdict = replace(verdict, facts=replace(verdict.facts, evidence=self._evidence))
        self.condition = Condition.FAILED
        self._verdict = verdict
        self._next_investigation = now + RECHECK_INTERVAL
        if first or not same:
            self._actions.note(f"{self.service.name}: verdict: {verdict.text}", logging.WARNING)
            self._report(now)
        if not first:
            self._send_facts(verdict, now)

    def _send_facts(self, verdict: Verdict, now: float) -> None:
        at, before = self._sent_facts
        fresh = self._actions.sync(self.service, verdict.facts)
        other_is_proven = self.health[self.target.other].passes >= self.service.policy.fail_back_passes
        vetoed = fresh.replies >= self.service.policy.min_useful * fresh.requests > 0
        news = (replace(fresh, requests=0, replies=0), verdict.other_ok, other_is_proven, vetoed)
        if news != before or now - at >= FACTS_INTERVAL:
            self._sent_facts = (now, news)
            self._actions.facts(self.service, fresh)

    def _refuted(self, suspicion: Suspicion, now: float) -> None:
        was = self.condition
        why = f"refuted, {suspicion.detector}: {suspicion.text}: {self.target} passes its probe"
        self._actions.note(f"{self.service.name}: {why}")
        self.traffic.detect.refuted(suspicion.detector, now)
        self._verdict, self._refuted_by = None, suspicion.detector
        self.condition = Condition.OK
        self._next_investigation = now + MIN_INTERVAL
        if was is Condition.FAILED:
            self._detail_lines = []
            self._report(now)

    def _idle_probe_due(self) -> float:
        health = self.health[self.target.other]
        usual = self.target is Target.PRIMARY and health.ok
        return health.probe_started + (IDLE_PROBE_INTERVAL if usual else URGENT_PROBE_INTERVAL)

    def _probe_idle_server(self, now: float) -> None:
        if self._investigation is None and now >= self._idle_probe_due():
            self._probe(self.target.other, now)

    # ------------------------------------------------------------ reports

    def _report(self, now: float) -> None:
        """Submit the passive result "NAME primary": the state of the serving server, or of the primary on standby."""
        self._reported = now
        state, text, perfdata = State.OK, "", ""
        stats = self.traffic.stats(now)
        if self.blind is not None:
            state, text = State.UNKNOWN, f"blind: {self.blind}"
            perfdata = Facts(blind=True).perfdata()
        elif self.condition is Condition.FAILED and self._verdict is not None:
            state, text = State.CRITICAL, self._verdict.text
            perfdata = self._actions.sync(self.service, self._verdict.facts).perfdata()
        elif self._probe_fault is not None:
            state, text = State.UNKNOWN, f"{self._probe_fault}, though there is a suspicion"
        elif self.target is Target.STANDBY:
            health = self.health[Target.PRIMARY]
            state = State.OK if health.ok else State.CRITICAL if health.ok is False else State.UNKNOWN
            text = f"standby serves; primary {self.service.primary}: {health.text}"
        else:
            text = f"{self.target} {self.service.server(self.target)} answers, {stats.request_rate:g} requests/s"
        self._state = state
        line = f"{state.name}: {text}".replace("|", "/")
        name, host = f"{self.service.name} primary", self.service.host
        self._actions.report(PassiveResult(host, name, state, line, time.time(), self._details(), perfdata))

    def _details(self) -> str:
        """The result's further lines: what was seen and probed, what follows, how to fail back."""
        name = self.service.name
        if self.target is Target.STANDBY:
            return story.further([*self._detail_lines, story.way_back(name)])
        if not self._detail_lines:
            return ""
        return story.further(
            [*self._detail_lines, f'then: the core orders the fail-over, "{name} redirect" tells what came of it']
        )

    def last_facts(self) -> Facts | None:
        """The facts of the standing failed verdict, for the sniffer's own order when the core is away; else None."""
        return None if self._verdict is None else self._actions.sync(self.service, self._verdict.facts)

    @property
    def failed(self) -> bool:
        """Whether a failed verdict stands on the server that serves: reason for a fail-over."""
        return self.condition is Condition.FAILED

    def status(self, now: float) -> dict[str, Any]:
        """This service's part of the ``status`` reply (see ``control``)."""
        return {
            "target": str(self.target),
            "verdict": str(self.condition),
            "blind": self.blind,
            "text": self._verdict.text if self._verdict else "",
            "facts": asdict(facts) if self.failed and (facts := self.last_facts()) else None,
            "stats": asdict(self.traffic.stats(now)),
            **{str(target): health.as_dict(now) for target, health in self.health.items()},
        }
