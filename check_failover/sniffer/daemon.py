"""failover-sniffer: one loop over packet sockets, moments and the outcomes of probes.

Read ``Loop.run`` first. What blocks (probes, sockets to the redirector) runs in threads that put a call into ``_calls``
and wake the loop, so that the sentries are touched by one thread only. The core stays the judge: see ``emergency`` for
when the sniffer asks the redirector itself.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from check_failover import __version__, control, syncstate
from check_failover.checks import ProbeError, probe_function
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.control import ControlError, Message, UnreachableError
from check_failover.listening import Server
from check_failover.model import Facts, PassiveResult, Probe, Service, Target
from check_failover.notify import log_to_stderr, notify
from check_failover.sniffer.capture import CaptureError
from check_failover.sniffer.detectors import NEVER
from check_failover.sniffer.emergency import Emergency
from check_failover.sniffer.evidence import Evidence
from check_failover.sniffer.eyes import Bypass, Eyes
from check_failover.sniffer.packet import RST
from check_failover.sniffer.rescue import Rescue
from check_failover.sniffer.sentry import Condition, Sentry
from check_failover.sniffer.verbs import Verbs
from check_failover.transports import TRANSPORTS
from check_failover.transports.outbox import Outbox

log = logging.getLogger("failover-sniffer")

PROBERS = 16  # threads: two servers of a handful of services
PAUSE = 0.01  # seconds between two looks at the rings while there is traffic
CARE_EVERY = 0.5  # seconds between two looks at interfaces and drops
COMPARE_EVERY = 5.0  # seconds between two comparisons of the NAT's counters with what was captured


class Loop:
    """The sniffer. ``sentries`` may only be touched by the loop's thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        now = time.monotonic()
        self.sentries = {service.name: Sentry(service, self, now) for service in config.services}
        self._probes = {service.name: probe_function(service.check) for service in config.services}
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pool = ThreadPoolExecutor(PROBERS, thread_name_prefix="probe")
        self._asker = ThreadPoolExecutor(1, thread_name_prefix="redirector")
        transport = TRANSPORTS[config.monitoring["transport"]](config.monitoring)
        directory = config.controller.state_dir / "sniffer"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ControlError(f"{directory}: cannot make: {error.strerror}: check space and rights") from None
        self._outbox = Outbox(transport, directory / "results.kept", on_failure=lambda: self.call(lambda: None))
        self._emergency = Emergency(config.monitoring.get("core_deadline"))
        self._evidence = Evidence(directory / "evidence")
        self._seen = dict.fromkeys(self.sentries, 0)  # frames captured
        self._bypass = Bypass()
        self._selector, self._urgent = selectors.DefaultSelector(), selectors.DefaultSelector()
        self._eyes = Eyes(config, self._selector)
        self._rescue = Rescue(config, self._ask_redirector, self.call)
        self._compare = 0.0
        self._cared = NEVER
        self._stop = threading.Event()

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until ``stop``."""
        for selector in (self._selector, self._urgent):
            selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._eyes.open()
        threading.Thread(target=self._follow_redirector, name="follow", daemon=True).start()
        busy = False
        while not self._stop.is_set():
            self._wait(busy)
            now = time.monotonic()  # the rings hold nothing older when they were read after this moment
            busy = self._frames()
            for sentry in self.sentries.values():
                sentry.tick(now)
                self._rescue.overdue(sentry, now)
                self._order_ourselves(sentry, now)
            if now - self._cared >= CARE_EVERY:
                self._cared = now
                self._care(now)
        self._close()

    def stop(self) -> None:
        self._stop.set()
        self.call(lambda: None)

    def call(self, act: Callable[[], None]) -> None:
        """Have the loop's thread do something; from any thread."""
        self._calls.put(act)
        with contextlib.suppress(BlockingIOError):  # full: it is awake already
            os.write(self._wake_write, b"x")

    def _drain_wake(self) -> None:
        os.read(self._wake_read, 4096)
        while True:
            try:
                act = self._calls.get_nowait()
            except queue.Empty:
                return
            act()

    def _wait(self, busy: bool) -> None:
        """Until something is due. While frames come in, the next ones are awaited for a moment and read together."""
        now = time.monotonic()
        due = min(self._cared + CARE_EVERY, *(sentry.deadline(now) for sentry in self.sentries.values()))
        if busy:
            events = self._urgent.select(max(0.0, min(due - now, PAUSE)))
        else:
            events = self._selector.select(max(0.0, due - now))
        for key, _ in events:
            if key.data is None:
                self._drain_wake()
            elif self._eyes.alarmed(key.data):
                self._cared = NEVER  # look at once

    def _frames(self) -> bool:
        """Whether there were any."""
        busy = False
        for sentry, packet, frame in self._eyes.read(self.sentries):
            busy = True
            name = sentry.service.name
            self._seen[name] += 1
            self._evidence.frame(name, packet, frame)
            sentry.packet(packet, frame)
            if packet.flags & RST:
                self._rescue.refused(sentry, packet)
        return busy

    def _care(self, now: float) -> None:
        for name, (blind, drops) in self._eyes.care(now).items():
            sentry = self.sentries[name]
            if drops:
                sentry.watch.lost(now, drops)
            sentry.watch.share = self._eyes.share(name)
            sentry.see(blind or self._bypass.blind.get(name), now)
        if now >= self._compare:
            self._compare = now + COMPARE_EVERY
            seen = {name: count for name, count in self._seen.items() if self._eyes.share(name) == 1}
            self._asker.submit(self._compare_counters, seen)

    def _close(self) -> None:
        notify("STOPPING=1")
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._asker.shutdown(wait=False, cancel_futures=True)
        self._eyes.close()
        self._outbox.close()

    # ------------------------------------------------------------ Outlet: what sentries have done for them

    def probe(self, service: Service, target: Target, timeout: float) -> None:
        self._pool.submit(self._probe, service, target, timeout)

    def _probe(self, service: Service, target: Target, timeout: float) -> None:
        probe = self.probe_now(service, target, timeout)
        if probe is not None:
            self.call(lambda: self.sentries[service.name].probed(target, probe, time.monotonic()))

    def probe_now(self, service: Service, target: Target, timeout: float) -> Probe | None:
        """One probe, in this thread; None when it could not be tried (then nothing is known, and nothing moves)."""
        try:
            probe = self._probes[service.name](service.server(target), service.check.options, timeout)
        except ProbeError as error:
            why = str(error)
            log.error("%s: cannot probe the %s: %s", service.name, target, why)
            self.call(lambda: self.sentries[service.name].health[target].unasked(why))
            return None
        if not probe.passed:
            log.info("%s: probe of the %s failed: %s", service.name, target, probe.text)
        return probe

    def report(self, result: PassiveResult) -> None:
        self._outbox.submit(result)

    def waiting(self) -> int:
        """Results that the core has not taken yet."""
        return self._outbox.waiting()

    def evidence(self, service: Service, facts: Facts) -> None:
        message = {"verb": "evidence", "service": service.name, "facts": asdict(facts)}
        self._asker.submit(self._ask_redirector, message)

    def note(self, text: str) -> None:
        log.info("%s", text)

    def keep(self, service: Service, story: dict[str, Any]) -> int | None:
        number = time.time_ns() // 1_000_000
        frames = self._evidence.snapshot(service.name)
        self._asker.submit(self._evidence.save, f"{service.name}-{number}", frames, {"evidence": number, **story})
        return number

    def sync(self, service: Service, facts: Facts) -> Facts:
        return syncstate.known(self._config.controller.state_dir, service, facts, time.time())

    # ------------------------------------------------------------ the redirector

    def _ask_redirector(self, message: Message) -> Message | None:
        """The reply; None when the redirector is away or refuses."""
        try:
            return control.ask(self._config.controller.redirector_socket, message, timeout=10.0)
        except ControlError as error:
            log.warning("%s", error)
            return None

    def _compare_counters(self, seen: dict[str, int]) -> None:
        """Do we see what the NAT forwards? (asker's thread)"""
        reply = self._ask_redirector({"verb": "status"})
        for name, status in (reply or {}).get("services", {}).items():
            asked = (status.get("activity") or {}).get("asked")
            if name in seen and isinstance(asked, int):
                self._bypass.compare(name, asked, seen[name])

    def _order_ourselves(self, sentry: Sentry, now: float) -> None:
        """A failed verdict cannot wait for a core that is not there."""
        name = sentry.service.name
        if self._emergency.withdraws(name, well=sentry.condition is Condition.OK):
            self._asker.submit(self._ask_redirector, {"verb": "recovered", "service": name, "by": "sniffer"})
        why = self._emergency.due(name, now, failed=sentry.failed, reachable=self._outbox.reachable)
        facts = None if why is None else sentry.last_facts()
        if facts is None:
            return
        log.warning("%s: %s; asking the redirector", name, why)
        message = {"verb": "fail-over", "service": name, "by": f"sniffer ({why})", "facts": asdict(facts)}
        self._asker.submit(self._ask_redirector, message)

    def _follow_redirector(self) -> None:
        """Keep a subscription: the target, and each flip in the moment it happens."""
        while not self._stop.is_set():
            try:
                self._listen_to_redirector()
            except UnreachableError:
                pass  # it restarts
            except (ControlError, LookupError, TypeError, ValueError) as error:  # nonsense, or of another version
                log.warning("the redirector's events are not understood: %s", error)
            self._stop.wait(0.5)

    def _listen_to_redirector(self) -> None:
        sock, hello = control.subscribe(self._config.controller.redirector_socket)
        with sock:
            sock.settimeout(None)
            for name, target in hello.get("targets", {}).items():
                self._moved(name, Target(target), replay=False)
            buffer = bytearray()
            while chunk := _receive(sock):
                buffer += chunk
                for event in control.split_lines(buffer):
                    if event.get("event") == "refused" and event.get("verb") == "fail-over":
                        self._spoken(str(event["service"]))
                    if event.get("event") == "flip":
                        self._moved(str(event["service"]), Target(event["target"]), replay=not event.get("drain"))

    def _spoken(self, name: str) -> None:
        self.call(lambda: self._emergency.spoken(name, time.monotonic()))

    def _moved(self, name: str, target: Target, *, replay: bool) -> None:
        sentry = self.sentries.get(name)
        if sentry is None:
            return

        def moved() -> None:
            now = time.monotonic()
            if sentry.target is not target:
                self._emergency.moved(name)
                if replay:
                    self._rescue.replay(sentry, now)
            sentry.flipped(target, now)

        self.call(moved)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def run(config: Config) -> None:
    """Watch until SIGTERM. Raises ControlError, CaptureError or ProbeError when it cannot begin."""
    if not config.controller.client_interfaces:
        raise ConfigError(
            f"{config.path}: $.controller.client_interface: needed by the sniffer: where are the clients?"
        )
    loop = Loop(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    verbs = Verbs(config, loop)
    server = Server(config.controller.sniffer_socket, control.SNIFFER_VERBS, verbs.handle, lambda _verb, _peer: None)
    server.start()
    notify("READY=1")
    log.info("watching %s", ", ".join(config.controller.client_interfaces))
    try:
        loop.run()
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="failover-sniffer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=DEFAULT_PATH, type=Path, help="default: %(default)s")
    parser.add_argument("--version", action="version", version=__version__)
    replay = parser.add_argument_group("over a capture file, without touching anything")
    replay.add_argument("--pcap", type=Path, metavar="FILE", help="print what would have been decided, and why")
    replay.add_argument("--speed", type=float, metavar="N", help="N times real time (as fast as it goes)")
    replay.add_argument("--assume-primary", choices=("fails", "passes"), default="fails", help="in probes: %(default)s")
    arguments = parser.parse_args()
    if arguments.speed is not None and not arguments.speed > 0:
        parser.error("--speed must be above 0")
    log_to_stderr()
    try:
        if arguments.pcap is None:
            run(load(arguments.config))
        else:
            from check_failover.sniffer import replay as player

            passes = arguments.assume_primary == "passes"
            player.run(load(arguments.config), arguments.pcap, arguments.speed, primary_passes=passes)
    except (ConfigError, ControlError, CaptureError, ProbeError) as error:
        sys.exit(f"failover-sniffer: {error}")


if __name__ == "__main__":
    main()
