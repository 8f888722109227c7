"""What the sniffer does for one service: watch, suspect, investigate, report. No I/O of its own: time comes as an
argument, and what is to be done goes out through ``Actions``.

While the target is the primary and it answers, nobody probes it. A failed verdict is looked at again every second, with
fresh facts for an order that is pending, until the server passes or the target changes. While the target is the
standby, the primary is probed every three seconds: the fail-back checklist wants to know.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any, Protocol

from check_failover import story
from check_failover.model import Detector, Facts, PassiveResult, Probe, Service, State, Suspicion, Target
from check_failover.sniffer.health import Health
from check_failover.sniffer.investigation import Investigation, Verdict
from check_failover.sniffer.stage1.packet import Packet
from check_failover.sniffer.stage1.traffic import TrafficMonitor

HEARTBEAT = 60.0  # seconds between two results of an unchanged state
RECHECK_INTERVAL = 1.0  # seconds between two investigations of a failed server
IDLE_PROBE_INTERVAL = 30.0  # seconds between two probes of the server that has no traffic
URGENT_PROBE_INTERVAL = 3.0  # the same while the standby serves, or is not known to be well
MIN_INTERVAL = 1.0  # seconds between two investigations that suspicions start
FACTS_INTERVAL = 5.0  # seconds until unchanged facts are sent again
DROPS_SETTLE = 2.0  # seconds without a dropped packet until the sniffer trusts the capture again
_ONE_SHOT = frozenset({Detector.REFUSED, Detector.ERROR_SHARE})  # these may not repeat their suspicion, so it is kept


class Condition(StrEnum):
    """How a service stands, in one word."""

    OK = "ok"
    SUSPECT = "suspect"
    FAILED = "failed"
    BLIND = "blind"


class Actions(Protocol):
    """What a monitor can have done for it; nothing here blocks."""

    def probe(self, service: Service, target: Target, timeout: float) -> None: ...

    def report(self, result: PassiveResult) -> None: ...

    def facts(self, service: Service, facts: Facts) -> None: ...

    def note(self, text: str) -> None:
        """A line for the log."""

    def keep(self, service: Service, story: dict[str, Any]) -> int | None:
        """Keep the evidence of a verdict; returns its number."""

    def sync(self, service: Service, facts: Facts) -> Facts:
        """The facts with what is known of the data sync."""


class ServiceMonitor:
    """See the module. Times are monotonic seconds, except in results."""

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
        self._pending: Suspicion | None = None  # came too soon after the last look
        self._was_failed = False  # before it became blind
        self._probe_fault: str | None = None  # why the last look came to nothing
        self._next_investigation = now
        self._reported = float("-inf")
        self._state: State | None = None  # in the last result
        self._evidence: int | None = None
        self._detail_lines: list[str] = []  # of the last failed verdict, for as long as it explains how things are
        self._sent_facts: tuple[float, Facts] = (float("-inf"), Facts())

    # ------------------------------------------------------------ events

    def packet(self, p: Packet, frame: bytes | None = None) -> Suspicion | None:
        suspicion = self.traffic.packet(p, frame)
        if suspicion is not None:
            self._suspect(suspicion, p.now)
        return suspicion

    def tick(self, now: float) -> None:
        """Whatever is due at this moment."""
        suspicion = self.traffic.tick(now)
        if suspicion is not None:
            self._suspect(suspicion, now)
        if self._investigation is not None and self._investigation.expired(now):
            self._abandon(now)
        if self._investigation is None and now >= self._next_investigation and self.blind is None:
            if self.condition is Condition.FAILED:
                self._investigate(self._suspicion or self._recheck(now, Detector.SILENCE), now)
            elif self._pending is not None:
                self._suspect(self._pending, now)
        self._start_probes(now)
        self._probe_idle_server(now)
        if now - self._reported >= HEARTBEAT:
            self._report(now)

    def deadline(self, now: float) -> float:
        """When ``tick`` should be called next, at the latest."""
        moments = [self._reported + HEARTBEAT, now + 1.0]
        if self._investigation is not None:
            moments.append(self._investigation.deadline() or now + 1.0)
        moments.append(self.traffic.deadline() or now + 1.0)
        if (self.condition is Condition.FAILED or self._pending is not None) and self._investigation is None:
            moments.append(self._next_investigation)
        return min(moments)

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
        """Whether the core should hear of the primary while the standby serves: at once when it fails, and when it has
        passed as often as a fail-back asks for, so that one that comes and goes does not page each time."""
        if self.target is Target.PRIMARY or self.blind is not None or self.condition is Condition.FAILED:
            return False
        health = self.health[Target.PRIMARY]
        if health.ok:
            return self._state is not State.OK and health.passes >= self.service.policy.fail_back_passes
        return self._state is not State.CRITICAL

    def flipped(self, target: Target, now: float) -> None:
        """The redirect moved, or was found elsewhere than believed."""
        if target is self.target:
            return
        self.target = target
        self.traffic.flipped(now)
        self._investigation = self._verdict = self._suspicion = self._pending = self._probe_fault = None
        self._was_failed = False
        if target is Target.PRIMARY:
            self._detail_lines = []
        self._sent_facts = (float("-inf"), Facts())
        self.condition = Condition.OK if self.blind is None else Condition.BLIND
        self._report(now)

    def set_blind(self, blind: str | None, now: float) -> None:
        """The capture works (None) or not (why). Dropped packets may have been the replies."""
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

    def _recheck(self, now: float, detector: Detector) -> Suspicion:
        return Suspicion(self.service.name, detector, now, "looked at again")

    def _suspect(self, suspicion: Suspicion, now: float) -> None:
        if self._investigation is not None or self.blind is not None or self.condition is Condition.FAILED:
            return
        if now < self._next_investigation:
            if suspicion.detector in _ONE_SHOT:
                self._pending = suspicion
            return
        if suspicion.detector is not Detector.SILENCE:
            self.condition = Condition.SUSPECT
        self._investigate(suspicion, now)

    def _investigate(self, suspicion: Suspicion, now: float) -> None:
        if self.condition is not Condition.FAILED:
            self._actions.note(f"{suspicion.service}: suspicion, {suspicion.detector}: {suspicion.text}")
        self._suspicion, self._pending = suspicion, None
        self._investigation = Investigation(self.service, suspicion, self.target, now)
        self._start_probes(now)

    def _start_probes(self, now: float) -> None:
        if self._investigation is None:
            return
        for target in self._investigation.due(now):
            self._probe(target, now)

    def _probe(self, target: Target, now: float) -> None:
        """Probe with max(200 ms, 10 * p99 of the traffic, 4 * what probes usually take), within the configured limit.

        The standby's probes tell what a probe takes before anybody has to judge the primary by it.
        """
        self.health[target].probe_started = now
        usual = self.traffic.usual()
        took = max(health.median() for health in self.health.values())
        timeout = max(0.5 if usual is None else max(0.2, 10 * usual), 4 * took)
        self._actions.probe(self.service, target, min(timeout, self.service.check.timeout))

    def _conclude(self, now: float, *, expired: bool = False) -> None:
        investigation = self._investigation
        if investigation is None:
            return
        suspicion = investigation.suspicion
        since = suspicion.now if suspicion.since is None else suspicion.since
        verdict = investigation.verdict(*self.traffic.since(since, suspicion.detector), expired=expired)
        if verdict is None:
            return
        self._investigation, self._probe_fault = None, None
        if verdict.failed:
            self._failed(verdict, investigation, now)
        else:
            self._refuted(investigation.suspicion, now)

    def _abandon(self, now: float) -> None:
        """Probes that never ended: the verdict without the standby's, or none at all, which is loudly unknown."""
        self._conclude(now, expired=True)
        if self._investigation is None:
            return
        before, self._probe_fault = self._probe_fault, f"the {self.target} could not be probed"
        self._investigation = None
        self._next_investigation = now + RECHECK_INTERVAL
        if self.condition is Condition.SUSPECT:
            self.condition = Condition.OK
        if before is None:
            self._report(now)

    def _failed(self, verdict: Verdict, investigation: Investigation, now: float) -> None:
        first = self.condition is not Condition.FAILED
        same = self._verdict is not None and self._verdict.facts.standby_ok == verdict.facts.standby_ok
        if first or not same:
            evidence = self._story(verdict, investigation, now)
            self._detail_lines = [f"{story.moment(time.time())} {verdict.text}", *story.seen(evidence)]
            if first:
                self._evidence = self._actions.keep(self.service, evidence)
        verdict = replace(verdict, facts=replace(verdict.facts, evidence=self._evidence))
        self.condition = Condition.FAILED
        self._verdict = verdict
        self._next_investigation = now + RECHECK_INTERVAL
        if first or not same:
            self._actions.note(f"{self.service.name}: verdict: {verdict.text}")
            self._report(now)
        if not first and self.target is Target.PRIMARY:
            self._send_facts(verdict, now)

    def _story(self, verdict: Verdict, investigation: Investigation, now: float) -> dict[str, Any]:
        """What a person wants to know of a verdict."""
        suspicion = investigation.suspicion
        return {
            "service": self.service.name,
            "server": str(self.service.server(self.target)),
            "verdict": verdict.text,
            "suspicion": {"detector": suspicion.detector, "text": suspicion.text},
            "seconds_from_suspicion": round(now - suspicion.now, 6),
            "seconds_from_the_first_victim": round(now - (suspicion.since or suspicion.now), 6),
            "probes": investigation.transcript(),
            "facts": asdict(verdict.facts),
            "traffic": asdict(self.traffic.stats(now)),
        }

    def _send_facts(self, verdict: Verdict, now: float) -> None:
        at, facts = self._sent_facts
        fresh = self._facts(verdict)
        if replace(fresh, requests=0, replies=0) != facts or now - at >= FACTS_INTERVAL:
            self._sent_facts = (now, replace(fresh, requests=0, replies=0))
            self._actions.facts(self.service, fresh)

    def _refuted(self, suspicion: Suspicion, now: float) -> None:
        was = self.condition
        self._actions.note(f"{self.service.name}: refuted: {self.target} passes its probe")
        self.traffic.refuted(suspicion.detector, now)
        self._verdict = None
        self.condition = Condition.OK
        self._next_investigation = now + MIN_INTERVAL
        if was is Condition.FAILED:
            self._detail_lines = []
            self._report(now)

    def _probe_idle_server(self, now: float) -> None:
        if self._investigation is not None:
            return
        health = self.health[self.target.other]
        every = IDLE_PROBE_INTERVAL if self.target is Target.PRIMARY and health.ok else URGENT_PROBE_INTERVAL
        if now - health.probe_started >= every:
            self._probe(self.target.other, now)

    # ------------------------------------------------------------ reports

    def _facts(self, verdict: Verdict) -> Facts:
        return self._actions.sync(self.service, verdict.facts)

    def _report(self, now: float) -> None:
        """The passive result "NAME primary": the verdict over the server that serves."""
        self._reported = now
        state, text, perfdata = State.OK, "", ""
        stats = self.traffic.stats(now)
        if self.blind is not None:
            state, text = State.UNKNOWN, f"blind: {self.blind}"
            perfdata = Facts(blind=True).perfdata()
        elif self.condition is Condition.FAILED and self._verdict is not None:
            state, text, perfdata = State.CRITICAL, self._verdict.text, self._facts(self._verdict).perfdata()
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
        """The further lines: what was seen and probed, what comes of it, how to go back."""
        name = self.service.name
        if self.target is Target.STANDBY:
            return story.further([*self._detail_lines, story.way_back(name)])
        if not self._detail_lines:
            return ""
        return story.further(
            [*self._detail_lines, f'then: the core orders the fail-over, "{name} redirect" tells what came of it']
        )

    def last_facts(self) -> Facts | None:
        """The facts of the verdict that stands, for the sniffer's own order when the core is away."""
        return None if self._verdict is None or not self._verdict.failed else self._facts(self._verdict)

    @property
    def failed(self) -> bool:
        """Whether a failed verdict stands on the primary that serves: reason for a fail-over."""
        return self.condition is Condition.FAILED and self.target is Target.PRIMARY

    def status(self, now: float) -> dict[str, Any]:
        """See ``control``."""
        return {
            "target": str(self.target),
            "verdict": str(self.condition),
            "blind": self.blind,
            "text": self._verdict.text if self._verdict else "",
            "facts": asdict(facts) if self.failed and (facts := self.last_facts()) else None,
            "stats": asdict(self.traffic.stats(now)),
            **{str(target): health.as_dict(now) for target, health in self.health.items()},
        }
