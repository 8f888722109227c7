"""A queue of results for the core: a thread sends them in order and retries; the queue survives restarts.

The queue is bounded. When it is full, the outbox first drops older results that a newer one of the same service and
state repeats. ``close`` writes the rest to a file, and the next start reads it.
"""

import itertools
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from check_failover.model import PassiveResult, State
from check_failover.transports import Transport, TransportError

LIMIT = 1000  # results in the queue
BATCH_SIZE = 50  # results in one call of the transport
FIRST_RETRY, LAST_RETRY = 0.2, 5.0  # seconds

log = logging.getLogger(__name__)


class Outbox:
    """``submit`` never blocks and never raises. The outbox's thread calls ``on_failure`` after each failed attempt.

    state     event                                               next
    --------  --------------------------------------------------  --------
    idle      a result is submitted, or was in the file           sending
    sending   the core accepts the batch (``reachable``)          sending, or idle when the queue is empty
    sending   the transport fails                                 waiting
    waiting   ``FIRST_RETRY`` to ``LAST_RETRY`` s, or a new one   sending
    any       ``close``: one more attempt, then the file          closed
    """

    def __init__(
        self, transport: Transport, path: Path | None = None, on_failure: Callable[[], None] | None = None
    ) -> None:
        self._transport, self._path, self._on_failure = transport, path, on_failure
        self._queue: deque[PassiveResult] = deque(_load(path))
        self._wake = threading.Condition()
        self._closing = False
        self.reachable = True  # whether the core accepted the last attempt
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def submit(self, result: PassiveResult) -> None:
        """Queue a result; the thread sends it at once."""
        with self._wake:
            self._queue.append(result)
            if len(self._queue) > LIMIT:
                self._evict()
            self._wake.notify()

    def waiting(self) -> int:
        """The number of results that the core has not accepted yet."""
        with self._wake:
            return len(self._queue)

    def close(self, patience: float = 2.0) -> None:
        """Try once more for at most ``patience`` seconds, then save the rest."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(patience)
        with self._wake:
            _save(self._path, list(self._queue))

    def _run(self) -> None:
        delay = FIRST_RETRY
        while True:
            with self._wake:
                while not self._queue and not self._closing:
                    self._wake.wait()
                if not self._queue:
                    return
                batch = self._batch()
            failed = self._attempt(batch)
            with self._wake:
                if not failed:
                    delay = FIRST_RETRY
                    for result in batch:
                        if self._queue and self._queue[0] is result:
                            self._queue.popleft()
                    continue
                if self._closing:
                    return
                self._wake.wait(delay)
                delay = min(2 * delay, LAST_RETRY)

    def _batch(self) -> list[PassiveResult]:
        """The oldest results, at most one for each service (see ``Transport.send``)."""
        batch: list[PassiveResult] = []
        services: set[tuple[str, str]] = set()
        for result in itertools.islice(self._queue, BATCH_SIZE):
            if (result.host, result.service) in services:
                break
            services.add((result.host, result.service))
            batch.append(result)
        return batch

    def _attempt(self, batch: list[PassiveResult]) -> bool:
        try:
            self._transport.send(batch)
        except Exception as error:  # any error: if this thread ended, no further verdict would reach the core
            if not isinstance(error, TransportError):
                log.exception("results are kept, internal error")
            elif self.reachable:
                log.warning("results are kept, the core did not accept them: %s", error)
            self.reachable = False
            if self._on_failure is not None:
                self._on_failure()
            return True
        if not self.reachable:
            log.info("the core accepts results again")
        self.reachable = True
        return False

    def _evict(self) -> None:
        """Drop the oldest result that a later one of the same service and state repeats; else the oldest one."""
        last: dict[tuple[str, str], State] = {}
        for index in range(len(self._queue) - 1, -1, -1):
            result = self._queue[index]
            key = (result.host, result.service)
            if index and last.get(key) is result.state:
                del self._queue[index]
                return
            last[key] = result.state
        del self._queue[1]


def _load(path: Path | None) -> list[PassiveResult]:
    if path is None or not path.exists():
        return []
    try:
        rows = json.loads(path.read_bytes())
        path.unlink()
        return [PassiveResult(**{**row, "state": State(row["state"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: cannot read the kept results, they are lost: %s", path, error)
        return []


def _save(path: Path | None, results: list[PassiveResult]) -> None:
    if path is None or not results:
        return
    try:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps([asdict(result) for result in results]))
        temporary.rename(path)
    except OSError as error:
        log.warning("%s: %d results are lost: %s", path, len(results), error.strerror)
