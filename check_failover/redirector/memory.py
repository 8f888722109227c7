"""What the redirector remembers: each service's state on disk, its journal, and what is wrong with it at present.

A problem stays until what succeeds next of its kind clears it; the first one is what "NAME redirect" shows.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from check_failover.model import Facts, Target
from check_failover.redirector.journal import Journal, JournalError
from check_failover.redirector.state import ServiceState, StateError, load, save

log = logging.getLogger(__name__)


class Memory:
    """Of all services. The caller holds the lock that orders attempts."""

    def __init__(self, state_dir: Path, names: Iterable[str]) -> None:
        self._directory = state_dir / "target"
        self._journal = Journal(state_dir / "journal.jsonl")
        self.state: dict[str, ServiceState] = {}
        self.problems: dict[str, dict[str, str]] = {name: {} for name in names}  # service -> kind -> the line
        self.last: dict[str, dict[str, Any]] = {}  # the newest entry of each service
        self._numbers = itertools.count(1)

    def load(self, kernel: Callable[[str], Target | None]) -> None:
        """What an earlier process left; ``kernel`` tells a service's target where its file is damaged."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for name, problems in self.problems.items():
            try:
                self.state[name] = load(self._directory, name) or ServiceState()
            except StateError as error:
                problems["state"] = str(error)
                self.state[name] = ServiceState(kernel(name) or Target.PRIMARY)
                log.error("%s", error)
        for entry in self._journal.read(200):
            self.last[str(entry.get("service"))] = entry

    def persist(self, name: str, state: ServiceState) -> None:
        """To the disk alone: an intent, until ``state`` has it. Raises StateError; the old one stands then."""
        save(self._directory, name, state)

    def save(self, name: str, state: ServiceState) -> None:
        """Raises StateError; the old one stands then."""
        self.persist(name, state)
        self.state[name] = state
        self.problems[name].pop("state", None)

    def pending(self, name: str, reason: str | None) -> None:
        """The core's order that still stands, by the reason it waits for."""
        try:
            self.save(name, replace(self.state[name], pending=reason))
        except StateError as error:
            self.problems[name]["state"] = str(error)

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

    def write(self, entry: dict[str, Any]) -> None:
        """A journal that cannot be written must not keep clients from the standby; it is a problem all the same."""
        name = entry["service"]
        self.last[name] = entry
        try:
            self._journal.write(entry)
            self.problems[name].pop("journal", None)
        except JournalError as error:
            self.problems[name]["journal"] = str(error)
            log.error("%s", error)

    def history(self, limit: int) -> list[dict[str, Any]]:
        return self._journal.read(limit)
