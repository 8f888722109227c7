"""The probe results of one server. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from check_failover.model import Probe


@dataclass(slots=True)
class Health:
    """``ok`` None: not probed yet. Times are monotonic seconds."""

    ok: bool | None = None
    passes: int = 0
    since: float = 0.0  # of the first pass in a row
    at: float = float("-inf")  # of the last probe's end
    probe_started: float = float("-inf")  # of the last probe's begin
    text: str = "not probed yet"
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=5))  # by the last probes that passed

    def record(self, probe: Probe, now: float) -> None:
        if probe.passed and not self.ok:
            self.since = now
        self.ok, self.at, self.text = probe.passed, now, probe.text
        self.passes = self.passes + 1 if probe.passed else 0
        if probe.passed:
            self.durations.append(probe.seconds)

    def probe_error(self, why: str) -> None:
        """A probe could not be made: ``ok`` stays as it is; before the first outcome the text gives the reason."""
        if self.ok is None:
            self.text = f"cannot be probed: {why}"

    def median(self) -> float:
        """The median duration of the last passed probes, in seconds; 0: none has passed."""
        return sorted(self.durations)[len(self.durations) // 2] if self.durations else 0.0

    def as_dict(self, now: float) -> dict[str, Any]:
        good_for = now - self.since if self.ok else 0.0
        ago = None if self.ok is None else round(now - self.at, 3)
        return {"ok": self.ok, "passes": self.passes, "good_for": round(good_for, 1), "ago": ago, "text": self.text}
