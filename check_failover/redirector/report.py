"""The redirector's passive results for the core: "NAME redirect" and "NAME fail-back".

"redirect" reports the outcome of each attempt. ("NAME primary" reports the fault itself; its notification leaves before
the event handler runs.) "fail-back" is OK while the target is the primary. While the target is the standby, it is
UNKNOWN if a fail-back would be refused (its text has the reason), WARNING once a fail-back would be done ("ready to
fail back"), CRITICAL if the automatic fail-back has locked. An operator who submits OK for it orders the fail-back.
"""

import time

from check_failover import story
from check_failover.config import Config
from check_failover.decide import items
from check_failover.model import PassiveResult, Service, State, Target
from check_failover.records import JournalEntry, ServiceStatus
from check_failover.syncstate import duration
from check_failover.transports import TRANSPORTS
from check_failover.transports.outbox import Outbox

LOCKED = "locked on the standby, fail back by hand"
HEARTBEAT = 60.0  # seconds between two results of an unchanged state


class CoreReports:
    """Sends results to the core. Never blocks; keeps the results that the core does not accept."""

    def __init__(self, config: Config) -> None:
        transport = TRANSPORTS[config.monitoring["transport"]](config.monitoring)
        self._outbox = Outbox(transport, config.controller.state_dir / "target" / "results.kept")
        self._last: dict[str, tuple[float, object]] = {}

    def attempt(self, service: Service, entry: JournalEntry, status: ServiceStatus) -> None:
        """Report an attempt's outcome, then the state. ``status`` may be more recent than the attempt."""
        text = outcome(service, entry)
        if entry.flipped and status.target != entry.to:  # another flip followed; its own result comes next
            state = State.WARNING if entry.to == Target.STANDBY else State.OK
            self._send(service, "redirect", state, text, status)
        elif entry.flipped:
            self.state(service, status, text)
        elif entry.verb in ("fail-over", "drain"):
            state = State.CRITICAL if entry.verb == "fail-over" else State.WARNING
            self._send(service, "redirect", state, text, status)
        else:
            state = State.OK if status.target == Target.PRIMARY else fail_back_state(status)[0]
            self._send(service, "fail-back", state, text, status)

    def look(self, service: Service, status: ServiceStatus) -> None:
        """Called every few seconds: reports a change, or a heartbeat."""
        if self.due(service) or _fingerprint(status) != self._last[service.name][1]:
            self.state(service, status)

    def due(self, service: Service) -> bool:
        """Whether the next heartbeat is due."""
        return time.monotonic() - self._last.get(service.name, (float("-inf"), None))[0] >= HEARTBEAT

    def state(self, service: Service, status: ServiceStatus, line: str | None = None) -> None:
        """Report the state of both services."""
        state, text = redirect_state(status)
        back, why = fail_back_state(status)
        self._last[service.name] = (time.monotonic(), _fingerprint(status))
        self._send(service, "redirect", state, line or text, status)
        self._send(service, "fail-back", back, why, status)

    def close(self) -> None:
        self._outbox.close()

    def _send(self, service: Service, suffix: str, state: State, text: str, status: ServiceStatus) -> None:
        lines = [*items(status.fail_back), story.way_back(service.name)] if status.target == Target.STANDBY else []
        details = story.further(status.story if suffix == "redirect" else lines)
        perfdata = f"standby={int(status.target == Target.STANDBY)} held={int(status.hold is not None)}"
        text = f"{state.name}: {text}".replace("|", "/")
        name = f"{service.name} {suffix}"
        self._outbox.submit(PassiveResult(service.host, name, state, text, time.time(), details, perfdata))


def _fingerprint(status: ServiceStatus) -> tuple[object, ...]:
    """The parts of a status whose change needs a new result."""
    missing = tuple(reason for reason, why in status.fail_back if why is not None)
    return redirect_state(status)[0], status.pending, status.target, missing, status.drain is None


def outcome(service: Service, entry: JournalEntry) -> str:
    """One line for an attempt. The data's age stands early, so that a text cut to one SMS still contains it."""
    age = _data_age(service, entry)
    if entry.flipped:
        return f"{entry.verb} done, now on the {entry.to}{age}: {entry.text}"
    return story.refusal(entry, age)


def _data_age(service: Service, entry: JournalEntry) -> str:
    """The age of the data that clients read, or would read, from the standby. Empty without a sync."""
    if service.sync is None or entry.to != Target.STANDBY:
        return ""
    age = None if entry.facts is None else entry.facts.sync_age
    undecided = ", not all writes" if entry.facts is not None and entry.facts.sync_undecided else ""
    return f" (data never in step{undecided})" if age is None else f" (data {duration(age)} old{undecided})"


def detail_lines(service: Service, status: ServiceStatus, report_url: str | None = None) -> list[str]:
    """The further lines of "NAME redirect": the last attempt, its facts, its page, and what can be done now."""
    on_standby = status.target == Target.STANDBY
    entry = (status.flip if on_standby else None) or status.last
    lines = [f"{service.protocol} {service.address}: primary {service.primary}, standby {service.standby}"]
    if entry is not None:
        lines += story.done(entry)
        page = story.page_name(entry)
        if report_url and page:
            lines.append(f"report: {report_url.rstrip('/')}/{page}")
    if on_standby:
        lines.append(story.way_back(service.name))
    elif status.pending:
        lines.append("done by itself when that has changed and the fault still stands; see failoverctl status")
    return lines


def fail_back_state(status: ServiceStatus) -> tuple[State, str]:
    """State and text of "NAME fail-back"; the text names the checklist's first item that is not met."""
    if status.target == Target.PRIMARY:
        return State.OK, "on the primary, nothing to fail back"
    automatic = status.auto_fail_back
    if automatic is not None and automatic.locked:
        return State.CRITICAL, f"{LOCKED}; penalty {automatic.penalty}, see failoverctl status"
    open_items = [(reason, why) for reason, why in status.fail_back if why is not None]
    if not open_items:
        return State.WARNING, "ready to fail back: submit OK here, or failoverctl fail-back"
    return State.UNKNOWN, f"not ready to fail back, {open_items[0][0]}: {open_items[0][1]}"


def redirect_state(status: ServiceStatus) -> tuple[State, str]:
    """State and text of "NAME redirect" from the redirector's own status."""
    state, text = _redirect_state(status)
    if status.peer_silent is not None and state in (State.OK, State.WARNING):
        return State.WARNING, f"{text}; no word from the other controller for {status.peer_silent} s"
    return state, text


def _redirect_state(status: ServiceStatus) -> tuple[State, str]:
    if status.problem:
        return State.CRITICAL, str(status.problem)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.since)) if status.since else "the start"
    if status.pending:
        why = f": {status.last.text}" if status.last and status.last.reason == status.pending else ""
        return State.CRITICAL, f"fail-over pending, {status.pending}{why}"
    if status.target == Target.STANDBY:
        return State.WARNING, f"on the standby {status.standby} since {since}{draining(status)}"
    if status.hold:
        return State.WARNING, f"on the primary, held by {status.hold.by}: {status.hold.reason}"
    return State.OK, f"on the primary {status.primary}{draining(status)}"


def draining(status: ServiceStatus) -> str:
    """The end of a line during a drain: the number of connections on the old server; empty without a drain."""
    drain = status.drain
    if drain is None:
        return ""
    left = "an unknown number of" if drain.left is None else drain.left
    return f", {left} open connections finish on the {drain.old}"
