"""Stage 2: from a suspicion to a verdict. Pure: an investigation names the probes that are due and takes outcomes.

It asks for two probes of the serving server, the second 50 ms after the first, and for one of the other server in
parallel. Where the suspicion is loss or an error share, two of three probes decide, because one failed probe may be
chance. A refusal is an answer and needs no timeout; but a process that restarts refuses too, so after a refusal the
next probe waits 150 ms. A passed probe refutes the suspicion. A probe that never ends proves nothing: see ``expired``.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from check_failover.model import Detector, Facts, Probe, Service, Suspicion, Target, TrafficStats

SECOND = 0.05  # seconds after the first probe began
AFTER_REFUSAL = 0.15  # seconds after a refusal: a quick restart is no failure
STALE = 0.05  # seconds: a probe that began earlier than this before the investigation does not count
PATIENCE = 1.0  # seconds beyond the timeouts of two probes until the investigation expires
ENOUGH_REQUESTS = 5  # since the first failed verdict, until they alone tell whether the server answers


def traffic_evidence(
    count: Callable[[float, Detector | None], tuple[int, int]], suspicion: Suspicion, failed_at: float | None
) -> tuple[int, int]:
    """Requests and useful replies since the trouble began, or since ``failed_at``, the first failed verdict.

    The trouble may seem to begin long before it did: with a request that was lost on the way, while the server answered
    all others. So later looks count what was asked since the first failed verdict, once that is enough to judge by.
    """
    if failed_at is not None:
        fresh = count(failed_at, suspicion.detector)
        if fresh[0] >= ENOUGH_REQUESTS:
            return fresh
    return count(suspicion.now if suspicion.since is None else suspicion.since, suspicion.detector)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``failed``: the serving server does not serve. ``facts``: the input of a decision."""

    failed: bool
    facts: Facts
    text: str
    other_ok: bool | None = None  # whether the other server passed its probe; None: no outcome in time


class Investigation:
    """One investigation of a service, begun by a suspicion. ``serving`` is the target at that time.

    state       event                                          next
    ----------  ---------------------------------------------  ----------------
    probing     two probes of the serving server failed        confirming
    probing     one probe passed (where three decide: two)     verdict: refuted
    probing     ``expired``                                    no verdict
    confirming  the other server's outcome, or ``expired``     verdict: failed
    """

    def __init__(self, service: Service, suspicion: Suspicion, serving: Target, now: float) -> None:
        self.service, self.suspicion, self.serving = service, suspicion, serving
        self._begun = now
        self.outcomes: list[Probe] = []
        self.other: Probe | None = None
        self._wanted = 3 if suspicion.detector.lossy else 2
        self._starts = [now + SECOND * number for number in range(self._wanted)]
        self._started = 0
        self._other_started = False

    def due(self, now: float) -> list[Target]:
        """The probes to start at this moment."""
        targets: list[Target] = []
        if not self._other_started:
            self._other_started = True
            targets.append(self.serving.other)
        while self._started < self._wanted and self._starts[self._started] <= now and not self._settled():
            self._started += 1
            targets.append(self.serving)
        return targets

    def deadline(self) -> float | None:
        """When the next probe is due; None: no further probe."""
        if self._started < self._wanted and not self._settled():
            return self._starts[self._started]
        return None

    def outcome(self, target: Target, probe: Probe, now: float) -> None:
        """A probe ended: one of this investigation, or another one that began late enough to count."""
        if target is not self.serving:
            self.other = probe
            return
        if now - probe.seconds < self._begun - STALE:
            return
        self.outcomes.append(probe)
        if probe.refused:
            for number in range(self._started, self._wanted):
                self._starts[number] = now + AFTER_REFUSAL * (number - self._started + 1)

    def expired(self, now: float) -> bool:
        """Whether the investigation stops waiting for outcomes."""
        return now - self._begun > 2 * self.service.check.timeout + PATIENCE

    def verdict(self, asked: int, answered: int, *, expired: bool = False) -> Verdict | None:
        """The verdict; None: not yet. ``asked`` and ``answered`` count the requests since the suspicion."""
        failed = [probe for probe in self.outcomes if not probe.passed]
        if not self._settled():
            return None
        lost = len(failed) >= 2
        if lost and self.other is None and not expired:
            return None  # the verdict also says whether the other server is healthy
        other_ok = None if self.other is None else self.other.passed
        facts = Facts(
            detector=self.suspicion.detector,
            probes=len(self.outcomes),
            probes_failed=len(failed),
            requests=asked,
            replies=answered,
            standby_ok=other_ok if self.serving is Target.PRIMARY else not lost,
            server=self.serving,
        )
        return Verdict(lost, facts, self._text(failed, asked, answered), other_ok)

    def transcript(self) -> list[dict[str, object]]:
        """Every probe's outcome, for people."""
        probes = [(self.serving, probe) for probe in self.outcomes]
        if self.other is not None:
            probes.append((self.serving.other, self.other))
        return [{"of": str(t), "passed": p.passed, "seconds": round(p.seconds, 6), "text": p.text} for t, p in probes]

    def story(self, verdict: Verdict, stats: TrafficStats, now: float) -> dict[str, Any]:
        """The verdict and its grounds, for people; the evidence file holds it."""
        suspicion = self.suspicion
        return {
            "service": self.service.name,
            "server": str(self.service.server(self.serving)),
            "verdict": verdict.text,
            "suspicion": {"detector": suspicion.detector, "text": suspicion.text},
            "seconds_from_suspicion": round(now - suspicion.now, 6),
            "seconds_from_the_first_victim": round(now - (suspicion.since or suspicion.now), 6),
            "probes": self.transcript(),
            "facts": asdict(verdict.facts),
            "traffic": asdict(stats),
        }

    def _settled(self) -> bool:
        failed = sum(not probe.passed for probe in self.outcomes)
        passed = len(self.outcomes) - failed
        return failed >= 2 or passed >= self._wanted - 1

    def _text(self, failed: list[Probe], asked: int, answered: int) -> str:
        name = str(self.service.server(self.serving))
        if len(failed) < 2:
            return f"{self.serving} {name} passes its probe ({self.suspicion.text})"
        text = f"{self.serving} {name}: {failed[-1].text}"
        if asked:
            text += f"; no useful reply to {asked - answered} of {asked} requests"
        if self.other is not None and not self.other.passed:
            text += f"; no healthy server: {self.serving.other} {self.other.text}"
        return text
