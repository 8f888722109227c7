"""All taps of the sniffer: one for each client interface and service, one for faults on every interface.

The loop decides how often it reads the rings: frames carry the kernel's time, and ``read`` sorts the frames of all
taps by it. Above a packet budget the taps sample (``sampling``).

The redirector withholds RSTs to SYNs, so they never reach the client interface; the faults tap sees them arrive from
the servers.
"""

import logging
import selectors
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from check_failover.config import Config
from check_failover.model import Service
from check_failover.sniffer.capture import CaptureError, bpf, down
from check_failover.sniffer.capture.sampling import STRAY, Sampling, Strays
from check_failover.sniffer.stage1.packet import RST, SYN, TCP, Packet, parse

if sys.platform == "linux":
    from check_failover.sniffer.capture.linux import LinuxTap as Tap
else:
    from check_failover.sniffer.capture.bsd import BsdTap as Tap

COUNT_EVERY = 128  # frames between two checks of the budget

log = logging.getLogger("failover-sniffer")
Row = tuple[str | None, Packet, bytes]  # the service; None: seen by the faults tap


@dataclass(slots=True, eq=False)
class TapSlot:
    """``service`` None: the faults tap; ``interface`` None: all interfaces."""

    interface: str | None
    service: Service | None
    sampling: Sampling  # one for all interfaces of a service
    tap: Tap | None = None
    strays: Strays = field(default_factory=Strays)

    def program(self) -> bytes:
        sample = (self.sampling.bits, self.sampling.port)
        if self.service is None:
            return bpf.faults_filter(*sample)
        return bpf.clients_filter(self.service, *sample, leaving=sys.platform == "linux")

    def port(self, packet: Packet) -> int:
        """The client's port."""
        if self.service is None:
            return packet.sport if packet.unreachable else packet.dport
        return packet.dport if packet.src == self.service.address.packed else packet.sport

    def is_stray(self, packet: Packet) -> bool:
        """Whether this is a segment of a TCP connection that the server did not answer, no SYN."""
        if self.service is None or packet.proto != TCP:
            return False
        if packet.src != self.service.address.packed or packet.sport != self.service.address.port:
            return not packet.flags & SYN and self.strays.stray((packet.src, packet.sport))
        if not packet.flags & RST:
            self.strays.answered((packet.dst, packet.dport), packet.now)
        return False


class Taps:
    """Owns the taps. Interfaces may disappear and return; a service is blind when none of its taps works."""

    def __init__(self, config: Config, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._sampling: dict[str, Sampling] = {}
        self._slots: list[TapSlot] = []
        # Without packet(7) there is no tap for all interfaces; none is needed, because ipfilter withholds no RST.
        self._faults = [TapSlot(None, None, Sampling(time.monotonic()))] if sys.platform == "linux" else []
        self._arrange(config)
        self._read = 0.0
        self._narrowed: set[str] = set()

    def _arrange(self, config: Config) -> None:
        """One slot for each interface and service; those that a new config leaves as they are stay open."""
        now = time.monotonic()
        kept = {
            (slot.interface, slot.service.name): slot
            for slot in self._slots
            if slot.service in config.services and slot.service
        }
        known = {name for _, name in kept}
        self._sampling = {s.name: self._sampling[s.name] if s.name in known else Sampling(now) for s in config.services}
        wanted = [(name, service) for name in config.controller.client_interfaces for service in config.services]
        slots = [kept.get((i, s.name)) or TapSlot(i, s, self._sampling[s.name]) for i, s in wanted]
        for slot in self._slots:
            if slot not in slots:
                self._close(slot)
        self._slots, self._all = slots, [*self._faults, *slots]

    def reload(self, config: Config) -> None:
        """Watch what a new config says. Raises CaptureError without the permission to capture."""
        self._arrange(config)
        self.open()

    def open(self) -> None:
        """Open the taps; an interface may be missing. Raises CaptureError without the permission to capture."""
        for slot in self._all:
            if slot.tap is None:
                self._try_open(slot)

    def read(self) -> list[Row]:
        """All packets captured until now, in order of time. Call ``narrowed`` before you process them."""
        now, wall = time.monotonic(), time.time()
        found: list[Row] = []
        for slot in self._all:
            if slot.tap is not None:
                found += self._packets(slot, slot.tap, now, wall)
        self._read = now
        found.sort(key=lambda row: row[1].now)
        return found

    def narrowed(self) -> Iterator[tuple[str, Callable[[int], bool]]]:
        """Each service whose sampling changed since the last call, with the test whether a client port is kept."""
        names, self._narrowed = self._narrowed, set()
        for name in names:
            yield name, self._sampling[name].keeps

    def _packets(self, slot: TapSlot, tap: Tap, now: float, wall: float) -> list[Row]:
        found: list[Row] = []
        before, cost = self._read, 0.0
        name = None if slot.service is None else slot.service.name
        ports: list[int] = []
        for when, frame in tap.frames(wall):
            at = when - wall + now
            packet = parse(frame, at if before <= at <= now else now)  # outside: the clock was set meanwhile
            cost += 1.0
            if packet is not None:
                stray = slot.is_stray(packet)
                if not stray:
                    ports.append(slot.port(packet))
                if not stray or slot.strays.passes(now):
                    found.append((name, packet, frame))
                else:
                    cost += STRAY - 1.0
            if cost >= COUNT_EVERY:
                if slot.sampling.count(cost, ports, now):
                    self._refilter(slot)
                cost, ports = 0.0, []
        if slot.sampling.count(cost, ports, now):
            self._refilter(slot)
        if slot.sampling.bits:  # drop frames from before the filter change: half a connection would look like a fault
            found = [row for row in found if slot.sampling.keeps(slot.port(row[1]))]
        return found

    def _refilter(self, changed: TapSlot) -> None:
        for slot in self._all:
            if slot.sampling is changed.sampling and slot.tap is not None:
                slot.tap.refilter(slot.program())
        if changed.service is not None:
            self._narrowed.add(changed.service.name)
        what = "refused connections" if changed.service is None else f"{changed.service.name}: connections"
        log.info("%s: watching one of %d", what, changed.sampling.share)

    def alarmed(self, slot: object) -> bool:
        """Whether the kernel reported an error of this tap: the interface went down or is gone."""
        return isinstance(slot, TapSlot) and slot.tap is not None and slot.tap.failed()

    def check_taps(self, now: float) -> dict[str, tuple[str | None, int]]:
        """For each service: why it is blind (or None), and the number of frames dropped since the last call."""
        found: dict[str, tuple[str | None, int]] = {}
        for slot in self._slots:
            if slot.interface is None or slot.service is None:
                continue
            why = down(slot.interface, slot.tap.index if slot.tap is not None else 0)
            if slot.tap is not None and why is not None and "gone" in why:
                self._close(slot)
            elif slot.tap is None and why is None:
                why = self._try_open(slot)
            drops = slot.tap.drops() if slot.tap is not None else 0
            before, dropped = found.get(slot.service.name, ("", 0))
            blind = None if why is None or before is None else ", ".join(filter(None, (before, why)))
            found[slot.service.name] = (blind, dropped + drops)
        return found

    def share(self, service: str) -> int:
        """N, where the taps keep one of N connections of a service."""
        return self._sampling[service].share

    def close(self) -> None:
        for slot in self._all:
            self._close(slot)

    def _try_open(self, slot: TapSlot) -> str | None:
        """Open a tap; returns why it cannot be opened. Raises CaptureError when no tap can be opened at all."""
        try:
            slot.tap = Tap(slot.interface, slot.program())
        except CaptureError as error:
            if slot.interface is None or "permission" in str(error):
                raise
            log.warning("%s", error)
            return str(error)
        self._selector.register(slot.tap, selectors.EVENT_READ, slot)
        return None

    def _close(self, slot: TapSlot) -> None:
        if slot.tap is not None:
            self._selector.unregister(slot.tap)
            slot.tap.close()
            slot.tap = None
