"""The redirector's memory of each service: its state on disk, its journal, and its present problems.

Each problem has a kind (``state``, ``kernel``, ``journal`` ...). It stays until something of that kind succeeds again.
"NAME redirect" shows the first one.
"""

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from check_failover import reach
from check_failover.model import Facts, Target
from check_failover.records import Caller, Drain, JournalEntry
from check_failover.redirector.journal import Journal
from check_failover.redirector.state import ServiceState, StateError, intend, intended, load, settle, withdraw

log = logging.getLogger(__name__)


class StateStore:
    """State, journal and problems of all services. The caller holds the lock that serialises attempts.

    A service's state on disk (the disk may refuse each write):

    state     call                                            next       the disk refuses
    --------  ----------------------------------------------  ---------  ---------------------
    settled   ``intend``, before the kernel's rule changes    intended   settled, StateError
    intended  the rule changed: ``mark_moved``, ``settle``    settled    unsettled, a problem
    intended  the rule did not change: ``withdraw``           settled    unsettled, a problem
    intended  the process ends: ``load`` returns the service  intended
    settled   ``save``, ``adopt``: no flip                    settled    settled, StateError
    unsettled ``retry_writes``                                settled    unsettled, a problem
    """

    def __init__(self, state_dir: Path, names: Iterable[str]) -> None:
        self._directory = state_dir / "target"
        self.journal = Journal(state_dir / "journal.jsonl")
        self.state: dict[str, ServiceState] = {}
        self.problems: dict[str, dict[str, str]] = {name: {} for name in names}  # service -> kind -> text
        self.last_entry: dict[str, JournalEntry] = {}  # service -> its newest entry
        self.last_flip: dict[str, JournalEntry] = {}  # service -> its newest entry with a flip
        self._unwritten: deque[JournalEntry] = deque(maxlen=1000)  # entries that are not in the file yet
        self._unsettled: set[str] = set()  # services whose state is not on disk
        self._moved: dict[str, float] = {}  # service -> its last flip on the monotonic clock
        self._numbers = itertools.count(1)

    def load(self, kernel: Callable[[str], Target | None]) -> list[str]:
        """Load the saved states; ``kernel`` returns a service's target if its state file is damaged.

        Returns the services whose flip the earlier process did not finish. Raises StateError without a directory.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{self._directory}: cannot make: {error.strerror}: check space and rights") from None
        unfinished = []
        for name, problems in self.problems.items():
            intent = intended(self._directory, name)
            try:
                state = load(self._directory, name) or ServiceState(reached=reach.derived(Target.PRIMARY, None))
            except StateError as error:
                target = kernel(name) or Target.PRIMARY
                state = ServiceState(target, reached=reach.derived(target, time.time()))
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
        for entry in self.journal.read(200):
            self._remember(entry)
        return unfinished

    def since_move(self, name: str) -> float | None:
        """Seconds since a service's last flip, by the monotonic clock (a restart asks the wall clock); None: never."""
        return time.monotonic() - self._moved[name] if name in self._moved else None

    def drain_now(self, name: str, drain: Drain) -> float:
        """The present time for that drain: its begin in wall clock time plus the monotonic clock's seconds since."""
        return drain.at + (self.since_move(name) or 0.0)

    # ------------------------------------------------------------ state

    def intend(self, name: str, state: ServiceState) -> None:
        """Write the state after a flip, before the flip. Raises StateError; then the old state stays."""
        intend(self._directory, name, state)

    def withdraw(self, name: str) -> None:
        """Remove a failed flip's intent. If the disk refuses, report a problem, because a restart would flip."""
        try:
            if name in self._unsettled:
                intend(self._directory, name, self.state[name])
            else:
                withdraw(self._directory, name)
        except StateError as error:
            self._write_failed(name, error)

    def mark_moved(self, name: str, state: ServiceState) -> None:
        """Record that the kernel's rule changed; ``settle`` must follow."""
        self.state[name] = state
        self._moved[name] = time.monotonic()

    def settle(self, name: str) -> None:
        """Make the state durable; if the disk refuses, report a problem until a later write succeeds."""
        try:
            settle(self._directory, name)
        except StateError as error:
            self._write_failed(name, error)
        else:
            self._write_succeeded(name)

    def save(self, name: str, state: ServiceState) -> None:
        """Write a change other than a flip. Raises StateError; then the old state stays."""
        self.adopt(name, replace(state, changes=self.state[name].changes + 1))

    def adopt(self, name: str, state: ServiceState) -> None:
        """Write a state that the other controller changed. Raises StateError; then the old state stays."""
        intend(self._directory, name, state)
        try:
            settle(self._directory, name)
        except StateError:
            self.withdraw(name)
            raise
        self.state[name] = state
        self._write_succeeded(name)

    def retry_writes(self) -> None:
        """Retry failed writes; called every few seconds."""
        for name, problems in self.problems.items():
            if "state" in problems:
                with contextlib.suppress(StateError):
                    intend(self._directory, name, self.state[name])
                    self.settle(name)
        self._flush_journal()

    def restless(self) -> bool:
        """Whether something failed or a fail-over stands refused, so that what must be done changes with time."""
        return any(self.problems.values()) or any(state.standing for state in self.state.values())

    def set_standing(self, name: str, pending: str | None = None, refused: str | None = None) -> None:
        """Save why a fail-over stands refused (see ``ServiceState``); no argument: none does."""
        state = replace(self.state[name], pending=pending, refused=refused)
        try:
            if state != self.state[name]:
                self.save(name, state)
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
        self, name: str, verb: str, by: str, text: str, facts: Facts | None = None, peer: Caller | None = None
    ) -> JournalEntry:
        """A new journal entry, without a flip so far."""
        now, target = time.time(), self.state[name].target
        number = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{name}-{next(self._numbers)}"
        entry = JournalEntry(
            number, round(now, 6), name, verb, by, line=f"{name}: {verb}: {text}", facts=facts or Facts()
        )
        return replace(entry, peer=peer, from_=target, to=target, reason=verb, text=text)

    def journal_lags(self, name: str) -> bool:
        """Whether the journal's last entry has another target than the state."""
        last = self.last_entry.get(name)
        known = None if last is None else last.to
        return self.state[name].target is not (known or ServiceState().target)

    def write(self, entry: JournalEntry) -> None:
        """Append to the journal. If the disk is full, report a problem; ``retry_writes`` tries again."""
        self._remember(entry)
        self._unwritten.append(entry)
        self._flush_journal()

    def _remember(self, entry: JournalEntry) -> None:
        self.last_entry[entry.service] = entry
        if entry.flipped:
            self.last_flip[entry.service] = entry

    def _flush_journal(self) -> None:
        try:
            while self._unwritten:
                self.journal.write(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            text = f"cannot write the journal ({error.strerror}): check space and rights of {self.journal.path}"
            for entry in self._unwritten:
                if self.problems[entry.service].get("journal") != text:
                    log.error("%s", text)
                self.problems[entry.service]["journal"] = text
        else:
            for problems in self.problems.values():
                problems.pop("journal", None)
