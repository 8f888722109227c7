"""Serve single connections from the standby before anything is decided, and replay what is unanswered after a flip.

A proxy hides a refused or slow connect by trying the next server; on a NAT path nobody does. When a client's SYN is
refused (the RST is withheld) or stays unanswered while the server says nothing to anyone, its conntrack entry is
forgotten and the SYN is sent once more, marked so that it goes to the standby. The redirect has not moved; only a
connection that would have failed is served. Never when the standby is not known healthy, and rate-limited.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from check_failover.config import Config
from check_failover.control import Message
from check_failover.model import MARK_REPLAY, MARK_RESCUE, Target
from check_failover.sniffer.packet import Packet
from check_failover.sniffer.send import Sender, SendError
from check_failover.sniffer.sentry import Sentry

WAIT = 0.1  # seconds without an answer until a first packet is rescued
FRESH = 45.0  # seconds that a passed probe of the standby is good for
RATE = 500.0  # rescued connections a second and service, at most

log = logging.getLogger("failover-sniffer")
Ask = Callable[[Message], Message | None]


class Rescue:
    """``ask`` talks to the redirector (blocking, so in a thread); ``call`` brings results back to the loop."""

    def __init__(self, config: Config, ask: Ask, call: Callable[[Callable[[], None]], None]) -> None:
        self._nftables = config.controller.redirect == "nftables"  # others have no way to rescue: the flip must do
        self._ask, self._call = ask, call
        self._sender = Sender()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="rescue")
        self._tokens: dict[str, tuple[float, float]] = {}

    def refused(self, sentry: Sentry, reset: Packet) -> None:
        """A refused connection is rescued at once."""
        first = sentry.watch.first_packet(reset.dst, reset.dport)
        if first is not None and reset.ack == (first[1].seq + 1) & 0xFFFFFFFF:
            self._some(sentry, reset.now, [first])

    def overdue(self, sentry: Sentry, now: float) -> None:
        """First packets that nobody answers, while the server says nothing to anyone."""
        if sentry.watch.mute_since(now) >= WAIT:
            late = [first for first in sentry.watch.unanswered(now) if now - first[1].now >= WAIT]
            self._some(sentry, now, late)

    def replay(self, sentry: Sentry, now: float) -> None:
        """After a flip: first packets without an answer go to wherever the target is now."""
        if not self._nftables:
            return
        sent = 0
        for frame, packet in sentry.watch.unanswered(now):
            try:
                sent += self._sender.send(frame, packet, MARK_REPLAY)
            except SendError as error:
                log.error("%s", error)
                return
        if sent:
            log.info("%s: sent %d unanswered first packets to the new target", sentry.service.name, sent)

    def _some(self, sentry: Sentry, now: float, first: Sequence[tuple[bytes, Packet]]) -> None:
        if not first or not self._allowed(sentry, now):
            return
        for frame, packet in first:
            if not self._token(sentry.service.name, now):
                return
            sentry.watch.sent_on(packet)
            self._pool.submit(self._rescue, sentry, frame, packet)

    def _allowed(self, sentry: Sentry, now: float) -> bool:
        health = sentry.health[Target.STANDBY]
        return (
            self._nftables
            and sentry.service.policy.rescue
            and not sentry.service.policy.shadow
            and sentry.target is Target.PRIMARY
            and sentry.blind is None
            and health.ok is True
            and now - health.at < FRESH
        )

    def _rescue(self, sentry: Sentry, frame: bytes, packet: Packet) -> None:
        family = socket.AF_INET if len(packet.src) == 4 else socket.AF_INET6
        client = socket.inet_ntop(family, packet.src)
        name = sentry.service.name
        reply = self._ask({"verb": "forget", "service": name, "client": client, "port": packet.sport})
        if reply is None or not reply.get("forgotten"):
            return  # it has been answered meanwhile
        try:
            if self._sender.send(frame, packet, MARK_RESCUE):
                self._call(lambda: _count(sentry))
        except SendError as error:
            log.error("%s", error)

    def _token(self, name: str, now: float) -> bool:
        tokens, at = self._tokens.get(name, (RATE / 10, now))
        tokens = min(RATE / 10, tokens + (now - at) * RATE)
        self._tokens[name] = (max(0.0, tokens - 1.0), now)
        return tokens >= 1.0


def _count(sentry: Sentry) -> None:
    sentry.watch.rescued += 1
