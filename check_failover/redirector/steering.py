"""Steering: takes orders, decides, flips, repairs and records. One lock, one writer.

The sequence of a flip; a kill or a power cut at any moment leaves the complete old state or the complete new one:

1. write the intent beside the state file (see ``state``); a restart follows it and does the remaining steps
2. change the kernel's rule in one transaction; forget half-open connections; publish the event, so the sniffer replays
3. reset stranded flows, read the rule back
4. settle the intent and write the journal line (both with fsync), answer the order; passive results follow

The core's order stays *pending* after a refusal that may be lifted (``decide.RETRYABLE``), because the core runs its
event handler only once for each change of state. A restart keeps the order and forgets its facts.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

from check_failover import story
from check_failover.config import Config
from check_failover.decide import RETRYABLE, Decision, Reason
from check_failover.model import Endpoint, Hold, Service, Target
from check_failover.records import Activity, Caller, DrillParts, JournalEntry, ServiceStatus
from check_failover.redirector import Change, Redirect, RedirectError, Wiring, current
from check_failover.redirector.draining import Drains
from check_failover.redirector.order import Order, after, decided, explained, situation
from check_failover.redirector.reaching import Reaching
from check_failover.redirector.repair import Event, Repair, quietly
from check_failover.redirector.state import ServiceState, StateError, disagreement, outranks
from check_failover.redirector.status import statuses
from check_failover.redirector.store import StateStore

log = logging.getLogger(__name__)


class Steering:
    """The state of all services. ``publish`` sends events. A core's order:

    state    event                                                             next
    -------  ----------------------------------------------------------------  -------
    none     ``order``: refused with a reason in RETRYABLE, or the flip fails  pending
    pending  ``facts``: the sniffer's fresh evidence, still refused            pending
    any      refused with another reason, except ALREADY                       refused
    any      a flip by any order, or ``recovered``: the core withdraws         none
    """

    def __init__(self, config: Config, redirect: Redirect, publish: Callable[[Event], None]) -> None:
        self._services = {service.name: service for service in config.services}
        self._redirect, self._publish = redirect, publish
        self._store = StateStore(config.controller.state_dir, self._services)
        self.journal = self._store.journal
        self._lock = threading.Lock()
        self._repair = Repair(redirect, self._store, publish, self._lock, config.controller.state_dir)
        self.drains = Drains(redirect, self._store, self._repair, self._lock)
        self._pending: dict[str, Order] = {}
        self.reaching = Reaching(self._store, self._lock, config)

    # ------------------------------------------------------------ start and repair

    def restore(self) -> None:
        """Set the kernel's rules to the saved targets; with a damaged state file, keep them. Raises RedirectError."""
        with self._lock:
            unfinished = self._store.load(lambda name: current(self._redirect, self._services[name]))
            self._redirect.install(self.targets())
            kernel = self._redirect.wired(self._services.values())
            for name, service in self._services.items():
                dead = kernel[name].dead if name in kernel else None
                if dead is not None:  # an earlier process ended before the sweep
                    self._repair.sweep_later(service, dead)
                quietly(lambda service=service: self._repair.rewire(service))  # type: ignore[misc]
                if name in unfinished:
                    self._repair.resume(service)
                elif self._store.journal_lags(name):
                    text = "the journal lacks the line of the last flip: the redirector or the disk failed then"
                    self._store.write(self._store.new_entry(name, "restore", "redirector", text))

    def reconcile(self, change: Change = Change.RULES) -> None:
        """Retry failed writes; restore rules that another program changed. Called every few seconds.

        ``change``: what the kernel may have to be read for; what has to follow the time is read anyway.
        """
        with self._lock:
            self._store.retry_writes()
            self.reaching.look()
            if change is Change.NONE and not self._store.restless():
                return
            targets, whole = self.targets(), change is not Change.RULES or self._redirect.whole()
            kernel = self._redirect.wired(self._services.values()) if whole else {}
            wrong = [n for n, target in targets.items() if n not in kernel or kernel[n].target is not target]
            try:
                if wrong:
                    self._redirect.install(targets)
            except RedirectError as error:
                for name in wrong:
                    self._store.problems[name]["kernel"] = str(error)
                return
            for name, service in self._services.items():
                try:
                    self._repair.rewire(service, None if name in wrong else kernel[name])
                    self._store.problems[name].pop("kernel", None)
                except RedirectError as error:
                    self._store.problems[name]["kernel"] = str(error)
            for name in wrong:
                text = "the rule was changed or removed by another hand; restored"
                log.warning("%s: %s", name, text)
                self._store.write(self._store.new_entry(name, "restore", "redirector", text))

    def shown(self, name: str) -> tuple[ServiceState, tuple[str, ...], bool]:
        """All that the results for the core depend on while the primary serves."""
        return self._store.state[name], tuple(self._store.problems[name].values()), self.reaching.silent() is None

    def targets(self) -> dict[str, Target]:
        """The intended targets."""
        return {name: state.target for name, state in self._store.state.items()}

    # ------------------------------------------------------------ orders

    def order(self, order: Order) -> JournalEntry:
        """Decide and perhaps flip. Returns the journal's entry. Raises RedirectError for an unsupported deadline."""
        if order.deadline is not None and not self._redirect.cuts:
            raise RedirectError("this redirect cannot cut what a drain leaves: drain without a deadline")
        with self._lock:
            return self._order(order, self._decided(order))

    def refusal(self, order: Order) -> Decision | None:
        """The refusal that ``order`` would get now; None if it would be executed. Changes nothing."""
        with self._lock:
            decision = self._decided(order)
        return None if decision.flip else decision

    def _decided(self, order: Order) -> Decision:
        state, age = self._store.state[order.service.name], self._store.since_move(order.service.name)
        known = situation(order, state, age, time.time())
        decision = decided(order, known)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", explained(order, known, decision))
        return decision

    def _order(self, order: Order, decision: Decision) -> JournalEntry:
        began, name = time.monotonic(), order.service.name
        entry = self._store.new_entry(name, order.verb, order.by, decision.text, order.facts, order.peer)
        entry = replace(entry, reason=str(decision.reason))
        if decision.flip:
            entry = self._execute(
                order.service, after(self._store.state[name], order, time.time()), decision.text, entry
            )
            if entry.flipped:
                self._pending.pop(name, None)
            else:
                self._make_stand(order, "error")
        else:
            entry = replace(entry, line=f"{name}: {story.refusal(entry)}")
            if decision.reason is Reason.ALREADY and order.drain and order.deadline is not None:
                entry = replace(entry, text=entry.text + self.drains.change_deadline(order, order.deadline))
            elif decision.reason is not Reason.ALREADY:
                self._make_stand(order, str(decision.reason))
        took = round(time.monotonic() - began, 6)
        entry = replace(entry, took=took)
        if decision.reason is not Reason.ALREADY:
            self._store.write(entry)
            level = logging.ERROR if entry.error else logging.INFO if decision.flip else logging.WARNING
            log.log(level, "%s, took %.0f ms", entry.line, 1000 * took)
        if not decision.flip:
            event = {"event": "refused", "service": name, "verb": order.verb, "reason": str(decision.reason)}
            self._publish({**event, "at": entry.at})
        return entry

    def _make_stand(self, order: Order, reason: str) -> None:
        """Remember a refused automatic fail-over: as pending where fresh facts of the sniffer may lift the refusal."""
        if order.verb != "fail-over" or order.manual:
            return
        name = order.service.name
        if reason in RETRYABLE or reason == "error":
            self._pending[name] = order
            self._store.set_standing(name, pending=reason)
        else:
            self._pending.pop(name, None)
            self._store.set_standing(name, refused=reason)
        quietly(lambda: self._repair.rewire(order.service))

    def _execute(self, service: Service, intended: ServiceState, why: str, entry: JournalEntry) -> JournalEntry:
        """Flip and repair. ``flipped`` is False if nothing changed; ``error`` is the cause."""
        began, name, store = time.monotonic(), service.name, self._store
        old, drain = store.state[name].target, intended.drain is not None
        try:
            store.intend(name, intended)
            self._move(service, self._repair.wanted(service, intended, None if drain else old))
        except (StateError, RedirectError) as error:
            store.problems[name]["state" if isinstance(error, StateError) else "kernel"] = str(error)
            store.withdraw(name)
            text = str(error)
            return replace(entry, reason="error", error=text, text=text, line=f"{name}: flip failed: {error}")
        store.mark_moved(name, intended)
        line = f"{name}: {old} -> {intended.target} ({why})"
        moved = round(time.monotonic() - began, 6)
        entry = replace(entry, to=intended.target, flipped=True, moved=moved, line=line)
        entry = self._repair.flipped(service, old, entry, drain=drain)
        store.settle(name)
        return entry

    def _move(self, service: Service, wanted: Wiring) -> None:
        """Change the rule; if that fails, load all rules anew and retry once. Raises RedirectError."""
        try:
            self._redirect.wire(service, wanted)
        except RedirectError as error:
            log.warning("%s: %s: loading all rules anew", service.name, error)
            self._redirect.install(self.targets())
            self._redirect.wire(service, wanted)

    # ------------------------------------------------------------ what may follow an order

    def facts(self, fresh: Order) -> JournalEntry | None:
        """Decide a pending order anew with fresh facts. None if no order is pending, or the refusal is the same."""
        name = fresh.service.name
        with self._lock:
            order = self._pending.get(name)
            if order is not None:
                known = order.facts
                facts = replace(fresh.facts, downtime=known.downtime, handlers_off=known.handlers_off)
                fresh = replace(fresh, by=order.by, peer=order.peer, note=order.note, facts=facts)
            elif (kept := self._store.state[name].pending) is not None:
                facts = replace(fresh.facts, handlers_off=kept == Reason.HANDLERS_OFF)
                fresh = replace(fresh, by="core (order kept over a restart)", facts=facts)
            else:
                return None
            self._pending[name] = fresh
            decision = self._decided(fresh)
            if str(decision.reason) == self._store.state[name].pending:
                return None  # nothing new: no journal line every second
            return self._order(fresh, decision)

    def recovered(self, name: str) -> str:
        """The core withdraws its order."""
        with self._lock:
            self._pending.pop(name, None)
            self._store.set_standing(name)
            quietly(lambda: self._repair.rewire(self._services[name]))
        return f"{name}: no order pending"

    def hold(self, name: str, by: str, reason: str) -> str:
        """Forbid flips until ``release``. Raises StateError."""
        self._set_hold(name, "hold", by, reason or "no reason given", Hold(by, time.time(), reason))
        return f"{name}: held by {by}"

    def release(self, name: str, by: str) -> str:
        """Allow flips again; a pending order is decided with the sniffer's next evidence. Raises StateError."""
        if self._store.state[name].hold is None:
            return f"{name}: was not held"
        self._set_hold(name, "release", by, "released", None)
        return f"{name}: released by {by}"

    def _set_hold(self, name: str, verb: str, by: str, text: str, hold: Hold | None) -> None:
        with self._lock:
            self._store.save(name, replace(self._store.state[name], hold=hold))
            self._store.write(self._store.new_entry(name, verb, by, text))
            quietly(lambda: self._repair.rewire(self._services[name]))
        self._publish({"event": verb, "service": name, "by": by})

    def downtime(self, name: str, of: str, by: str, *, begin: bool) -> None:
        """A downtime of the core's object ``of`` began or ended. Idempotent. Raises StateError."""
        with self._lock:
            state = self._store.state[name]
            others = tuple(one for one in state.downtime if one != of)
            now = (*others, of) if begin else others
            if set(now) == set(state.downtime):
                return
            self._store.save(name, replace(state, downtime=now))
            text = f"downtime of {of} {'began' if begin else 'ended'}"
            self._store.write(self._store.new_entry(name, "downtime", by, text))

    # ------------------------------------------------------------ the other controller

    def states(self) -> dict[str, ServiceState]:
        """The states that the pair's other controller follows."""
        return dict(self._store.state)

    def follow(self, states: Mapping[str, ServiceState], failed: Collection[str] = ()) -> list[str]:
        """Follow the other controller's more recent states; returns the changed services. Raises StateError.

        ``failed``: services whose target there fails a probe from here. No connection is sent to that server.
        """
        with self._lock:
            self.reaching.heard()
            ours = {name: theirs for name, theirs in states.items() if name in self._services}
            return [name for name, theirs in ours.items() if self._follow(name, theirs, failed=name in failed)]

    def _follow(self, name: str, theirs: ServiceState, *, failed: bool) -> bool:
        store, mine = self._store, self._store.state[name]
        store.problems[name].pop("pair", None)
        differ = disagreement(theirs, mine, failed=failed)
        if differ is not None:
            store.problems[name]["pair"] = differ
        if differ is not None or not outranks(theirs, mine):
            self.reaching.join(name, theirs)
            return False
        if theirs.pending is None:
            self._pending.pop(name, None)
        theirs = self.reaching.joined(name, theirs)
        if theirs.target is mine.target:
            store.adopt(name, theirs)
            quietly(lambda: self._repair.rewire(self._services[name]))
            return True
        why = "the other controller did"
        entry = store.new_entry(name, "follow", "the other controller", why)
        entry = self._execute(self._services[name], theirs, why, entry)
        last = store.last_entry.get(name)
        if entry.flipped or last is None or last.error != entry.error:  # each error once, though retried every second
            store.write(entry)
            log.log(logging.INFO if entry.flipped else logging.ERROR, "%s", entry.line)
        return entry.flipped

    def forget(self, name: str, client: str, port: int, *, reads: bool) -> bool:
        """Forget one unanswered connection, for a rescue; ``reads``: the client cannot write, nothing is recorded."""
        forget = partial(self._redirect.forget, self._services[name], client, port)
        return forget() if reads else self.reaching.rescue(name, forget)

    def activity(self, services: Iterable[Service]) -> dict[str, Activity]:
        """The NAT's counters of these services. Raises RedirectError."""
        return self._redirect.activity(services)

    def elsewhere(self, name: str) -> tuple[Target, list[Endpoint]]:
        """The target, and the clients with open connections to another server. Raises RedirectError."""
        target = self.targets()[name]
        return target, self._redirect.elsewhere(self._services[name], target)

    def note(
        self, name: str, verb: str, by: str, text: str, parts: DrillParts | None = None, peer: Caller | None = None
    ) -> JournalEntry:
        """A journal line about an event other than a flip; ``parts``: of a drill."""
        with self._lock:
            entry = replace(self._store.new_entry(name, verb, by, text, peer=peer), parts=parts)
            self._store.write(entry)
        return entry

    # ------------------------------------------------------------ queries

    def statuses(self, orders: Iterable[Order]) -> dict[str, ServiceStatus]:
        """See ``records``; ``orders``: to fail back, one for each service, with the known facts about the primary."""
        found = statuses(self._redirect, self._store, tuple(orders))
        return {name: replace(status, **self.reaching.silence(name)) for name, status in found.items()}
