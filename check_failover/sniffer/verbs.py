"""The sniffer's socket: ``status`` and ``probe``, for whoever may connect."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from check_failover.config import Config, ConfigError
from check_failover.control import Message, Peer, RefusedError
from check_failover.model import Probe, Service, Target
from check_failover.sniffer.sentry import Sentry


class Watching(Protocol):
    """What the verbs need of the loop."""

    @property
    def sentries(self) -> Mapping[str, Sentry]: ...

    def call(self, act: Callable[[], None]) -> None: ...

    def probe_now(self, service: Service, target: Target, timeout: float) -> Probe | None: ...


class Verbs:
    """One request each; the sentries are looked at by the loop's own thread."""

    def __init__(self, config: Config, loop: Watching) -> None:
        self._config, self._loop = config, loop

    def handle(self, message: Message, _peer: Peer) -> Message:
        if message["verb"] == "status":
            return self._status()
        try:
            service = self._config.service(str(message.get("service")))
            target = Target(str(message.get("target")))
        except (ConfigError, ValueError) as error:
            raise RefusedError(f"probe: {error}") from None
        probe = self._loop.probe_now(service, target, service.check.timeout)
        if probe is None:
            raise RefusedError(f"probe: cannot probe the {target}: see the sniffer's log")
        self._loop.call(lambda: self._loop.sentries[service.name].probed(target, probe, time.monotonic()))
        return {"passed": probe.passed, "seconds": probe.seconds, "text": probe.text}

    def _status(self) -> Message:
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()

        def look() -> None:
            now = time.monotonic()
            answer.put({name: sentry.status(now) for name, sentry in self._loop.sentries.items()})

        self._loop.call(look)
        try:
            return {"services": answer.get(timeout=2.0)}
        except queue.Empty:
            raise RefusedError("status: the loop is busy") from None
