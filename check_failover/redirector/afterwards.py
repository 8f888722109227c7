"""What an answer does not wait for: passive results are composed and sent here, one after the other, in order.

Composing one asks the sniffer, which may hang; whoever gave the order has the answer by then.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Hashable

from check_failover.redirector import RedirectError

log = logging.getLogger(__name__)
LIMIT = 1000  # jobs that wait; one more is left out, and the next look reports how things stand
LAST_WORD = 5.0  # seconds that a stopping redirector gives the jobs that wait


class Afterwards:
    """One thread. ``closing`` tells a job that the program ends and nothing slow may be asked any more."""

    def __init__(self) -> None:
        self.closing = False
        self._jobs: queue.Queue[tuple[Hashable, Callable[[], None]] | None] = queue.Queue(LIMIT)
        self._waiting: set[Hashable] = set()
        self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None], only: Hashable = None) -> None:
        """Never blocks. ``only``: a name; while a job of that name waits another one is left out."""
        if only is not None and only in self._waiting:
            return
        try:
            if only is not None:
                self._waiting.add(only)
            self._jobs.put_nowait((only, job))
        except queue.Full:
            self._waiting.discard(only)
            log.error("%d passive results wait: one is left out, the journal has what was done", LIMIT)

    def close(self) -> None:
        """Finish what waits, for ``LAST_WORD`` seconds at most. Nothing may be submitted any more."""
        self.closing = True
        try:
            self._jobs.put(None, timeout=LAST_WORD)
        except queue.Full:
            log.error("%d passive results are lost, the journal has what was done", self._jobs.qsize())
            return
        self._thread.join(LAST_WORD)
        if self._thread.is_alive():
            log.error("%d passive results are lost, the journal has what was done", self._jobs.qsize())

    def _work(self) -> None:
        while (waiting := self._jobs.get()) is not None:
            only, job = waiting
            self._waiting.discard(only)
            try:
                job()
            except RedirectError as error:
                log.warning("passive result: %s", error)
            except Exception:  # a fault in one result must not end all later ones
                log.exception("passive result")
