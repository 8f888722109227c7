"""What the redirector remembers of each service: its state on disk, its journal, and its present problems.

Each problem has a kind (``state``, ``kernel``, ``journal`` ...). It stays until something of that kind succeeds again.
"NAME redirect" shows the first one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from check_failover.model import Facts, Target
from check_failover.records import Caller, JournalEntry
from check_failover.redirector.journal import Journal, JournalError
from check_failover.redirector.state import Drain, ServiceState, StateError, intend, intended, load, settle, withdraw

log = logging.getLogger(__name__)


class StateStore:
    """State, journal and problems of all services. The caller holds the lock that orders attempts."""

    def __init__(self, state_dir: Path, names: Iterable[str]) -> None:
        self._directory = state_dir / "target"
        self._journal = Journal(state_dir / "journal.jsonl")
        self.state: dict[str, ServiceState] = {}
        self.problems: dict[str, dict[str, str]] = {name: {} for name in names}  # service -> kind -> the line
        self.last_entry: dict[str, JournalEntry] = {}  # the newest of each service
        self.last_flip: dict[str, JournalEntry] = {}  # the newest that moved it
        self._kept: deque[JournalEntry] = deque(maxlen=1000)  # entries that the journal does not have yet
        self._unsettled: set[str] = set()  # services whose present state is not on the disk
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

    def since_move(self, name: str) -> float | None:
        """Seconds since a service was last moved, whatever was done to the wall clock meanwhile; None: never.

        Only a restart has to believe the wall clock, and one that went back says "just now" then.
        """
        return time.monotonic() - self._moved[name] if name in self._moved else None

    def drain_now(self, name: str, drain: Drain) -> float:
        """The time on the clock of that drain: from its begin on it does not jump."""
        return drain.at + (self.since_move(name) or 0.0)

    # ------------------------------------------------------------ state

    def intend(self, name: str, state: ServiceState) -> None:
        """Write the state that a flip is about to bring about. Raises StateError; the old state stands then."""
        intend(self._directory, name, state)

    def withdraw(self, name: str) -> None:
        """Remove what a failed flip intended. Where the disk refuses that, it is a problem: a restart would flip."""
        try:
            if name in self._unsettled:
                intend(self._directory, name, self.state[name])
            else:
                withdraw(self._directory, name)
        except StateError as error:
            self._write_failed(name, error)

    def mark_moved(self, name: str, state: ServiceState) -> None:
        """The flip was done: ``settle`` must follow."""
        self.state[name] = state
        self._moved[name] = time.monotonic()

    def settle(self, name: str) -> None:
        """Make the present state last on the disk. Where the disk refuses, it is a problem until ``retry_writes``."""
        try:
            settle(self._directory, name)
        except StateError as error:
            self._write_failed(name, error)
        else:
            self._write_succeeded(name)

    def save(self, name: str, state: ServiceState) -> None:
        """Write a change that moves nothing. Raises StateError; the old state stands then."""
        self.adopt(name, replace(state, changes=self.state[name].changes + 1))

    def adopt(self, name: str, state: ServiceState) -> None:
        """Write a state that the other controller changed. Raises StateError; the old state stands then."""
        intend(self._directory, name, state)
        try:
            settle(self._directory, name)
        except StateError:
            self.withdraw(name)
            raise
        self.state[name] = state
        self._write_succeeded(name)

    def retry_writes(self) -> None:
        """Try again what could not be written; called every few seconds."""
        for name, problems in self.problems.items():
            if "state" in problems:
                with contextlib.suppress(StateError):
                    intend(self._directory, name, self.state[name])
                    self.settle(name)
        self._write_kept()

    def set_pending(self, name: str, reason: str | None) -> None:
        """Remember the reason that the core's order waits for; None: no order waits."""
        try:
            self.save(name, replace(self.state[name], pending=reason))
        except StateError as error:
            self.problems[name]["state"] = str(error)

    def _write_failed(self, name: str, error: StateError) -> None:
        self._unsettled.add(name)
        self.problems[name]["state"] = str(error)
        log.error("%s", error)

    def _write_succeeded(self, name: str) -> None:
        self._unsettled.discard(name)
        for kind in ("state", "damaged"):
            self.problems[name].pop(kind, None)

    # ------------------------------------------------------------ journal

    def new_entry(
        self,
        name: str,
        verb: str,
        by: str,
        text: str,
        facts: Facts | None = None,
        peer: Caller | None = None,
    ) -> JournalEntry:
        """An entry for the journal, of an attempt that has moved nothing so far."""
        now, target = time.time(), self.state[name].target
        return JournalEntry(
            id=f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{name}-{next(self._numbers)}",
            at=round(now, 6),
            service=name,
            verb=verb,
            by=by,
            peer=peer,
            from_=target,
            to=target,
            reason=verb,
            text=text,
            line=f"{name}: {verb}: {text}",
            facts=facts or Facts(),
        )

    def journal_lags(self, name: str) -> bool:
        """Whether the journal's last entry has another target than the state."""
        last = self.last_entry.get(name)
        known = None if last is None else last.to
        return self.state[name].target is not (known or ServiceState().target)

    def write(self, entry: JournalEntry) -> None:
        """Append to the journal. A full disk must not stop a flip: a problem, and ``retry_writes`` tries again."""
        self._remember(entry)
        self._kept.append(entry)
        self._write_kept()

    def _remember(self, entry: JournalEntry) -> None:
        self.last_entry[entry.service] = entry
        if entry.flipped:
            self.last_flip[entry.service] = entry

    def _write_kept(self) -> None:
        try:
            while self._kept:
                self._journal.write(self._kept[0])
                self._kept.popleft()
        except JournalError as error:
            for entry in self._kept:
                if self.problems[entry.service].get("journal") != str(error):
                    log.error("%s", error)
                self.problems[entry.service]["journal"] = str(error)
        else:
            for problems in self.problems.values():
                problems.pop("journal", None)

    def history(self, limit: int) -> list[JournalEntry]:
        """The last entries, oldest first."""
        return self._journal.read(limit)
