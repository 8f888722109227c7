"""Serve single connections from the standby before a verdict, and replay unanswered first packets after a flip.

A proxy hides a refused or slow connect by trying the next server; on a NAT path the sniffer does this. When the server
refuses a client's SYN (the redirector withholds the RST), or leaves it unanswered while it answers no client at all,
the redirector deletes the conntrack entry, and the sniffer sends the SYN once more, marked for the standby. The
redirect does not move; only connections that would have failed are served. Rescues are rate-limited and need a
standby that is known to be healthy.

The redirector decides: conntrack shows whether the server answered meanwhile (a late SYN-ACK), and a hold, a running
sync or data that is too old forbid the standby (``decide.RESCUE``). The loop's thread sends the packet only after
that, and right after stage 1 has noted that this client talks to the standby now.

A connection that writes would split the data where the standby's copy is overwritten by the next sync
(``writes = "primary"``). There only sessions are rescued whose first packet shows that they only read; the others wait
for the verdict.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from check_failover.config import Config
from check_failover.control import Message
from check_failover.model import MARK_REPLAY, MARK_RESCUE, Target
from check_failover.sniffer.monitor import ServiceMonitor
from check_failover.sniffer.send import PacketSender, SendError
from check_failover.sniffer.stage1.dialects import only_reads
from check_failover.sniffer.stage1.flowtable import MAX_FRAMES, REPLAY_AGE
from check_failover.sniffer.stage1.packet import Packet

FRESH = 45.0  # seconds for which a passed probe shows a healthy standby
RATE = 500.0  # rescued connections per second and service, at most
PAUSE = 1.0  # seconds until the next request after the redirector refused a rescue

log = logging.getLogger("failover-sniffer")
Ask = Callable[[Message], Message | None]
First = list[tuple[bytes, Packet]]  # a flow's first packets, as captured


class Rescue:
    """``ask`` sends a request to the redirector and blocks; ``call`` runs a function in the loop's thread."""

    def __init__(self, config: Config, ask: Ask, call: Callable[[Callable[[], None]], None]) -> None:
        self._nftables = config.controller.redirect == "nftables"  # ipfilter cannot rescue one connection
        self._ask, self._call = ask, call
        self._sender = PacketSender()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="rescue")
        self._tokens: dict[str, tuple[float, float]] = {}
        self._tried: OrderedDict[Packet, None] = OrderedDict()  # each packet is tried once
        self._paused: dict[str, float] = {}
        self._refusals: dict[str, str] = {}  # service -> why the redirector refused last; it is logged once

    def refused(self, monitor: ServiceMonitor, reset: Packet) -> None:
        """Rescue a refused connection at once."""
        first = monitor.traffic.flows.first_packet(reset.dst, reset.dport)
        if first is not None and reset.ack == (first[1].seq + 1) & 0xFFFFFFFF and self._allowed(monitor, reset.now):
            self._submit(monitor, reset.now, [[first]])

    def overdue(self, monitor: ServiceMonitor, now: float) -> bool:
        """Rescue flows that a healthy server would have answered by now, while this one answers no client.

        Returns whether others may become overdue soon.
        """
        if not monitor.traffic.flows.frames or not self._allowed(monitor, now):
            return False
        self._submit(monitor, now, monitor.traffic.overdue(now))
        return bool(monitor.traffic.flows.frames)

    def replay(self, monitor: ServiceMonitor, now: float) -> None:
        """After a flip: send the unanswered first packets to the new target."""
        if not self._nftables:
            return
        sent = 0
        for frame, packet in monitor.traffic.flows.unanswered(now):
            try:
                sent += self._sender.send(frame, packet, MARK_REPLAY)
            except SendError as error:
                log.error("%s", error)
                return
        if sent:
            log.info("%s: sent %d unanswered first packets to the new target", monitor.service.name, sent)

    def _submit(self, monitor: ServiceMonitor, now: float, flows: Sequence[First]) -> None:
        for first in flows:
            packet = first[0][1]
            if packet in self._tried or (monitor.service.writes == "primary" and not _reads(monitor, first)):
                continue
            if not self._take_token(monitor.service.name, now):
                return
            self._tried[packet] = None
            if len(self._tried) > MAX_FRAMES:
                self._tried.popitem(last=False)
            self._pool.submit(self._request_forget, monitor, first)

    def _allowed(self, monitor: ServiceMonitor, now: float) -> bool:
        health = monitor.health[Target.STANDBY]
        return (
            self._nftables
            and monitor.service.policy.rescue
            and not monitor.service.policy.shadow
            and monitor.target is Target.PRIMARY
            and monitor.blind is None
            and health.ok is True
            and now - health.at < FRESH
            and now >= self._paused.get(monitor.service.name, now)
        )

    def _request_forget(self, monitor: ServiceMonitor, first: First) -> None:
        """Ask the redirector (pool's thread). Skip old packets: their clients gave up or have retransmitted."""
        name, packet = monitor.service.name, first[0][1]
        if time.monotonic() - packet.now > REPLAY_AGE:
            return
        client = str(ip_address(packet.src))
        message = {"verb": "forget", "service": name, "client": client, "port": packet.sport}
        reply = self._ask({**message, "reads": _reads(monitor, first)})
        if reply is None or reply.get("reason"):
            self._call(lambda: self._pause(name, "the redirector is away" if reply is None else str(reply["reason"])))
            return
        self._refusals.pop(name, None)
        if reply.get("forgotten"):  # otherwise the server has answered meanwhile
            self._call(lambda: self._send(monitor, first))

    def _pause(self, name: str, why: str) -> None:
        if self._refusals.get(name) != why:
            log.warning("%s: nothing is rescued for now: %s", name, why)
        self._refusals[name] = why
        self._paused[name] = time.monotonic() + PAUSE

    def _send(self, monitor: ServiceMonitor, first: First) -> None:
        """Send to the standby, unless a flip already did or the server has answered (loop's thread)."""
        waiting = [(frame, packet) for frame, packet in first if monitor.traffic.flows.waits(packet)]
        if not waiting or monitor.target is not Target.PRIMARY:
            return
        monitor.traffic.flows.sent_to_standby(waiting[0][1])
        try:
            if sum(self._sender.send(frame, packet, MARK_RESCUE) for frame, packet in waiting):
                monitor.traffic.rescued += 1
        except SendError as error:
            log.error("%s", error)

    def _take_token(self, name: str, now: float) -> bool:
        tokens, at = self._tokens.get(name, (RATE / 10, now))
        tokens = min(RATE / 10, tokens + (now - at) * RATE)
        self._tokens[name] = (max(0.0, tokens - 1.0), now)
        return tokens >= 1.0


def _reads(monitor: ServiceMonitor, first: First) -> bool:
    """Whether all that the client asked so far are reads, after which its session is over."""
    return all(only_reads(monitor.service, packet.payload) for _, packet in first)
