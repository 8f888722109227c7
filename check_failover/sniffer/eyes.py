"""All taps of the sniffer: one for each client interface and service, one for faults on every interface.

The rings are not looked at more often than the loop likes: frames carry the kernel's time, and those of all taps are
put in order. What is too much is sampled (``sampling``).

RSTs to SYNs never reach the client interface, because the redirector withholds them; the faults tap sees them come in
from the servers.
"""

from __future__ import annotations

import logging
import selectors
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from check_failover.config import Config
from check_failover.model import Service
from check_failover.sniffer import bpf
from check_failover.sniffer.capture import CaptureError, down
from check_failover.sniffer.packet import Packet, parse
from check_failover.sniffer.sampling import Sampling
from check_failover.sniffer.sentry import Sentry

if sys.platform == "linux":
    from check_failover.sniffer.capture import Tap
else:
    from check_failover.sniffer.capture_bsd import Tap

LOOK = 128  # frames between two looks at the budget
ENOUGH = 50  # requests forwarded without one captured

log = logging.getLogger("failover-sniffer")
Row = tuple[Packet, bytes, Service | None]


@dataclass(slots=True, eq=False)
class _Eye:
    """``service`` None: the faults tap, and ``interface`` None: all."""

    interface: str | None
    service: Service | None
    sampling: Sampling  # one for all interfaces of a service
    tap: Tap | None = None

    def program(self) -> bytes:
        sample = (self.sampling.bits, self.sampling.port)
        if self.service is None:
            return bpf.faults_filter(*sample)
        return bpf.clients_filter(self.service, *sample, leaving=sys.platform == "linux")

    def port(self, packet: Packet) -> int:
        """The client's."""
        if self.service is None:
            return packet.sport if packet.unreachable else packet.dport
        return packet.dport if packet.src == self.service.address.packed else packet.sport


class Eyes:
    """Owns the taps. Interfaces may go and come back; a service is blind when none of them sees."""

    def __init__(self, config: Config, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        now = time.monotonic()
        self._sampling = {service.name: Sampling(now) for service in config.services}
        self._eyes = [
            _Eye(interface, service, self._sampling[service.name])
            for interface in config.controller.client_interfaces
            for service in config.services
        ]
        # Without packet(7) there is no tap for all interfaces, and nothing is withheld that it would have to see.
        self._all = [_Eye(None, None, Sampling(now)), *self._eyes] if sys.platform == "linux" else self._eyes
        self._read = 0.0
        self._narrowed: set[str] = set()

    def open(self) -> None:
        """Open every tap that can be opened. Raises CaptureError when there is no permission at all."""
        for eye in self._all:
            self._try_open(eye)

    def read(self, sentries: Mapping[str, Sentry]) -> Iterator[tuple[Sentry, Packet, bytes]]:
        """What was captured until now at any tap, in order of time, each with the sentry it concerns."""
        now, wall = time.monotonic(), time.time()
        found: list[Row] = []
        for eye in self._all:
            if eye.tap is not None:
                found += self._packets(eye, eye.tap, now, wall)
        self._read = now
        found.sort(key=lambda row: row[0].now)
        for name in self._narrowed:
            sentries[name].watch.narrowed(self._sampling[name].keeps)
        self._narrowed.clear()
        for packet, frame, service in found:
            if service is not None:
                yield sentries[service.name], packet, frame
            else:
                for sentry in sentries.values():
                    yield sentry, packet, frame

    def _packets(self, eye: _Eye, tap: Tap, now: float, wall: float) -> list[Row]:
        found: list[Row] = []
        before, count = self._read, 0
        ports: list[int] = []
        for count, (when, frame) in enumerate(tap.frames(wall), 1):
            at = when - wall + now
            packet = parse(frame, at if before <= at <= now else now)  # otherwise the clock was set
            if packet is not None:
                ports.append(eye.port(packet))
                found.append((packet, frame, eye.service))
            if count % LOOK == 0 and eye.sampling.count(LOOK, ports[-LOOK:], now):
                self._refilter(eye)
        if eye.sampling.count(count % LOOK, ports[-LOOK:], now):
            self._refilter(eye)
        if eye.sampling.bits:  # captured before the filter was changed: half of a conversation would look like a fault
            found = [row for row in found if eye.sampling.keeps(eye.port(row[0]))]
        return found

    def _refilter(self, changed: _Eye) -> None:
        for eye in self._all:
            if eye.sampling is changed.sampling and eye.tap is not None:
                eye.tap.refilter(eye.program())
        if changed.service is not None:
            self._narrowed.add(changed.service.name)
        what = "refused connections" if changed.service is None else f"{changed.service.name}: connections"
        log.info("%s: watching one of %d", what, changed.sampling.share)

    def alarmed(self, eye: object) -> bool:
        """Whether the kernel reported trouble with this tap: the interface went down, or is gone."""
        return isinstance(eye, _Eye) and eye.tap is not None and eye.tap.failed()

    def care(self, now: float) -> dict[str, tuple[str | None, int]]:
        """For each service: why it is blind (or None), and how many frames were dropped since the last call."""
        found: dict[str, tuple[str | None, int]] = {}
        for eye in self._eyes:
            if eye.interface is None or eye.service is None:
                continue
            why = down(eye.interface, eye.tap.index if eye.tap is not None else 0)
            if eye.tap is not None and why is not None and "gone" in why:
                self._close(eye)
            elif eye.tap is None and why is None:
                why = self._try_open(eye)
            drops = eye.tap.drops() if eye.tap is not None else 0
            before, dropped = found.get(eye.service.name, ("", 0))
            blind = None if why is None or before is None else ", ".join(filter(None, (before, why)))
            found[eye.service.name] = (blind, dropped + drops)
        return found

    def share(self, service: str) -> int:
        """One of how many connections of a service is watched."""
        return self._sampling[service].share

    def close(self) -> None:
        for eye in self._all:
            self._close(eye)

    def _try_open(self, eye: _Eye) -> str | None:
        """Why it cannot be opened, if so. Raises CaptureError where no tap can be."""
        try:
            eye.tap = Tap(eye.interface, eye.program())
        except CaptureError as error:
            if eye.interface is None or "permission" in str(error):
                raise
            log.warning("%s", error)
            return str(error)
        self._selector.register(eye.tap, selectors.EVENT_READ, eye)
        return None

    def _close(self, eye: _Eye) -> None:
        if eye.tap is not None:
            self._selector.unregister(eye.tap)
            eye.tap.close()
            eye.tap = None


class Bypass:
    """Blindness that no interface shows: the NAT forwards a service's packets and the capture sees none of them.

    A wrong ``client_interface``, a second way for the clients, a port mirror that lost its tap. Touched by two threads;
    each touches whole values only.
    """

    def __init__(self) -> None:
        self.blind: dict[str, str] = {}
        self._before: dict[str, tuple[int, int]] = {}

    def compare(self, name: str, asked: int, seen: int) -> None:
        """The NAT's counter of packets that demand an answer, and the frames captured so far."""
        asked_before, seen_before = self._before.get(name, (asked, seen))
        forwarded, captured = asked - asked_before, seen - seen_before
        if captured > 0 or forwarded < 0:
            self.blind.pop(name, None)
        elif forwarded >= ENOUGH:
            self.blind[name] = (
                f"the NAT forwarded {forwarded} requests and none was captured: is client_interface right?"
            )
        if captured > 0 or forwarded < 0 or forwarded >= ENOUGH or name not in self._before:
            self._before[name] = (asked, seen)
