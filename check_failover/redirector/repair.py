"""The repair after a flip: no client's connection is left waiting for the old server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from check_failover.model import Service, Target
from check_failover.records import JournalEntry
from check_failover.redirector import Redirect, RedirectError
from check_failover.redirector.state import StateError
from check_failover.redirector.store import StateStore

log = logging.getLogger(__name__)
Event = dict[str, Any]
SWEEP_AFTER = 0.3  # seconds from the poke to the sweep; clients have answered by then


class Repair:
    """The caller holds ``lock``; the later sweep takes it itself. The journal reports a repair that fails."""

    def __init__(
        self, redirect: Redirect, store: StateStore, publish: Callable[[Event], None], lock: threading.Lock
    ) -> None:
        self._redirect, self._store, self._publish, self._lock = redirect, store, publish, lock

    def flipped(self, service: Service, old: Target, entry: JournalEntry, *, drain: bool) -> JournalEntry:
        """Repair after a flip from ``old``; ``drain``: open connections stay. Returns the entry with the counts."""
        done: dict[str, Any] = {}
        if not drain:
            self._try(done, "forgotten", lambda: self._redirect.forget_unanswered(service, old))
        event = {"event": "flip", "service": service.name, "target": str(old.other), "old": str(old)}
        self._publish({**event, "at": entry.at, "drain": drain})
        if drain:
            self._try(done, "left", lambda: self._redirect.open_connections(service, old))
        else:
            self._try(done, "freed", lambda: self._redirect.free_stranded(service, old))
            quietly(lambda: self._redirect.withhold(service, on=True))
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
                self._try(done, "freed", lambda: self._redirect.cut(service, old))
            else:
                self._try(done, "forgotten", lambda: self._redirect.forget_unanswered(service, old))
                self._try(done, "freed", lambda: self._redirect.free_stranded(service, old))
            self.sweep_later(service, old)
        self._read_back(service, done)
        self._store.settle(name)
        self._store.write(replace(entry, **done))
        log.warning("%s", entry.line)

    def sweep_later(self, service: Service, old: Target) -> None:
        timer = threading.Timer(SWEEP_AFTER, self._sweep, (service, old))
        timer.daemon = True
        timer.start()

    def _sweep(self, service: Service, old: Target) -> None:
        with self._lock:
            if self._store.state[service.name].target is not old:
                quietly(lambda: self._redirect.sweep(service, old))

    def _try(self, done: dict[str, Any], what: str, repair: Callable[[], int]) -> None:
        """Run one repair. A failure is journalled and does not undo the flip. ``done``: the entry's new fields."""
        try:
            done[what] = int(repair())
        except RedirectError as error:
            done["error"] = f"{what}: {error}"

    def _read_back(self, service: Service, done: dict[str, Any]) -> None:
        name, kernel = service.name, self._redirect.current(service)
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
