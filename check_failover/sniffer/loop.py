"""The sniffer's one loop over packet sockets, deadlines and the outcomes of probes. Read ``Loop.run`` first.

Only the loop's thread touches the monitors. Everything that blocks runs in threads of ``actions``,
``redirector_link`` and ``rescue``; these pass a function to ``call``, which wakes the loop.
"""

import contextlib
import logging
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable

from check_failover.config import Config, ConfigError, fixed
from check_failover.model import Target
from check_failover.notify import alive, notify
from check_failover.sniffer.actions import ServiceActions
from check_failover.sniffer.bypass import Bypass
from check_failover.sniffer.capture.taps import Taps
from check_failover.sniffer.monitor import ServiceMonitor
from check_failover.sniffer.redirector_link import RedirectorLink
from check_failover.sniffer.rescue import Rescue
from check_failover.sniffer.stage1.detectors import NEVER
from check_failover.sniffer.stage1.flows import FlowKey
from check_failover.sniffer.stage1.packet import RST, Packet

PAUSE = 0.01  # seconds between two reads of the rings while there is traffic
CHECK_TAPS_EVERY = 0.5  # seconds between two checks of interfaces and drops
COMPARE_EVERY = 5.0  # seconds between two comparisons of the NAT's counters and connections with what was captured


log = logging.getLogger(__name__)


class Loop:
    """The sniffer. Raises ControlError when the state directory cannot be made."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.monitors: dict[str, ServiceMonitor] = {}
        self._captured: dict[str, int] = {}  # frames of each service
        self._bypass = Bypass()
        self.link = RedirectorLink(config, self, self._bypass)
        self.actions = ServiceActions(config, self.monitors, self.link, self.call)
        self._watch(config)
        self._rescue = Rescue(config, self.link.ask, self.call)
        self._selector, self._urgent = selectors.DefaultSelector(), selectors.DefaultSelector()
        self._taps = Taps(config, self._selector)
        self._compared = 0.0
        self._checked = NEVER
        self._stop = threading.Event()

    def run(self) -> None:
        """Run until ``stop``. Raises CaptureError without the permission to capture."""
        for selector in (self._selector, self._urgent):
            selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._taps.open()
        self.link.start()
        busy = False
        while not self._stop.is_set():
            self._wait(busy)
            now = time.monotonic()  # taken before the rings are read: then no older packet is still unread
            busy = self._frames()
            for monitor in self.monitors.values():
                monitor.tick(now)
                self._rescue.overdue(monitor, now)
                self.link.order_if_core_is_silent(monitor, now, reachable=self.actions.outbox.reachable)
            if now - self._checked >= CHECK_TAPS_EVERY:
                self._checked = now
                self._check_taps(now)
                alive(self._status())
        self.close()

    def _watch(self, config: Config) -> None:
        """A monitor for each service; what a monitor of an unchanged service learned is kept."""
        now, before = time.monotonic(), dict(self.monitors)
        self.monitors.clear()
        for service in config.services:
            kept = before.get(service.name)
            unchanged = kept is not None and kept.service == service
            self.monitors[service.name] = kept if kept and unchanged else ServiceMonitor(service, self.actions, now)
        self._captured = {name: self._captured.get(name, 0) for name in self.monitors}
        self.config = config

    def reload(self, config: Config) -> None:
        """Go on with a new config, in the loop's thread. Raises ConfigError, CaptureError or ProbeError."""
        if fixed(config) != fixed(self.config):
            raise ConfigError(f"{config.path}: [controller] and [monitoring] change with a restart only")
        if not config.controller.client_interfaces:
            raise ConfigError(f"{config.path}: $.controller.client_interface: needed by the sniffer")
        self.actions.reload(config)
        self._taps.reload(config)
        self._watch(config)
        self.link.subscribe_again()

    def stop(self) -> None:
        self._stop.set()
        self.call(lambda: None)

    def close(self) -> None:
        notify("STOPPING=1")
        self.link.close()
        self._taps.close()
        self.actions.close()

    def call(self, act: Callable[[], None]) -> None:
        """Run ``act`` in the loop's thread; callable from any thread."""
        self._calls.put(act)
        with contextlib.suppress(BlockingIOError):  # the pipe is full: the loop is awake already
            os.write(self._wake_write, b"x")

    def _drain_wake(self) -> None:
        os.read(self._wake_read, 4096)
        while True:
            try:
                act = self._calls.get_nowait()
            except queue.Empty:
                return
            try:
                act()
            except Exception:  # a fault in one answer must not end the watching
                log.exception("internal error")

    def _wait(self, busy: bool) -> None:
        """Wait until something is due. While frames come in, wait ``PAUSE`` and read the next ones together."""
        now = time.monotonic()
        due = min(self._checked + CHECK_TAPS_EVERY, *(monitor.deadline(now) for monitor in self.monitors.values()))
        if busy:
            events = self._urgent.select(max(0.0, min(due - now, PAUSE)))
        else:
            events = self._selector.select(max(0.0, due - now))
        for key, _ in events:
            if key.data is None:
                self._drain_wake()
            elif self._taps.alarmed(key.data):
                self._checked = NEVER  # check the taps at once

    def _frames(self) -> bool:
        """Feed the captured frames to the monitors; returns whether there were any."""
        rows = self._taps.read()
        for name, keeps in self._taps.narrowed():
            self.monitors[name].traffic.flows.narrowed(keeps)
        for whose, packet, frame in rows:
            # A packet of the faults tap goes to every monitor: each one recognises its own by the addresses.
            for name in self.monitors if whose is None else (whose,):
                self._frame(name, packet, frame)
        return bool(rows)

    def _frame(self, name: str, packet: Packet, frame: bytes) -> None:
        monitor = self.monitors[name]
        self._captured[name] += 1
        self.actions.evidence.frame(name, packet, frame)
        monitor.packet(packet, frame)
        if packet.flags & RST:
            self._rescue.refused(monitor, packet)

    def _check_taps(self, now: float) -> None:
        for name, (blind, drops) in self._taps.check_taps(now).items():
            monitor = self.monitors[name]
            if drops:
                monitor.traffic.lost(now, drops)
            monitor.traffic.share = self._taps.share(name)
            monitor.set_blind(blind or self._bypass.blind.get(name), now)
        if now >= self._compared:
            self._compared = now + COMPARE_EVERY
            seen = {name: count for name, count in self._captured.items() if self._taps.share(name) == 1}
            self.link.compare_counters(seen)
            for name, monitor in self.monitors.items():
                if monitor.traffic.flows.knows_elsewhere():
                    self.link.ask_elsewhere(name)

    def _status(self) -> str:
        """For ``systemctl status``: how many services, and the first that is not well."""
        sick = [f"{name} {monitor.condition}" for name, monitor in self.monitors.items() if monitor.condition != "ok"]
        return ", ".join([f"watching {len(self.monitors)} services", *sick[:5]])

    # ------------------------------------------------------------ redirector_link.Listener

    def redirected(self, name: str, target: Target, *, replay: bool) -> None:
        monitor = self.monitors.get(name)
        if monitor is None:
            return

        def moved() -> None:
            now = time.monotonic()
            if monitor.target is not target:
                self.link.watchdog.target_changed(name)
                if replay:
                    self._rescue.replay(monitor, now)
            monitor.flipped(target, now)

        self.call(moved)

    def listed_elsewhere(
        self, name: str, target: Target, flows: list[FlowKey], asked: float, *, complete: bool
    ) -> None:
        def listed() -> None:
            monitor = self.monitors.get(name)
            if monitor is not None and monitor.target is target:  # else the redirect moved meanwhile
                monitor.traffic.list_elsewhere(flows, asked, complete=complete)

        self.call(listed)

    def order_refused(self, name: str, reason: str) -> None:
        self.call(lambda: self.link.watchdog.order_refused(name, time.monotonic(), reason))
