"""Running drains.

A drain is planned work: new connections go to the new target, open ones finish on the old server. It ends when no open
connection is left. The redirector cuts the rest, as in a fail-over, at the drain's deadline or when the old server
fails, because the connections would be stranded then.
"""

import logging
import threading
import time
from dataclasses import replace

from check_failover import reach
from check_failover.model import Service, Why
from check_failover.records import Drain, JournalEntry
from check_failover.redirector import Redirect, RedirectError
from check_failover.redirector.order import Order
from check_failover.redirector.repair import Repair
from check_failover.redirector.state import StateError
from check_failover.redirector.store import StateStore

log = logging.getLogger(__name__)


def ending(drain: Drain, left: int, *, old_failed: bool, now: float) -> str | None:
    """Why the drain is over; None while it goes on. ``now``: the wall clock; ``left``: number of open connections."""
    if left == 0:
        return f"no connection is left on the {drain.old}"
    if drain.deadline is not None and now >= drain.deadline:
        return "the deadline is over"
    return f"the {drain.old} fails its probes" if old_failed else None


class Drains:
    """``lock`` orders all attempts: ``advance`` takes it, the caller of ``change_deadline`` holds it."""

    def __init__(self, redirect: Redirect, store: StateStore, repair: Repair, lock: threading.Lock) -> None:
        self._redirect, self._store, self._repair, self._lock = redirect, store, repair, lock

    def draining(self, name: str) -> Drain | None:
        """The running drain; None if there is none."""
        return self._store.state[name].drain

    def advance(self, service: Service, *, old_failed: bool = False) -> JournalEntry | None:
        """End a drain if it is over; cut open connections if necessary. None: it goes on, or the cut failed."""
        with self._lock:
            name, store, state = service.name, self._store, self._store.state[service.name]
            if state.drain is None:
                return None
            old, freed = state.drain.old, None
            try:
                left = self._redirect.open_connections({name: old})[name]
                why = ending(state.drain, left, old_failed=old_failed, now=store.drain_now(name, state.drain))
                if why is None:
                    return None
                if left and self._redirect.cuts:
                    freed = self._repair.cut(service, replace(state, drain=None), old)
                    why += f": {left} open connections were cut"
                elif left:
                    why += f": {left} open connections stay with it"
                reached = reach.closed(state.reached, Why.DRAIN, time.time())
                store.save(name, replace(state, drain=None, reached=reached))
            except (RedirectError, StateError) as error:
                store.problems[name]["drain"] = str(error)
                return None
            store.problems[name].pop("drain", None)
            entry = replace(store.new_entry(name, "drained", "redirector", why), freed=freed)
            store.write(entry)
            log.info("%s", entry.line)
        return entry

    def change_deadline(self, order: Order, deadline: float) -> str:
        """A repeated order changes the running drain's deadline; returns the addition to its text."""
        name, state = order.service.name, self._store.state[order.service.name]
        if state.drain is None:
            return ""
        try:
            drain = replace(state.drain, deadline=self._store.drain_now(name, state.drain) + deadline)
            self._store.save(name, replace(state, drain=drain))
        except StateError as error:
            self._store.problems[name]["state"] = str(error)
            return ""
        return f", what is left on the {drain.old} will be cut in {deadline:.0f} s"
