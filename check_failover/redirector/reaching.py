"""Records of which server clients may reach (``check_failover.reach``): rescues, drills, the other controller.

A record is on the disk before the packet that it stands for: where it cannot be written, nothing is rescued or drilled.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from check_failover import reach, syncstate
from check_failover.config import Config
from check_failover.model import Target, Why
from check_failover.records import Reach
from check_failover.redirector import peer_record
from check_failover.redirector.state import ServiceState, StateError
from check_failover.redirector.store import StateStore
from check_failover.syncstate import PEER_SILENT

LATELY = 3.0  # seconds without a word after which the other controller may have flipped; it speaks every second


class Reaching:
    """``lock`` is the steering's. In a pair servers are reached through the other controller too."""

    def __init__(self, store: StateStore, lock: threading.Lock, config: Config) -> None:
        self._store, self._lock = store, lock
        self._names, self._pair = [service.name for service in config.services], config.controller.peer is not None
        self._heard, self._speaks = time.monotonic(), False  # of the other controller
        self._last = peer_record.last_word(config)
        self._state_dir = config.controller.state_dir
        self._told: dict[str, tuple[object, object]] = {}  # what its last two words say of a run here, see ``told``

    def rescue(self, name: str, forget: Callable[[], bool]) -> bool:
        """Have ``forget`` clear the way of one connection to the standby. Raises StateError, RedirectError."""
        with self._lock:
            state = self._store.state[name]
            reached, due = reach.leased(state.reached, Target.STANDBY, Why.RESCUE, time.time())
            if due:
                self._write(name, reached)
            forgotten = forget()
            if forgotten and not due:
                self._store.state[name] = replace(state, reached=reached)
        return forgotten

    def drill(self, name: str, seconds: float) -> None:
        """A drill's client reaches the standby for so long; 0: no longer. Raises StateError."""
        with self._lock:
            now = time.time()
            reached = reach.closed(self._store.state[name].reached, Why.DRILL, now)
            if seconds:
                reached = reach.merged((*reached, Reach(Target.STANDBY, Why.DRILL, now, now + seconds)))
            self._write(name, reached)

    # ------------------------------------------------------------ the other controller; the caller holds the lock

    def silent(self) -> int | None:
        """Seconds without a word from the other controller; None: there is none, or it spoke lately."""
        silent = time.monotonic() - self._heard
        return round(silent) if self._pair and silent > PEER_SILENT else None

    def silence(self, name: str) -> dict[str, Any]:
        """What the service's status says of the other controller (``ServiceStatus``)."""
        run = syncstate.own(self._state_dir, name).running if self._pair else None
        lately = self._speaks and time.monotonic() - self._heard <= LATELY
        lately = lately and (run is None or run.until is None or self._told.get(name) == (run.until, run.until))
        noted = any(one.why is Why.PEER_SILENT and one.end is None for one in self._store.state[name].reached)
        return {"peer_silent": self.silent(), "peer_unsure": self._pair and not lately and not noted}

    def look(self) -> None:
        """Note that the other controller is silent: it may send clients to either server. Called every few seconds."""
        now = time.time()
        for name in self._names:
            reached = self._store.state[name].reached
            if not self._pair:  # there was another one in an earlier config
                reached = reach.closed(reach.closed(reached, Why.PEER_SILENT, now), Why.PEER, now)
            elif self.silent() is not None:
                for server in Target:
                    reached = reach.opened(reached, server, Why.PEER_SILENT, self._last)
            try:
                self._write(name, reached)
            except StateError as error:
                self._store.problems[name]["state"] = str(error)

    def heard(self) -> None:
        """The other controller speaks. Raises StateError."""
        self._heard, self._speaks = time.monotonic(), True
        self._last = now = time.time()
        for name in self._names:
            self._write(name, reach.closed(self._store.state[name].reached, Why.PEER_SILENT, now))

    def told(self, heard: object) -> None:
        """Until when a run here holds up its flips, as the other controller knows it.

        Its first word with that may have crossed with a flip which it had begun; the second one shows that flip.
        """
        for name, until in heard.items() if isinstance(heard, dict) else ():
            self._told[name] = (self._told.get(name, (None, None))[1], until)

    def joined(self, name: str, theirs: ServiceState) -> ServiceState:
        """What ``theirs`` becomes here. A drain ends for each controller by itself, which has its own connections."""
        mine, now = self._store.state[name], time.time()
        reached, drain = mine.reached, theirs.drain
        if theirs.target is not mine.target:
            drained = drain is not None
            reached = reach.turned(reached, theirs.target, now, drain=drained, begin=theirs.since)
        else:
            drain = mine.drain and (drain or mine.drain)
        return replace(theirs, drain=drain, reached=reach.joined(reached, theirs.reached, now))

    def join(self, name: str, theirs: ServiceState) -> None:
        """Note where the other controller, which knows less than this one, sends clients. Raises StateError."""
        self._write(name, reach.joined(self._store.state[name].reached, theirs.reached, time.time()))

    def _write(self, name: str, reached: reach.Reaches) -> None:
        state = self._store.state[name]
        if reached != state.reached:
            self._store.adopt(name, replace(state, reached=reached))
