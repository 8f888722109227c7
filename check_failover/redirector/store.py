"""What the redirector remembers: each service's state on disk, its journal, and what is wrong with it at present.

A problem stays until what succeeds next of its kind clears it; the first one is what "NAME redirect" shows.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from check_failover.model import Facts, Target
from check_failover.redirector.journal import Journal, JournalError
from check_failover.redirector.state import ServiceState, StateError, intend, intended, load, settle, withdraw

log = logging.getLogger(__name__)


class StateStore:
    """Of all services. The caller holds the lock that orders attempts."""

    def __init__(self, state_dir: Path, names: Iterable[str]) -> None:
        self._directory = state_dir / "target"
        self._journal = Journal(state_dir / "journal.jsonl")
        self.state: dict[str, ServiceState] = {}
        self.problems: dict[str, dict[str, str]] = {name: {} for name in names}  # service -> kind -> the line
        self.last: dict[str, dict[str, Any]] = {}  # the newest entry of each service
        self.flip: dict[str, dict[str, Any]] = {}  # the newest that moved it
        self._kept: deque[dict[str, Any]] = deque(maxlen=1000)  # entries that the journal does not have yet
        self._unsettled: set[str] = set()  # services whose state is so, but is not on the disk
        self._moved: dict[str, float] = {}  # when it was last moved, on a clock that does not jump
        self._numbers = itertools.count(1)

    def load(self, kernel: Callable[[str], Target | None]) -> list[str]:
        """What an earlier process left; ``kernel`` tells a service's target where its file is damaged.

        Returns the services that it was moving when it ended. Raises StateError where there can be no state at all.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{self._directory}: cannot make: {error.strerror}: check space and rights") from None
        unfinished = []
        for name, problems in self.problems.items():
            intent = intended(self._directory, name)
            try:
                state = load(self._directory, name) or ServiceState()
            except StateError as error:
                state = ServiceState(kernel(name) or Target.PRIMARY)
                if intent is None:
                    problems["damaged"] = str(error)
                    log.error("%s", error)
            self.state[name] = intent or state
            if intent is not None and intent.target is not state.target:
                unfinished.append(name)
            elif intent is not None:
                self.settle(name)
            since = self.state[name].since
            if since is not None:
                self._moved[name] = time.monotonic() - max(0.0, time.time() - since)
        for entry in self._journal.read(200):
            self._remember(entry)
        return unfinished

    def age(self, name: str) -> float | None:
        """Seconds since a service was last moved, whatever was done to the wall clock meanwhile; None: never.

        Only a restart has to believe the wall clock, and one that went back says "just now" then.
        """
        return time.monotonic() - self._moved[name] if name in self._moved else None

    # ------------------------------------------------------------ state

    def intend(self, name: str, state: ServiceState) -> None:
        """What a flip is about to make true. Raises StateError; the old state stands then."""
        intend(self._directory, name, state)

    def withdraw(self, name: str) -> None:
        """It did not come true. A disk that does not even take that is told: a restart would try it again."""
        try:
            if name in self._unsettled:
                intend(self._directory, name, self.state[name])
            else:
                withdraw(self._directory, name)
        except StateError as error:
            self._bad(name, error)

    def moved(self, name: str, state: ServiceState) -> None:
        """The flip came true: ``settle`` must follow."""
        self.state[name] = state
        self._moved[name] = time.monotonic()

    def settle(self, name: str) -> None:
        """Make what is so last. A disk that cannot is a problem, told until it can; what is so stays so."""
        try:
            settle(self._directory, name)
        except StateError as error:
            self._bad(name, error)
        else:
            self._good(name)

    def save(self, name: str, state: ServiceState) -> None:
        """Intend and settle what moves nothing. Raises StateError; the old one stands then."""
        self.adopt(name, replace(state, changes=self.state[name].changes + 1))

    def adopt(self, name: str, state: ServiceState) -> None:
        """The same for a state that the other controller changed."""
        intend(self._directory, name, state)
        try:
            settle(self._directory, name)
        except StateError:
            self.withdraw(name)
            raise
        self.state[name] = state
        self._good(name)

    def retry_writes(self) -> None:
        """Try again what could not be written; called every few seconds."""
        for name, problems in self.problems.items():
            if "state" in problems:
                with contextlib.suppress(StateError):
                    intend(self._directory, name, self.state[name])
                    self.settle(name)
        self._write_kept()

    def pending(self, name: str, reason: str | None) -> None:
        """The core's order that still stands, by the reason it waits for."""
        try:
            self.save(name, replace(self.state[name], pending=reason))
        except StateError as error:
            self.problems[name]["state"] = str(error)

    def _bad(self, name: str, error: StateError) -> None:
        self._unsettled.add(name)
        self.problems[name]["state"] = str(error)
        log.error("%s", error)

    def _good(self, name: str) -> None:
        self._unsettled.discard(name)
        for kind in ("state", "damaged"):
            self.problems[name].pop(kind, None)

    # ------------------------------------------------------------ journal

    def entry(
        self,
        name: str,
        verb: str,
        by: str,
        text: str,
        facts: Facts | None = None,
        peer: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """An entry for the journal, of an attempt that has moved nothing so far."""
        now, target = time.time(), str(self.state[name].target)
        return {
            "id": f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{name}-{next(self._numbers)}",
            "at": round(now, 6),
            "service": name,
            "verb": verb,
            "by": by,
            "peer": dict(peer) if peer else None,
            "from": target,
            "to": target,
            "flipped": False,
            "reason": verb,
            "text": text,
            "line": f"{name}: {verb}: {text}",
            "facts": asdict(facts or Facts()),
        }

    def unwritten(self, name: str) -> bool:
        """Whether the journal does not know where the service is."""
        default = str(ServiceState().target)
        return bool(self.last.get(name, {}).get("to", default) != self.state[name].target)

    def write(self, entry: dict[str, Any]) -> None:
        """A journal that cannot be written must not keep clients from the standby; it is a problem until it can."""
        self._remember(entry)
        self._kept.append(entry)
        self._write_kept()

    def _remember(self, entry: dict[str, Any]) -> None:
        name = str(entry.get("service"))
        self.last[name] = entry
        if entry.get("flipped"):
            self.flip[name] = entry

    def _write_kept(self) -> None:
        try:
            while self._kept:
                self._journal.write(self._kept[0])
                self._kept.popleft()
        except JournalError as error:
            for entry in self._kept:
                if self.problems[entry["service"]].get("journal") != str(error):
                    log.error("%s", error)
                self.problems[entry["service"]]["journal"] = str(error)
        else:
            for problems in self.problems.values():
                problems.pop("journal", None)

    def history(self, limit: int) -> list[dict[str, Any]]:
        return self._journal.read(limit)
