"""The sniffer's socket: ``status``, ``probe`` and ``drill``; ``rights`` says who may use them.

A drill's result travels like a verdict, with fixed texts, to the service "NAME drill". It has its own service because
a drill's CRITICAL for "NAME primary" would hide a real fault during the drill.
"""

import queue
import re
import time

from check_failover.config import ConfigError
from check_failover.control import DRILL_STEPS, Message
from check_failover.listening import RequestRefusedError
from check_failover.model import PassiveResult, Service, State, Target
from check_failover.peer import Peer
from check_failover.sniffer.loop import Loop

TAKEN_WITHIN = 3.0  # seconds for the core to accept a drill's results


class SnifferRequests:
    """Answers one request per call; the loop's thread reads the monitors."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def handle(self, message: Message, _peer: Peer) -> Message:
        if message["verb"] == "status":
            return self._status(message.get("service"))
        try:
            service = self._loop.config.service(str(message.get("service")))
            if message["verb"] == "drill":
                return self._drill(service, str(message.get("id")), message.get("step"))
            target = Target(str(message.get("target")))
        except (ConfigError, ValueError) as error:
            raise RequestRefusedError(f"probe: {error}") from None
        timeout = self._loop.monitors[service.name].patience() if message.get("quick") else service.check.timeout
        probe = self._loop.actions.probe_now(service, target, timeout)
        if probe is None:
            raise RequestRefusedError(f"probe: cannot probe the {target}: see the sniffer's log")
        self._loop.call(lambda: self._loop.monitors[service.name].probed(target, probe, time.monotonic()), service.name)
        return {"passed": probe.passed, "seconds": probe.seconds, "text": probe.text}

    def _drill(self, service: Service, number: str, step: object) -> Message:
        if not re.fullmatch(r"[\w.-]{1,100}", number) or step not in ("begin", "passed", *DRILL_STEPS):
            raise RequestRefusedError("drill: want id and step")
        results = [(State.OK, f"drill {number} passed")]
        if step == "begin":  # OK first: after a killed drill the service may still be CRITICAL: nothing would change
            results = [(State.OK, f"drill {number} begins"), (State.CRITICAL, f"drill {number}: nothing moves")]
        elif step != "passed":
            results = [(State.WARNING, f"drill {number} failed at the step: {step}")]
        for state, text in results:
            text = f"{state.name}: {text}"
            self._loop.actions.report(PassiveResult(service.host, f"{service.name} drill", state, text, time.time()))
        end = time.monotonic() + TAKEN_WITHIN
        while self._loop.actions.outbox.waiting() and time.monotonic() < end:
            time.sleep(0.01)
        return {"taken": not self._loop.actions.outbox.waiting()}

    def _status(self, wanted: object) -> Message:
        """Of the wanted service, or of all."""
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()

        def look() -> None:
            now, every = time.monotonic(), self._loop.monitors
            chosen = [wanted] if isinstance(wanted, str) and wanted in every else every
            answer.put({name: every[name].status(now) for name in chosen})

        self._loop.call(look)
        try:
            return {"services": answer.get(timeout=2.0)}
        except queue.Empty:
            raise RequestRefusedError("status: the loop is busy") from None
