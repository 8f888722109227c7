"""Steer: take an order, decide, flip, repair, remember. One lock, one writer.

The order of a flip, so that a kill or a power cut at any moment leaves the old state or the new one, never half:

1. the intent goes to the state file (fsync): a restart brings the kernel to it
2. one transaction in the kernel; connections in the making are forgotten; the event has the sniffer replay them
3. stranded flows are freed, the rule is read back
4. the journal line (fsync), the answer, the passive results

An order of the core that is refused for a reason that may pass (``decide.RETRYABLE``) stays *pending*: fresh evidence
from the sniffer, a released hold or the end of the hold-down have it decided anew, until a flip or the core's recovery
withdraws it. The core runs its handler on changes of state only, and volatile services would page on every result; a
pending order is how "flips as soon as one recovers" works with the core as the judge. A restart forgets the facts and
keeps the order: only fresh evidence acts on it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from check_failover.config import Config
from check_failover.damping import Damping, decayed, failed_over
from check_failover.decide import (
    AUTO_FAIL_BACK,
    DRAIN,
    FAIL_BACK,
    FAIL_OVER,
    RETRYABLE,
    Decision,
    Reason,
    Situation,
    checklist,
    decide,
)
from check_failover.model import Facts, Hold, Service, Target
from check_failover.redirector import Redirect, RedirectError
from check_failover.redirector.drain import ending
from check_failover.redirector.journal import Journal, JournalError
from check_failover.redirector.state import Drain, ServiceState, StateError, load, save

log = logging.getLogger(__name__)
Event = dict[str, Any]
SWEEP_AFTER = 0.3  # seconds from the poke until the rest is forgotten: a client's answer has come by then
TABLES = {"fail-over": FAIL_OVER, "drain": DRAIN, "fail-back": FAIL_BACK, "auto-fail-back": AUTO_FAIL_BACK}


@dataclass(frozen=True, slots=True)
class Order:
    """Who wants what. ``primary`` is what a fail-back needs to know of the primary (DESIGN: the checklist)."""

    service: Service
    verb: str  # a key of TABLES
    by: str
    facts: Facts
    manual: bool = False
    drain: bool = False
    deadline: float | None = None  # drain: seconds until what is left is cut
    why: str = ""  # where it is neither a fault nor a person that asks
    peer: Mapping[str, int] | None = None
    primary_ok: bool | None = None
    primary_passes: int = 0
    primary_good_for: float = 0.0
    synced_back: bool | None = None


class Steering:
    """The state of all services. ``publish`` gets events; ``step`` names each step as it begins (for crash tests)."""

    def __init__(
        self,
        config: Config,
        redirect: Redirect,
        publish: Callable[[Event], None],
        step: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._services = {service.name: service for service in config.services}
        self._redirect, self._publish, self._step = redirect, publish, step
        self._directory: Path = config.controller.state_dir / "target"
        self._journal = Journal(config.controller.state_dir / "journal.jsonl")
        self._lock = threading.Lock()
        self._state: dict[str, ServiceState] = {}
        self._pending: dict[str, Order] = {}
        # service -> what is wrong -> the line that says it; each is cleared by what succeeds next of its kind
        self._problems: dict[str, dict[str, str]] = {name: {} for name in self._services}
        self._last: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)

    # ------------------------------------------------------------ start and repair

    def restore(self) -> None:
        """Bring the kernel to the saved targets. Raises RedirectError; a damaged state file keeps the kernel's."""
        with self._lock:
            self._directory.mkdir(parents=True, exist_ok=True)
            for name, service in self._services.items():
                try:
                    self._state[name] = load(self._directory, name) or ServiceState()
                except StateError as error:
                    self._problems[name]["state"] = str(error)
                    kept = self._redirect.current(service)
                    self._state[name] = ServiceState(kept or Target.PRIMARY)
                    log.error("%s", error)
            for entry in self._journal.read(200):
                self._last[str(entry.get("service"))] = entry
            self._redirect.install(self.targets())

    def heal(self) -> None:
        """Put right what another hand did to the kernel's rules; called every few seconds."""
        with self._lock:
            wrong = [n for n, s in self._services.items() if self._redirect.current(s) is not self._state[n].target]
            try:
                if wrong:
                    self._redirect.install(self.targets())
            except RedirectError as error:
                for name in wrong:
                    self._problems[name]["kernel"] = str(error)
                return
            for problems in self._problems.values():
                problems.pop("kernel", None)
            for name in wrong:
                text = "the rule was changed or removed by another hand; restored"
                log.warning("%s: %s", name, text)
                self._write(self._entry(self._services[name], "restore", "redirector", Facts(), text, flipped=False))

    def targets(self) -> dict[str, Target]:
        """The intended targets."""
        return {name: state.target for name, state in self._state.items()}

    # ------------------------------------------------------------ orders

    def order(self, order: Order) -> dict[str, Any]:
        """Decide and, if right, flip. The answer is the journal's entry. Raises RedirectError for what it cannot do."""
        if order.deadline is not None and not self._redirect.cuts:
            raise RedirectError("this redirect cannot cut what a drain leaves: drain without a deadline")
        with self._lock:
            return self._order(order)

    def refusal(self, order: Order) -> Decision | None:
        """What ``order`` would be refused for now; None when it would be done. Nothing happens."""
        with self._lock:
            decision = decide(TABLES[order.verb], order.facts, order.service.policy, self._situation(order))
        return None if decision.flip else decision

    def _order(self, order: Order) -> dict[str, Any]:
        began = time.monotonic()
        name = order.service.name
        decision = decide(TABLES[order.verb], order.facts, order.service.policy, self._situation(order))
        entry = self._entry(order.service, order.verb, order.by, order.facts, decision.text, peer=order.peer)
        entry["reason"] = str(decision.reason)
        if decision.flip:
            self._flip(order, decision, entry)
        elif decision.reason is Reason.ALREADY and order.drain and order.deadline is not None:
            self._change_deadline(order, entry)
        elif decision.reason in RETRYABLE and order.verb == "fail-over" and not order.manual:
            self._pending[name] = order
            self._remember(name, pending=str(decision.reason))
        entry["took"] = round(time.monotonic() - began, 6)
        if decision.reason is not Reason.ALREADY:
            self._write(entry)
            level = logging.INFO if decision.flip else logging.WARNING
            log.log(level, "%s, took %.0f ms", entry["line"], 1000 * entry["took"])
        if not decision.flip:
            self._redirect_quietly(lambda: self._redirect.withhold(order.service, on=False))
            self._publish({"event": "refused", "service": name, "reason": str(decision.reason), "at": entry["at"]})
        return entry

    def _flip(self, order: Order, decision: Decision, entry: dict[str, Any]) -> None:
        service, name = order.service, order.service.name
        old = self._state[name].target
        before = self._state[name]
        try:
            self._step("persist")
            after = _after(before, order, time.time())
            save(self._directory, name, after)
            self._step("transaction")
            self._move(service, old.other, drain=order.drain)
        except (StateError, RedirectError) as error:
            self._redirect_quietly(lambda: save(self._directory, name, before))
            self._problems[name]["state" if isinstance(error, StateError) else "kernel"] = str(error)
            entry.update(reason="error", error=str(error), text=str(error), line=f"{name}: flip failed: {error}")
            if order.verb == "fail-over" and not order.manual:  # the next evidence tries again
                self._pending[name] = order
                self._remember(name, pending="error")
            return
        self._state[name] = after
        self._problems[name].pop("state", None)
        self._pending.pop(name, None)
        entry.update(to=str(old.other), flipped=True, line=f"{name}: {old} -> {old.other} ({decision.text})")
        self._step("forget")
        if not order.drain:
            self._try(entry, "forgotten", lambda: self._redirect.forget_unanswered(service, old))
        self._publish(
            {
                "event": "flip",
                "service": name,
                "target": str(old.other),
                "old": str(old),
                "at": entry["at"],
                "drain": order.drain,
            }
        )
        self._step("free")
        if not order.drain:
            self._try(entry, "freed", lambda: self._redirect.free_stranded(service, old))
            self._redirect_quietly(lambda: self._redirect.withhold(service, on=True))
            self._later(SWEEP_AFTER, lambda: self._sweep(service, old))
        self._step("read back")
        self._read_back(service, entry)
        if order.drain:
            self._try(entry, "left", lambda: self._redirect.open_connections(service, old))

    def _move(self, service: Service, target: Target, *, drain: bool) -> None:
        """One transaction; where another hand removed our rules, all of them anew. Raises RedirectError."""
        try:
            self._redirect.set(service, target, drain=drain)
        except RedirectError as error:
            log.warning("%s: %s: loading all rules anew", service.name, error)
            self._redirect.install({**self.targets(), service.name: target})

    def _sweep(self, service: Service, old: Target) -> None:
        with self._lock:
            if self._state[service.name].target is not old:
                self._redirect_quietly(lambda: self._redirect.sweep(service, old))

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()

    def _try(self, entry: dict[str, Any], what: str, repair: Callable[[], int]) -> None:
        """A repair that fails does not undo the flip; it is told."""
        try:
            entry[what] = int(repair())
        except RedirectError as error:
            entry["error"] = f"{what}: {error}"

    def _read_back(self, service: Service, entry: dict[str, Any]) -> None:
        kernel = self._redirect.current(service)
        wanted = self._state[service.name].target
        if kernel is wanted:
            self._problems[service.name].pop("kernel", None)
            return
        entry["error"] = f"the kernel's rule says {kernel or 'nothing'}, not {wanted}"
        self._problems[service.name]["kernel"] = entry["error"]

    # ------------------------------------------------------------ drain

    def draining(self, name: str) -> Drain | None:
        """The drain that goes on; None when every open connection is where the target is."""
        return self._state[name].drain

    def tend(self, name: str, *, old_failed: bool = False) -> dict[str, Any] | None:
        """Look whether a drain is over, and cut what is left where it ends so: the journal's entry; None: it goes on.

        A cut that fails is told, and tried again with the next look.
        """
        with self._lock:
            service, state = self._services[name], self._state[name]
            if state.drain is None:
                return None
            old, entry = state.drain.old, self._entry(service, "drained", "redirector", Facts(), "")
            try:
                left = self._redirect.open_connections(service, old)
                why = ending(state.drain, left, old_failed=old_failed, now=time.time())
                if why is None:
                    return None
                if left and self._redirect.cuts:
                    entry["freed"] = self._redirect.cut(service, old)
                    self._later(SWEEP_AFTER, lambda: self._sweep(service, old))
                    why += f": {left} open connections were cut"
                elif left:
                    why += f": {left} open connections stay with it"
                self._save(name, replace(state, drain=None))
            except (RedirectError, StateError) as error:
                self._problems[name]["drain"] = str(error)
                return None
            self._problems[name].pop("drain", None)
            entry.update(text=why, line=f"{name}: drained: {why}")
            self._write(entry)
            log.info("%s", entry["line"])
        return entry

    def _change_deadline(self, order: Order, entry: dict[str, Any]) -> None:
        """A second order while the first one's drain goes on, in the same direction."""
        name = order.service.name
        drain = self._state[name].drain
        if drain is None or order.deadline is None:
            return
        try:
            self._save(name, replace(self._state[name], drain=replace(drain, deadline=time.time() + order.deadline)))
        except StateError as error:
            self._problems[name]["state"] = str(error)
            return
        entry["text"] += f", what is left on the {drain.old} will be cut in {order.deadline:.0f} s"

    def _drain_status(self, service: Service, drain: Drain | None) -> dict[str, Any] | None:
        """Raises RedirectError."""
        if drain is None:
            return None
        return {**asdict(drain), "left": self._redirect.open_connections(service, drain.old)}

    def _situation(self, order: Order) -> Situation:
        state = self._state[order.service.name]
        return Situation(
            target=state.target,
            hold=state.hold,
            since_flip=None if state.since is None else max(0.0, time.time() - state.since),
            manual=order.manual,
            primary_ok=order.primary_ok,
            primary_passes=order.primary_passes,
            primary_good_for=order.primary_good_for,
            synced_back=order.synced_back,
            why=order.why,
            moved_by_person=state.moved_by_person,
            locked=state.damping.locked,
            downtime=bool(state.downtime),
        )

    # ------------------------------------------------------------ what may follow an order

    def evidence(self, name: str, facts: Facts) -> dict[str, Any] | None:
        """Fresh facts for a pending order: decided anew. None when nothing is pending."""
        with self._lock:
            order = self._pending.get(name)
            if order is None and self._state[name].pending is not None:  # kept over a restart
                order = Order(self._services[name], "fail-over", "core (order kept over a restart)", facts)
            if order is None:
                return None
            fresh = replace(order, facts=replace(facts, downtime=order.facts.downtime))
            situation = self._situation(fresh)
            decision = decide(FAIL_OVER, fresh.facts, fresh.service.policy, situation)
            self._pending[name] = fresh
            if str(decision.reason) == self._state[name].pending:
                return None  # nothing new: no journal line every second
            return self._order(fresh)

    def recovered(self, name: str) -> str:
        """The core withdraws its order."""
        with self._lock:
            self._pending.pop(name, None)
            if self._state[name].pending is not None:
                self._remember(name, pending=None)
            self._redirect_quietly(lambda: self._redirect.withhold(self._services[name], on=True))
        return f"{name}: no order pending"

    def hold(self, name: str, by: str, reason: str) -> str:
        """Forbid flips until ``release``. Raises StateError."""
        with self._lock:
            self._save(name, replace(self._state[name], hold=Hold(by, time.time(), reason)))
            self._write(self._entry(self._services[name], "hold", by, Facts(), reason or "no reason given"))
        self._publish({"event": "hold", "service": name, "by": by})
        return f"{name}: held by {by}"

    def release(self, name: str, by: str) -> str:
        """Allow flips again; a pending order is decided with the sniffer's next evidence. Raises StateError."""
        with self._lock:
            if self._state[name].hold is None:
                return f"{name}: was not held"
            self._save(name, replace(self._state[name], hold=None))
            self._write(self._entry(self._services[name], "release", by, Facts(), "released"))
        self._publish({"event": "release", "service": name, "by": by})
        return f"{name}: released by {by}"

    def downtime(self, name: str, of: str, by: str, *, begin: bool) -> None:
        """A downtime of the core's object ``of`` began or ended; said twice is said once. Raises StateError."""
        with self._lock:
            state = self._state[name]
            others = tuple(one for one in state.downtime if one != of)
            after = (*others, of) if begin else others
            if set(after) == set(state.downtime):
                return
            self._save(name, replace(state, downtime=after))
            text = f"downtime of {of} {'began' if begin else 'ended'}"
            self._write(self._entry(self._services[name], "downtime", by, Facts(), text))

    def forget(self, name: str, client: str, port: int) -> bool:
        """Drop one unreplied entry of a client. Raises RedirectError."""
        return self._redirect.forget(self._services[name], client, port)

    # ------------------------------------------------------------ what is asked

    def history(self, limit: int) -> list[dict[str, Any]]:
        return self._journal.read(limit)

    def status(self, name: str, fail_back: Order | None = None) -> dict[str, Any]:
        """See ``control``; asks the kernel for rule and counters. ``fail_back``: what is known of the primary."""
        service, state = self._services[name], self._state[name]
        kernel = self._redirect.current(service)
        activity: dict[str, int] | None = None
        drain: dict[str, Any] | None = None if state.drain is None else {**asdict(state.drain), "left": None}
        problem = next(iter(self._problems[name].values()), None)
        try:
            activity = asdict(self._redirect.activity(service))
            drain = self._drain_status(service, state.drain)
        except RedirectError as error:
            problem = problem or str(error)
        if kernel is not state.target and problem is None:
            problem = f"the kernel's rule says {kernel or 'nothing'}, not {state.target}"
        since = None if state.since is None else max(0.0, time.time() - state.since)
        order = fail_back or Order(service, "fail-back", "", Facts())
        return {
            "target": state.target,
            "kernel": kernel,
            "since": state.since,
            "hold": None if state.hold is None else asdict(state.hold),
            "pending": state.pending,
            "drain": drain,
            "downtime": list(state.downtime),
            "auto_fail_back": _automatic(service, state),
            "hold_down_left": 0.0 if since is None else max(0.0, round(service.policy.hold_down - since, 1)),
            "problem": problem,
            "activity": activity,
            "protocol": service.protocol,
            "address": str(service.address),
            "primary": str(service.primary),
            "standby": str(service.standby),
            "fail_back": [
                [str(reason), why]
                for reason, why in checklist(FAIL_BACK, order.facts, service.policy, self._situation(order))
            ],
            "last": self._last.get(name),
        }

    # ------------------------------------------------------------ memory

    def _entry(
        self,
        service: Service,
        verb: str,
        by: str,
        facts: Facts,
        text: str,
        *,
        flipped: bool = False,
        peer: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        now = time.time()
        target = str(self._state[service.name].target)
        return {
            "id": f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{service.name}-{next(self._numbers)}",
            "at": round(now, 6),
            "service": service.name,
            "verb": verb,
            "by": by,
            "peer": dict(peer) if peer else None,
            "from": target,
            "to": target,
            "flipped": flipped,
            "reason": verb,
            "text": text,
            "line": f"{service.name}: {verb}: {text}",
            "facts": asdict(facts),
        }

    def _write(self, entry: dict[str, Any]) -> None:
        """A journal that cannot be written must not keep clients from the standby; it is a problem all the same."""
        self._last[entry["service"]] = entry
        self._step("journal")
        try:
            self._journal.write(entry)
            self._problems[entry["service"]].pop("journal", None)
        except JournalError as error:
            self._problems[entry["service"]]["journal"] = str(error)
            log.error("%s", error)

    def _save(self, name: str, state: ServiceState) -> None:
        save(self._directory, name, state)
        self._state[name] = state
        self._problems[name].pop("state", None)

    def _remember(self, name: str, pending: str | None) -> None:
        try:
            self._save(name, replace(self._state[name], pending=pending))
        except StateError as error:
            self._problems[name]["state"] = str(error)

    def _redirect_quietly(self, act: Callable[[], object]) -> None:
        """For what is good to have and must not spoil the answer."""
        try:
            act()
        except (RedirectError, StateError) as error:
            log.warning("%s", error)


def _after(before: ServiceState, order: Order, now: float) -> ServiceState:
    """What a flip makes of a service's state."""
    policy, damping = order.service.policy, before.damping
    if order.verb == "fail-over" and not order.manual:
        damping = failed_over(damping, now, policy.damping_half_life)
    elif order.verb == "fail-back":
        damping = Damping()
    drain = None
    if order.drain:
        drain = Drain(before.target, now, None if order.deadline is None else now + order.deadline)
    return replace(
        before,
        target=before.target.other,
        since=now,
        pending=None,
        drain=drain,
        damping=damping,
        moved_by_person=order.manual,
    )


def _automatic(service: Service, state: ServiceState) -> dict[str, Any] | None:
    """How the automatic fail-back stands; None where it is off."""
    policy = service.policy
    if not policy.auto_fail_back:
        return None
    penalty = decayed(state.damping, time.time(), policy.damping_half_life)
    return {"penalty": round(penalty), "locked": state.damping.locked, "moved_by_person": state.moved_by_person}
