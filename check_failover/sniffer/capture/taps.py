"""All taps of the sniffer: one for each client interface, one for faults on every interface.

One socket, filter and ring serve all services: the reader finds a packet's service by protocol, address and port. The
loop decides how often it reads the rings: frames carry the kernel's time, and ``read`` sorts the frames of all taps by
it. Above a packet budget the taps sample each service's connections (``sampling``).

The redirector withholds RSTs to SYNs, so they never reach the client interface; the faults tap sees them arrive from
the servers.
"""

import logging
import selectors
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from check_failover.config import Config
from check_failover.model import Endpoint, Service
from check_failover.sniffer.capture import CaptureError, bpf, down
from check_failover.sniffer.capture.sampling import STRAY, Budget, Sampling, Strays
from check_failover.sniffer.stage1.packet import RST, SYN, TCP, Packet, parse

if sys.platform == "linux":
    from check_failover.sniffer.capture.linux import LinuxTap as Tap
else:
    from check_failover.sniffer.capture.bsd import BsdTap as Tap

COUNT_EVERY = 128  # frames between two checks of the budget
WIDEN_EVERY = 0.1  # seconds between two changes of the filter that are not urgent

log = logging.getLogger("failover-sniffer")
Row = tuple[Sequence[str], Packet, bytes]  # the services that the packet is about
End = tuple[int, bytes, int]  # protocol, address, port


@dataclass(slots=True, eq=False)
class TapSlot:
    """``interface`` None: the faults tap, on all interfaces."""

    interface: str | None
    tap: Tap | None = None


class Taps:
    """Owns the taps. Interfaces may disappear and return; the sniffer is blind when no tap of the clients works."""

    def __init__(self, config: Config, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        self._selector = selector
        self._services: tuple[Service, ...] = ()
        self._sampling: dict[str | None, Sampling] = {None: Sampling(now)}  # None: of the faults tap
        self._budget, self._strays = Budget(now), Strays()
        self._slots = [TapSlot(name) for name in config.controller.client_interfaces]
        # Without packet(7) there is no tap for all interfaces; none is needed, because ipfilter withholds no RST.
        self._all = [*([TapSlot(None)] if sys.platform == "linux" else []), *self._slots]
        self._read, self._refilter_at = 0.0, float("inf")
        self._changed: set[str] = set()
        self._arrange(config.services)

    def _arrange(self, services: tuple[Service, ...]) -> None:
        """Watch these services; the sampling of those that a new config leaves as they are goes on."""
        now, before = time.monotonic(), self._sampling
        kept = {None, *(service.name for service in services if service in self._services)}
        self._services = services
        self._numbers = {service.name: bpf.number(service.protocol, service.address) for service in services}
        self._sampling = {name: before[name] if name in kept else Sampling(now) for name in (None, *self._numbers)}
        self._sampled = {name for name, one in self._sampling.items() if one.bits}
        self._addresses = _ends(services, lambda service: [service.address])
        self._servers = _ends(services, lambda service: [service.primary, service.standby])

    def reload(self, config: Config) -> None:
        """Watch what a new config says. Raises CaptureError without the permission to capture."""
        self._arrange(config.services)
        self._refilter()
        self.open()

    def open(self) -> None:
        """Open the taps; an interface may be missing. Raises CaptureError without the permission to capture."""
        for slot in self._all:
            if slot.tap is None:
                self._try_open(slot)

    def read(self) -> tuple[list[Row], set[str]]:
        """All packets captured until now, in order of time, and the services whose sampling changed before them."""
        now, wall = time.monotonic(), time.time()
        found: list[tuple[Sampling, int, Row]] = []
        for slot in self._all:
            if slot.tap is not None:
                found += self._packets(slot.tap, now, wall, faults=slot.interface is None)
        self._budget.count(len(found), now)
        for name in list(self._sampled):  # without a frame too: the filter must widen
            self._count(name, 0.0, (), now)
        if now >= self._refilter_at:
            self._refilter()
        self._read = now
        # Drop frames from before the filter change: half a connection would look like a fault.
        rows = [row for sampling, port, row in found if sampling.keeps(port)]
        rows.sort(key=lambda row: row[1].now)
        changed, self._changed = self._changed & self._numbers.keys(), set()
        return rows, changed

    def _packets(self, tap: Tap, now: float, wall: float, *, faults: bool) -> list[tuple[Sampling, int, Row]]:
        found: list[tuple[Sampling, int, Row]] = []
        costs, ports = defaultdict[str | None, float](float), defaultdict[str | None, list[int]](list)
        before, whose = self._read, self._about if faults else self._between
        for when, frame in tap.frames(wall):
            at = when - wall + now
            packet = parse(frame, at if before <= at <= now else now)  # outside: the clock was set meanwhile
            names, port, stray = whose(packet) if packet is not None else ((), 0, False)
            if packet is None or not (names or faults):
                continue
            name = None if faults else names[0]
            sampling = self._sampling[name]
            if not sampling.keeps(port):
                continue
            if not stray:
                ports[name].append(port)
            passes = not stray or self._strays.passes(names[0], now)
            costs[name] += 1.0 if passes else STRAY  # a refusal by a foreign server too: there may be very many
            if passes and names:
                found.append((sampling, port, (names, packet, frame)))
            if costs[name] >= COUNT_EVERY:
                self._count(name, costs.pop(name), ports.pop(name, ()), now)
        for name, cost in costs.items():
            self._count(name, cost, ports.get(name, ()), now)
        return found

    def _between(self, packet: Packet) -> tuple[Sequence[str], int, bool]:
        """The service of a packet between it and a client, the client's port, and whether the packet is a stray.

        That is a segment of a TCP connection that the server did not answer, no SYN.
        """
        names = self._addresses.get((packet.proto, packet.dst, packet.dport), ())
        if names:
            old = packet.proto == TCP and not packet.flags & SYN
            return names, packet.sport, old and self._strays.stray((packet.src, packet.sport))
        names = self._addresses.get((packet.proto, packet.src, packet.sport), ())
        if names and packet.proto == TCP and not packet.flags & RST:
            self._strays.answered((packet.dst, packet.dport), packet.now)
        return names, packet.dport, False

    def _about(self, packet: Packet) -> tuple[Sequence[str], int, bool]:
        """The services that a packet of the faults tap may be about: a server's refusal, or an ICMP error."""
        if not packet.unreachable:
            return self._servers.get((packet.proto, packet.src, packet.sport), ()), packet.dport, False
        end = (packet.proto, packet.dst, packet.dport)
        return self._addresses.get(end, ()) or self._servers.get(end, ()), packet.sport, False

    def _count(self, name: str | None, cost: float, ports: Sequence[int], now: float) -> None:
        sampling = self._sampling[name]
        before = sampling.bits
        if sampling.count(cost, ports, now, self._budget.each):
            self._changed.update([name] if name else [])
            self._sampled = {name for name, one in self._sampling.items() if one.bits}
            self._refilter_at = min(self._refilter_at, now if sampling.bits > before else now + WIDEN_EVERY)
            log.info("%s: watching one of %d", name or "refused connections", sampling.share)

    def _refilter(self) -> None:
        self._refilter_at = float("inf")
        clients, faults = self._clients_filter(), self._faults_filter()
        for slot in self._all:
            if slot.tap is not None:
                slot.tap.refilter(faults if slot.interface is None else clients)

    def _clients_filter(self) -> bytes:
        samples: dict[int, bpf.Sample] = {}
        for name, number in self._numbers.items():
            one = self._sampling[name]
            samples[number] = (0, 0) if number in samples else (one.bits, one.port)  # two by chance: the reader samples
        return bpf.clients_filter(samples, leaving=sys.platform == "linux")

    def _faults_filter(self) -> bytes:
        return bpf.faults_filter(self._sampling[None].bits, self._sampling[None].port)

    def alarmed(self, slot: object) -> bool:
        """Whether the kernel reported an error of this tap: the interface went down or is gone."""
        return isinstance(slot, TapSlot) and slot.tap is not None and slot.tap.failed()

    def check_taps(self) -> tuple[str | None, int]:
        """Why the sniffer is blind (or None), and the number of frames dropped since the last call."""
        reasons, dropped = [], 0
        for slot in self._slots:
            why = down(str(slot.interface), slot.tap.index if slot.tap is not None else 0)
            if slot.tap is not None and why is not None and "gone" in why:
                self._close(slot)
            elif slot.tap is None and why is None:
                why = self._try_open(slot)
            dropped += slot.tap.drops() if slot.tap is not None else 0
            reasons.append(why)
        return None if None in reasons else ", ".join(filter(None, reasons)), dropped

    def sampled(self) -> list[str]:
        """The services of which only some connections are kept."""
        return [name for name in self._sampled if name is not None]

    def sampling(self, service: str) -> Sampling:
        """How many connections of a service the taps keep, and which."""
        return self._sampling[service]

    def close(self) -> None:
        for slot in self._all:
            self._close(slot)

    def _try_open(self, slot: TapSlot) -> str | None:
        """Open a tap; returns why it cannot be opened. Raises CaptureError when no tap can be opened at all."""
        try:
            slot.tap = Tap(slot.interface, self._faults_filter() if slot.interface is None else self._clients_filter())
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


def _ends(services: Iterable[Service], ends: Callable[[Service], Iterable[Endpoint]]) -> dict[End, list[str]]:
    """Endpoint -> the services that it belongs to."""
    found: dict[End, list[str]] = defaultdict(list)
    for service in services:
        for end in ends(service):
            found[bpf.PROTOCOLS[service.protocol], end.packed, end.port].append(service.name)
    return dict(found)
