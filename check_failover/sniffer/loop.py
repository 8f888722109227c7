"""The sniffer's one loop over packet sockets, deadlines and the outcomes of probes. Read ``Loop.run`` first.

Only the loop's thread touches the monitors, and only those that something happened to or that have a deadline: a
thousand idle services cost next to nothing. Everything that blocks runs in threads of ``actions``, ``redirector_link``
and ``rescue``; these pass a function to ``call``, which wakes the loop.
"""

import contextlib
import heapq
import logging
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable, Mapping

from check_failover.config import Config, ConfigError, fixed
from check_failover.model import Target
from check_failover.notify import alive, notify
from check_failover.sniffer.actions import ServiceActions
from check_failover.sniffer.bypass import Bypass
from check_failover.sniffer.capture.taps import Taps
from check_failover.sniffer.monitor import Condition, ServiceMonitor
from check_failover.sniffer.redirector_link import Counters, RedirectorLink
from check_failover.sniffer.rescue import Rescue
from check_failover.sniffer.stage1.detectors import NEVER
from check_failover.sniffer.stage1.flows import FlowKey
from check_failover.sniffer.stage1.packet import RST

PAUSE = 0.01  # seconds between two reads of the rings while there is traffic
CHECK_TAPS_EVERY = 0.5  # seconds between two checks of interfaces and drops
SOON = 0.05  # seconds between two looks at a service whose first packets may need rescue, or that answers nobody
COUNT_EVERY = 0.2  # seconds between two looks at the NAT's counters of the services that are sampled
COMPARE_EVERY = 5.0  # seconds between two comparisons of the NAT's counters and connections with what was captured
NEVER_DUE = float("inf")

log = logging.getLogger(__name__)


class Loop:
    """The sniffer. Raises ControlError when the state directory cannot be made."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], str | None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.monitors: dict[str, ServiceMonitor] = {}
        self._touched: set[str] = set()  # services that something happened to since the last look
        self._next: dict[str, float] = {}  # when each service is due
        self._due: list[tuple[float, str]] = []  # the same as a heap, with entries that hold no longer
        self._blind: str | None = None
        self._captured: dict[str, int] = {}  # frames of each service
        self._bypass = Bypass()
        self.link = RedirectorLink(config, self)
        self.actions = ServiceActions(config, self.monitors, self.link, self.call)
        self._watch(config)
        self._rescue = Rescue(config, self.link.ask, self.call)
        self._selector, self._urgent = selectors.DefaultSelector(), selectors.DefaultSelector()
        self._taps = Taps(config, self._selector)
        self._compared = self._counted = 0.0
        self._counting = False
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
            self._look(now)
            self._count(now)
            if now - self._checked >= CHECK_TAPS_EVERY:
                self._checked = now
                self._check_taps(now)
                alive(self._status())
        self.close()

    def _look(self, now: float) -> None:
        """Let each service that is due, or that something happened to, do its work."""
        names, self._touched = self._touched, set()
        while self._due and self._due[0][0] <= now:
            moment, name = heapq.heappop(self._due)
            if self._next.get(name) == moment:
                del self._next[name]
                names.add(name)
        for name in names & self.monitors.keys():
            monitor = self.monitors[name]
            monitor.tick(now)
            waiting = self._rescue.overdue(monitor, now)
            self.link.order_if_core_is_silent(monitor, now, reachable=self.actions.outbox.reachable)
            due = min(monitor.deadline(now), now + SOON if waiting else NEVER_DUE)
            if self.link.watchdog.concerned(name):
                due = min(due, now + 1.0)
            if due < self._next.get(name, NEVER_DUE):
                self._next[name] = due
                heapq.heappush(self._due, (due, name))
        if len(self._due) > 4 * len(self.monitors) + 64:
            self._due = [(moment, name) for name, moment in self._next.items()]
            heapq.heapify(self._due)

    def _watch(self, config: Config) -> None:
        """A monitor for each service; what a monitor of an unchanged service learned is kept."""
        now, before = time.monotonic(), dict(self.monitors)
        self.monitors.clear()
        for service in config.services:
            kept = before.get(service.name)
            unchanged = kept is not None and kept.service == service
            self.monitors[service.name] = kept if kept and unchanged else ServiceMonitor(service, self.actions, now)
        self._captured = {name: self._captured.get(name, 0) for name in self.monitors}
        self._next = {name: moment for name, moment in self._next.items() if name in self.monitors}
        self._touched.update(self.monitors)
        self._blind = None  # say it to the new ones
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

    def call(self, act: Callable[[], None], name: str | None = None) -> None:
        """Run ``act``, which is about service ``name``, in the loop's thread; callable from any thread.

        Without a name all services that are not well are looked at.
        """
        self._calls.put((act, name))
        with contextlib.suppress(BlockingIOError):  # the pipe is full: the loop is awake already
            os.write(self._wake_write, b"x")

    def _drain_wake(self) -> None:
        os.read(self._wake_read, 4096)
        while True:
            try:
                act, name = self._calls.get_nowait()
            except queue.Empty:
                return
            try:
                act()
            except Exception:  # a fault in one answer must not end the watching
                log.exception("internal error")
            unwell = (key for key, monitor in self.monitors.items() if monitor.condition is not Condition.OK)
            self._touched.update(unwell if name is None else [name])

    def _wait(self, busy: bool) -> None:
        """Wait until something is due. While frames come in, wait ``PAUSE`` and read the next ones together."""
        now = time.monotonic()
        dues = [self._checked + CHECK_TAPS_EVERY, *(moment for moment, _ in self._due[:1])]
        if self._touched:
            dues.append(now)
        if self._taps.sampled() and not self._counting:
            dues.append(self._counted + COUNT_EVERY)
        due = min(dues)
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
        rows, changed = self._taps.read()
        for name in changed:
            traffic, sampling = self.monitors[name].traffic, self._taps.sampling(name)
            traffic.flows.narrowed(sampling.keeps)
            traffic.share = sampling.share
        for names, packet, frame in rows:
            self._touched.update(names)
            for name in names:
                self._captured[name] += 1
                self.actions.evidence.frame(name, packet, frame)
                self.monitors[name].packet(packet, frame)
                if packet.flags & RST:
                    self._rescue.refused(self.monitors[name], packet)
        return bool(rows)

    def _check_taps(self, now: float) -> None:
        blind, drops = self._taps.check_taps()
        unwell = {name for name, monitor in self.monitors.items() if monitor.blind is not None}
        for name in self.monitors if drops or blind != self._blind else unwell | self._bypass.blind.keys():
            monitor = self.monitors[name]
            self._touched.add(name)
            if drops:
                monitor.traffic.lost(now, drops)
            monitor.set_blind(blind or self._bypass.blind.get(name), now)
        self._blind = blind

    def _count(self, now: float) -> None:
        """Read the NAT's counters: of sampled services often, of the others only while nothing of them is captured."""
        names = [] if self._counting or now < self._counted + COUNT_EVERY else self._taps.sampled()
        if now >= self._compared + COMPARE_EVERY:
            self._compared = now
            whole = {n: frames for n, frames in self._captured.items() if not self._taps.sampling(n).bits}
            names += self._bypass.suspects(whole)
            for name, monitor in self.monitors.items():
                if monitor.traffic.flows.knows_elsewhere():
                    self.link.ask_elsewhere(name)
        if names:
            self._counting, self._counted = True, now
            self.link.read_counters(names)

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

        self.call(moved, name)

    def listed_elsewhere(
        self, name: str, target: Target, flows: list[FlowKey], asked: float, *, complete: bool
    ) -> None:
        def listed() -> None:
            monitor = self.monitors.get(name)
            if monitor is not None and monitor.target is target:  # else the redirect moved meanwhile
                monitor.traffic.list_elsewhere(flows, asked, complete=complete)

        self.call(listed, name)

    def counted(self, counters: Mapping[str, Counters]) -> None:
        def compare() -> None:
            self._counting, now = False, time.monotonic()
            for name in counters.keys() & self.monitors.keys():
                asked, answered = counters[name]
                if self._taps.sampling(name).bits:
                    self._touched.add(name)
                    detect = self.monitors[name].traffic.detect
                    self.monitors[name].suspect(detect.forwarded(asked, answered, now), now)
                    if detect.counters.since is not None:
                        self._counted = now - COUNT_EVERY + SOON
                else:
                    self._bypass.compare(name, asked, self._captured[name])

        self.call(compare)

    def order_refused(self, name: str, reason: str) -> None:
        self.call(lambda: self.link.watchdog.order_refused(name, time.monotonic(), reason), name)
