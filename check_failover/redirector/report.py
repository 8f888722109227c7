"""What the core hears from the redirector: passive results "NAME redirect" and "NAME fail-back".

"redirect" tells the outcome of each attempt (the problem itself is told by "NAME primary", whose notification leaves
before the handler runs). "fail-back" is WARNING while the target is the standby; a person who submits OK for it orders
the fail-back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from check_failover.config import Config
from check_failover.decide import Reason
from check_failover.model import PassiveResult, Service, State, Target
from check_failover.transports import TRANSPORTS
from check_failover.transports.outbox import Outbox


class Report:
    """Hands results to the core; never blocks, keeps what the core does not take."""

    def __init__(self, config: Config) -> None:
        transport = TRANSPORTS[config.monitoring["transport"]](config.monitoring)
        self._outbox = Outbox(transport, config.controller.state_dir / "target" / "results.kept")

    def attempt(self, service: Service, entry: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """An attempt was made: its outcome, then the state it left."""
        if entry["reason"] == Reason.ALREADY:
            return
        if entry["flipped"]:
            self.state(service, status, str(entry["line"]))
            return
        state = State.CRITICAL if entry["verb"] == "fail-over" else State.WARNING
        text = f"{entry['verb']} refused, {entry['reason']}: {entry['text']}"
        self._send(service, "redirect" if entry["verb"] == "fail-over" else "fail-back", state, text, status)

    def state(self, service: Service, status: Mapping[str, Any], line: str | None = None) -> None:
        """How things stand, for both services."""
        state, text = redirect_state(status)
        self._send(service, "redirect", state, line or text, status)
        if status["target"] == Target.PRIMARY:
            self._send(service, "fail-back", State.OK, "on the primary, nothing to fail back", status)
        else:
            self._send(service, "fail-back", State.WARNING, f"{text}; submit OK to fail back", status)

    def close(self) -> None:
        self._outbox.close()

    def _send(self, service: Service, suffix: str, state: State, text: str, status: Mapping[str, Any]) -> None:
        perfdata = f"standby={int(status['target'] == Target.STANDBY)} held={int(status['hold'] is not None)}"
        text = f"{state.name}: {text}".replace("|", "/")
        self._outbox.submit(
            PassiveResult(service.host, f"{service.name} {suffix}", state, text, time.time(), perfdata=perfdata)
        )


def redirect_state(status: Mapping[str, Any]) -> tuple[State, str]:
    """State and text of "NAME redirect" from the redirector's own status."""
    if status["problem"]:
        return State.CRITICAL, str(status["problem"])
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(status["since"])) if status["since"] else "the start"
    if status["pending"]:
        return State.CRITICAL, f"fail-over pending, {status['pending']}"
    if status["target"] == Target.STANDBY:
        return State.WARNING, f"on the standby {status['standby']} since {since}"
    if status["hold"]:
        return State.WARNING, f"on the primary, held by {status['hold']['by']}: {status['hold']['reason']}"
    return State.OK, f"on the primary {status['primary']}"
