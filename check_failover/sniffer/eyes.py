"""All taps of the sniffer: one for each client interface and service, one for faults on every interface.

Cost must not grow with traffic: above ``BUDGET`` frames a second a tap's filter keeps only one of two, four, ...
connections (whole ones, by bits of the client's port), and goes back when it is calm.

RSTs to SYNs never reach the client interface, because the redirector withholds them; the faults tap sees them come in
from the servers.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from check_failover.config import Config
from check_failover.model import Service
from check_failover.sniffer import bpf
from check_failover.sniffer.capture import CaptureError, Tap, down
from check_failover.sniffer.packet import Packet, parse
from check_failover.sniffer.sentry import Sentry

BUDGET = 4000  # frames a second and tap
CALM = 1000  # below this many kept frames a second sampling is halved
MAX_SAMPLE = 8  # bits
ENOUGH = 50  # requests forwarded without one captured: sampling at its thinnest would have shown some flows by then

log = logging.getLogger("failover-sniffer")


@dataclass(slots=True)
class _Eye:
    interface: str
    service: Service
    tap: Tap | None = None
    sample: int = 0
    counted: float = 0.0
    calm: int = 0


class Eyes:
    """Owns the taps. Interfaces may go and come back; a service is blind when none of them sees."""

    def __init__(self, config: Config, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._eyes = [
            _Eye(interface, service) for interface in config.controller.client_interfaces for service in config.services
        ]
        self._faults: Tap | None = None

    def open(self) -> None:
        """Open every tap that can be opened. Raises CaptureError when there is no permission at all."""
        self._faults = Tap(None, bpf.faults_filter())
        self._selector.register(self._faults, selectors.EVENT_READ, self._faults)
        for eye in self._eyes:
            self._try_open(eye)

    def read(self, data: object, sentries: Mapping[str, Sentry]) -> Iterator[tuple[Sentry, Packet, bytes]]:
        """The packets that wait at one tap, each with the sentry it concerns."""
        now = time.monotonic()
        if data is self._faults and self._faults is not None:
            for frame in self._faults.frames():
                packet = parse(frame, now)
                if packet is not None:
                    for sentry in sentries.values():
                        yield sentry, packet, frame
            return
        if not isinstance(data, _Eye) or data.tap is None:
            return
        sentry = sentries[data.service.name]
        try:
            for frame in data.tap.frames():
                packet = parse(frame, now)
                if packet is not None:
                    yield sentry, packet, frame
        except CaptureError as error:
            log.warning("%s", error)
            self._close(data)

    def care(self, now: float) -> dict[str, tuple[str | None, int]]:
        """For each service: why it is blind (or None), and how many frames were dropped since the last call."""
        found: dict[str, tuple[str | None, int]] = {}
        for eye in self._eyes:
            why = down(eye.interface)
            if eye.tap is not None and why is not None and "gone" in why:
                self._close(eye)
            elif eye.tap is None and why is None:
                self._try_open(eye)
            drops = self._count(eye, now)
            before, dropped = found.get(eye.service.name, ("", 0))
            blind = None if why is None or before is None else ", ".join(filter(None, (before, why)))
            found[eye.service.name] = (blind, dropped + drops)
        return found

    def sampling(self) -> bool:
        """Whether any tap keeps only some of the connections."""
        return any(eye.sample for eye in self._eyes)

    def close(self) -> None:
        for eye in self._eyes:
            self._close(eye)
        if self._faults is not None:
            self._selector.unregister(self._faults)
            self._faults.close()
            self._faults = None

    def _try_open(self, eye: _Eye) -> None:
        try:
            eye.tap = Tap(eye.interface, bpf.clients_filter(eye.service, eye.sample))
        except CaptureError as error:
            if "permission" in str(error):
                raise
            log.warning("%s: %s", eye.service.name, error)
            return
        self._selector.register(eye.tap, selectors.EVENT_READ, eye)

    def _close(self, eye: _Eye) -> None:
        if eye.tap is not None:
            self._selector.unregister(eye.tap)
            eye.tap.close()
            eye.tap = None

    def _count(self, eye: _Eye, now: float) -> int:
        """Drops since the last call; adapts the sampling to the rate."""
        if eye.tap is None:
            return 0
        frames, drops = eye.tap.drops()
        rate = frames / max(0.1, now - eye.counted) if eye.counted else 0.0
        eye.counted = now
        eye.calm = eye.calm + 1 if rate < CALM else 0
        sample = eye.sample
        if rate > BUDGET and eye.sample < MAX_SAMPLE:
            sample += max(1, int(rate / BUDGET).bit_length() - 1)
        elif eye.sample and eye.calm >= 10:
            sample, eye.calm = sample - 1, 0
        if sample != eye.sample:
            eye.sample = min(sample, MAX_SAMPLE)
            eye.tap.refilter(bpf.clients_filter(eye.service, eye.sample))
            log.info("%s: watching one of %d connections", eye.service.name, 1 << eye.sample)
        return drops


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
