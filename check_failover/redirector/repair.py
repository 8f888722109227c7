"""The repair after a flip: no client's connection is left waiting for the old server."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from check_failover import syncstate
from check_failover.decide import RESCUE, Reason, Situation, decide
from check_failover.model import Facts, Service, Target
from check_failover.records import JournalEntry
from check_failover.redirector import Redirect, RedirectError, Wiring, current
from check_failover.redirector.state import ServiceState, StateError
from check_failover.redirector.store import StateStore

log = logging.getLogger(__name__)
Event = dict[str, Any]
SWEEP_AFTER = 0.3  # seconds from the poke to the sweep; clients have answered by then
SWEEP_AGAIN = 2.0  # seconds to the next attempt after a sweep that failed
# Refusals with which the sniffer rescues no connection; decide.RESCUE names those that forbid the standby.
_NO_RESCUE = frozenset({Reason.NO_HEALTHY_SERVER, Reason.STANDBY_UNKNOWN, Reason.BLIND})


def wiring(service: Service, state: ServiceState, leaving: Target | None, synced: Facts) -> Wiring:
    """What the kernel must have: computed from the state, so that no path can forget to switch it back. Pure.

    While nothing is decided, a refusal of a new connection is kept from the client: a flip or the sniffer's rescue
    serves it in a moment. When an automatic fail-over stands refused, clients hear the truth, unless the standby may
    still serve single connections. ``leaving``: the server whose connections a flip or a cut is ending just now;
    ``synced``: the sync's record.
    """
    dead = leaving if state.drain is None and leaving is not state.target else None
    allowed = decide(RESCUE, synced, service.policy, Situation(state.target, state.hold)).flip
    rescued = service.policy.rescue and state.standing not in _NO_RESCUE and allowed
    return Wiring(state.target, dead, state.standing is None or rescued)


class Repair:
    """The caller holds ``lock``; the later sweep takes it itself. The journal reports a repair that fails."""

    def __init__(
        self,
        redirect: Redirect,
        store: StateStore,
        publish: Callable[[Event], None],
        lock: threading.Lock,
        state_dir: Path,
    ) -> None:
        self._redirect, self._store, self._publish, self._lock = redirect, store, publish, lock
        self._state_dir = state_dir
        self._leaving: dict[str, Target] = {}  # service -> server whose connections are still to be swept

    def wanted(self, service: Service, state: ServiceState, leaving: Target | None = None) -> Wiring:
        """What the kernel must have in that state (see ``wiring``)."""
        synced = Facts() if state.standing is None else syncstate.known(self._state_dir, service, Facts(), time.time())
        return wiring(service, state, leaving or self._leaving.get(service.name), synced)

    def rewire(self, service: Service, kernel: Wiring | None = None) -> None:
        """Bring the kernel to where it must be beside the target; ``kernel``: what it has now. Raises RedirectError.

        A wrong target is left to ``Steering.reconcile``, which tells that another hand was there.
        """
        if not self._redirect.cuts:
            return
        if kernel is None:
            kernel = self._redirect.wired((service,)).get(service.name)
        wanted = self.wanted(service, self._store.state[service.name])
        if kernel is None or kernel.target is not wanted.target or kernel == wanted:
            return
        self._redirect.wire(service, wanted)
        word = "withheld" if wanted.withheld else "told to clients"
        log.info("%s: refusals of new connections are %s, dead server: %s", service.name, word, wanted.dead or "none")

    def cut(self, service: Service, state: ServiceState, old: Target) -> int:
        """End the open connections to ``old``; ``state``: as it will be. Returns how many clients were freed."""
        try:
            self._redirect.wire(service, self.wanted(service, state, old))
            return self._redirect.cut(service, old)
        finally:
            self.sweep_later(service, old)

    def flipped(self, service: Service, old: Target, entry: JournalEntry, *, drain: bool) -> JournalEntry:
        """Repair after a flip from ``old``; ``drain``: open connections stay. Returns the entry with the counts."""
        done: dict[str, Any] = {}
        if not drain:
            self._try(done, "forgotten", lambda: self._redirect.forget_unanswered(service, old))
        event = {"event": "flip", "service": service.name, "target": str(old.other), "old": str(old)}
        self._publish({**event, "at": entry.at, "drain": drain})
        if drain:
            self._try(done, "left", lambda: self._redirect.open_connections({service.name: old})[service.name])
        else:
            self._try(done, "freed", lambda: self._redirect.free_stranded(service, old))
            self.sweep_later(service, old)
        self._read_back(service, done)
        return replace(entry, **done)

    def resume(self, service: Service) -> None:
        """Repair and journal a flip during which an earlier process ended."""
        name, state = service.name, self._store.state[service.name]
        old = state.target.other
        text = f"a flip from the {old} to the {state.target} was cut short by the redirector's end; finished"
        entry = replace(self._store.new_entry(name, "resume", "redirector", text), from_=old)
        done: dict[str, Any] = {}
        if state.drain is None:
            if self._redirect.cuts:  # reloaded rules do not know that the old server failed
                self._try(done, "freed", lambda: self.cut(service, state, old))
            else:
                self._try(done, "forgotten", lambda: self._redirect.forget_unanswered(service, old))
                self._try(done, "freed", lambda: self._redirect.free_stranded(service, old))
        self._read_back(service, done)
        self._store.settle(name)
        self._store.write(replace(entry, **done))
        log.warning("%s", entry.line)

    def sweep_later(self, service: Service, old: Target, after: float = SWEEP_AFTER) -> None:
        """Until then ``old`` counts as dead."""
        self._leaving[service.name] = old
        timer = threading.Timer(after, self._sweep, (service, old))
        timer.daemon = True
        timer.start()

    def _sweep(self, service: Service, old: Target) -> None:
        name = service.name
        quietly(lambda: self._redirect.sweep_finished(service, old))
        with self._lock:
            state = self._store.state[name]
            if self._leaving.get(name) is not old:
                return  # a later flip's sweep comes
            try:
                if state.target is not old and state.drain is None:
                    self._redirect.sweep(service, old)
            except RedirectError as error:
                log.warning("%s", error)
                self.sweep_later(service, old, SWEEP_AGAIN)
                return
            del self._leaving[name]
            quietly(lambda: self.rewire(service))

    def _try(self, done: dict[str, Any], what: str, repair: Callable[[], int]) -> None:
        """Run one repair. A failure is journalled and does not undo the flip. ``done``: the entry's new fields."""
        try:
            done[what] = int(repair())
        except RedirectError as error:
            done["error"] = f"{what}: {error}"

    def _read_back(self, service: Service, done: dict[str, Any]) -> None:
        name, kernel = service.name, current(self._redirect, service)
        wanted = self._store.state[name].target
        if kernel is wanted:
            self._store.problems[name].pop("kernel", None)
            return
        done["error"] = f"the kernel's rule says {kernel or 'nothing'}, not {wanted}"
        self._store.problems[name]["kernel"] = done["error"]


def quietly(act: Callable[[], object]) -> None:
    """Run an optional action; its failure is only logged."""
    try:
        act()
    except (RedirectError, StateError) as error:
        log.warning("%s", error)
