"""Composes and sends passive results in a background thread, in order, so that no answer waits for them.

A job asks the sniffer, which may hang; the redirector has answered the order before that.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Hashable

from check_failover.redirector import RedirectError

log = logging.getLogger(__name__)
LIMIT = 1000  # waiting jobs; further ones are dropped, and the next periodic result shows the state
LAST_WORD = 5.0  # seconds that a stopping redirector gives the waiting jobs


class Afterwards:
    """One thread. ``closing``: the program is ending, so a job must not ask anything slow."""

    def __init__(self) -> None:
        self.closing = False
        self._jobs: queue.Queue[tuple[Hashable, Callable[[], None]] | None] = queue.Queue(LIMIT)
        self._waiting: set[Hashable] = set()
        self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None], only: Hashable = None) -> None:
        """Never blocks. ``only``: a name; while a job of that name waits, another one is dropped."""
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
        """Finish the waiting jobs, for ``LAST_WORD`` seconds at most. No job may be submitted afterwards."""
        self.closing = True
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=LAST_WORD)
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
