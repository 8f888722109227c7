"""Stage 1 of a service: packets in, suspicion out. Pure; the packets carry the time.

A suspicion costs one probe, so the detectors (``detectors``) are sensitive and stage 2 is strict. This module
interprets the packets: their connection, their requests and replies, the end of a connection.
"""

from collections.abc import Iterable

from check_failover.model import Service, Suspicion, TrafficStats
from check_failover.sniffer.stage1.detectors import NEVER, RECENT, Detectors
from check_failover.sniffer.stage1.dialects import dialect_for
from check_failover.sniffer.stage1.dialects.messages import ALL, UNREADABLE
from check_failover.sniffer.stage1.flows import Flow, FlowKey, Request
from check_failover.sniffer.stage1.flowtable import FlowTable
from check_failover.sniffer.stage1.packet import ACK, FIN, RST, SYN, TCP, UDP, Packet
from check_failover.sniffer.stage1.thresholds import MIN_WAIT

_OPAQUE = frozenset({"bytes", "encrypted"})  # operations that may or may not expect a reply


class TrafficMonitor:
    """Stage 1 of one service: ``packet`` and ``tick`` return a Suspicion when a detector raises one.

    ``flows`` has the connections and their first packets, ``detect`` the requests and thresholds.
    """

    def __init__(self, service: Service) -> None:
        self._proto = TCP if service.protocol == "tcp" else UDP
        self._address, self._port = service.address.packed, service.address.port
        self._servers = {(e.packed, e.port) for e in (service.primary, service.standby)}
        self._nat = service.source_nat is not None
        self.flows = FlowTable(dialect_for(service))
        self.detect = Detectors(service.name, self.flows)
        self.lost_at = NEVER  # when the capture last dropped packets
        self._requests = self._replies = self._drops = 0
        self.rescued = 0
        self.share = 1  # N, where the taps capture one of N connections

    # ------------------------------------------------------------ packets

    def packet(self, p: Packet, frame: bytes | None = None) -> Suspicion | None:
        """Feed one packet; packets of other services are ignored. ``frame`` is kept while it is unanswered."""
        if p.unreachable:
            return self._unreachable(p)
        if p.proto != self._proto:
            return None
        if p.dport == self._port and p.dst == self._address:
            return self._from_client(p, frame)
        if p.sport == self._port and p.src == self._address:
            return self._from_server(p, withheld=False)
        if (p.src, p.sport) in self._servers and p.flags & RST:
            return self._from_server(p, withheld=True)
        return None

    def _from_client(self, p: Packet, frame: bytes | None) -> Suspicion | None:
        key = (p.src, p.sport)
        if self.flows.asks_elsewhere(key, p):
            return None
        self.detect.quiet.traffic(p.now)
        if p.proto == UDP:
            self._datagram(key, p, frame)
            return None
        if p.flags & SYN:
            self._syn(key, p, frame)
            return None
        if p.flags & RST:
            self.flows.drop(key)
            return None
        if not p.length and key not in self.flows:
            return None  # the last ACK of a closed connection, or a keep-alive of an unknown one
        flow = self.flows.at(key)
        flow.client_seen = p.now
        suspicion = self._data(flow, p) if p.length else None
        if p.flags & FIN:
            flow.client_fin = True
            if not flow.open:
                self.flows.drop(key)
        return suspicion

    def _datagram(self, key: FlowKey, p: Packet, frame: bytes | None) -> None:
        flow = self.flows.at(key)
        flow.client_seen = p.now
        fresh = flow.ask(flow.dialect.request(p.payload, p.length - len(p.payload)), p.now)
        self._opened(fresh, p.now)
        if frame is not None:
            for request in fresh:
                self.flows.keep((*key, request.key), frame, p)
        if not flow.open:
            self.flows.drop(key)  # the dialect found no request

    def _syn(self, key: FlowKey, p: Packet, frame: bytes | None) -> None:
        flow = self.flows.get(key)
        if flow is not None and flow.client.next == (p.seq + 1) & 0xFFFFFFFF:
            flow.client_seen = p.now  # a retransmission
            flow.syn_repeated = True
            return
        self.flows.drop(key)  # the client reuses the port for a new connection
        flow = self.flows.at(key)
        flow.client_seen = p.now
        self.flows.connects(flow, p.seq, p.now)
        flow.client.next = (p.seq + 1) & 0xFFFFFFFF
        self._opened(flow.ask([("syn", "connect")], p.now), p.now)
        if frame is not None and not p.length:  # a SYN with data (TCP Fast Open) is never replayed
            self.flows.keep((*key, "syn"), frame, p)

    def _data(self, flow: Flow, p: Packet) -> Suspicion | None:
        if flow.client.next is None and p.length == 1:
            flow.client.take(p.seq, p.payload, p.length)  # a keep-alive of a connection whose start was not captured
            return None
        end = (p.seq + p.length) & 0xFFFFFFFF
        segment = flow.client.take(p.seq, p.payload, p.length)
        if segment.repeated:
            if p.length == 1 or flow.acknowledged(p.seq, p.length):
                return None  # a keep-alive (RFC 9293, 3.8.4), or the server's ACK was lost on the client's side
            return self.detect.repeated(flow.key, p.now)
        if segment.late:
            return None
        if segment.hole:
            flow.dialect.resync(from_client=True)
        if flow.syn is not None:  # the client sends data, so it received a SYN-ACK that was not captured
            flow.give_up("syn")
            flow.syn = None
        self._opened(flow.ask(flow.dialect.request(segment.new, segment.missing), p.now, end), p.now)
        return None

    def _opened(self, requests: list[Request], now: float) -> None:
        for request in requests:
            self._requests += request.key != "syn"
            self.detect.opened(request, now)

    def _from_server(self, p: Packet, *, withheld: bool) -> Suspicion | None:
        key = (p.dst, p.dport)
        if self.flows.answers_elsewhere(key, p):
            return None
        flow = self.flows.get(key)
        if p.flags & RST and p.proto == TCP:
            return self._reset(flow, p, withheld=withheld)
        self.detect.quiet.traffic(p.now)
        self.detect.server_seen = p.now
        if flow is None:
            if not p.length or p.proto == UDP:
                return None
            flow = self.flows.at(key)  # the capture began during this connection
        self.flows.stalled.progress(key)
        if p.proto == TCP and p.flags & ACK:
            if flow.syn is not None and p.flags & SYN and p.ack == (flow.syn[0] + 1) & 0xFFFFFFFF:
                self._accepted(flow, p)
                return None
            flow.acked = p.ack
            if flow.client.next is None:
                flow.client.next = p.ack
        suspicion = self._replied(flow, p) if p.length or p.proto == UDP else None
        if p.flags & FIN:
            if flow.server.next not in (None, (p.seq + p.length) & 0xFFFFFFFF):
                flow.give_up(ALL)  # a packet that was not captured may hold the reply
            suspicion = self._closed(flow, p.now) or suspicion
        elif p.proto == UDP and not flow.open:
            self.flows.drop(key)
        return suspicion

    def _accepted(self, flow: Flow, p: Packet) -> None:
        """A SYN-ACK."""
        if flow.syn is not None and not flow.syn_repeated:
            self.detect.round_trip.add(p.now - flow.syn[1])
        flow.syn, flow.acked = None, p.ack
        flow.give_up("syn")
        self.flows.frames.pop((*flow.key, "syn"), None)
        flow.server.next = (p.seq + 1) & 0xFFFFFFFF

    def _replied(self, flow: Flow, p: Packet) -> Suspicion | None:
        flow.last_payload = flow.client_seen = p.now
        self.flows.at(flow.key)  # it is active
        self.detect.progress(flow)
        new, missing = p.payload, p.length - len(p.payload)
        if p.proto == TCP:
            segment = flow.server.take(p.seq, p.payload, p.length)
            if segment.repeated or segment.late:
                return None
            new, missing = segment.new, segment.missing
            if segment.hole:  # the hole may have held replies
                flow.dialect.resync(from_client=False)
                flow.answer([UNREADABLE])
        suspicion = None
        for request, error in flow.answer(flow.dialect.reply(new, missing)):
            self.flows.frames.pop((*flow.key, request.key), None)
            self._replies += 1
            suspicion = self.detect.replied(request, error, p.now) or suspicion
        return suspicion

    def _reset(self, flow: Flow | None, p: Packet, *, withheld: bool) -> Suspicion | None:
        """A RST that answers a SYN is a refusal; any other RST ends the connection and its requests."""
        if flow is None and withheld and self._nat and p.flags & ACK:
            flow = self.flows.by_syn(p.ack)
        if flow is None:
            return None
        if flow.syn is not None:
            if not p.flags & ACK or p.ack != (flow.syn[0] + 1) & 0xFFFFFFFF:
                return None
            asked = flow.syn[1]
            if not withheld:  # the client gets the RST
                self._failed(flow)
            return self.detect.refused(p.now, "connection refused", asked)
        if withheld:
            return None  # the client interface's tap will capture this RST as well
        if flow.client_fin or (flow.acked is None and p.proto == TCP):  # a connection that the server never had
            flow.give_up(ALL)
        return self._failed(flow, p.now, "reset")

    def _closed(self, flow: Flow, now: float) -> Suspicion | None:
        """The server sent FIN. For a client that still waits and did not send FIN itself, this is a failure."""
        for request in list(flow.open.values()):
            lost = request.end is not None and not flow.acknowledged(request.end, 0)
            if flow.client_fin or lost or request.operation in _OPAQUE:
                flow.give_up(request.key)
        suspicion = self._failed(flow, now, "closed") if flow.open else None
        if flow.client_fin:
            self.flows.drop(flow.key)
        return suspicion

    def _failed(self, flow: Flow, now: float = 0.0, how: str = "") -> Suspicion | None:
        """The connection is over: its open requests have failed."""
        cut = list(flow.open.values())
        for request in cut:
            request.answered = False
        flow.open.clear()
        self.flows.drop(flow.key)
        if not how or not cut:
            return None
        return self.detect.unanswered(cut[-1], now, f"connection {how} with {len(cut)} requests open")

    def _unreachable(self, p: Packet) -> Suspicion | None:
        about_service = (p.dst, p.dport) == (self._address, self._port) or (p.dst, p.dport) in self._servers
        if p.proto != self._proto or not about_service:
            return None
        flow = self.flows.get((p.src, p.sport))
        if flow is None or not flow.open:
            return None  # no open request: the error is forged or too late
        return self.detect.refused(p.now, "ICMP unreachable", next(iter(flow.open.values())).asked)

    # ------------------------------------------------------------ moments

    def deadline(self) -> float | None:
        """The next moment at which ``tick`` may raise a suspicion."""
        return self.detect.deadline()

    def tick(self, now: float) -> Suspicion | None:
        """Check the unanswered requests. Call it at ``deadline`` or later."""
        return self.detect.tick(now, datagrams=self._proto == UDP)

    # ------------------------------------------------------------ commands

    def flipped(self, now: float) -> None:
        """Another server serves now: open requests and connections do not belong to it."""
        self.flows.flipped(self._proto, now)
        self.detect.flipped(now)

    def list_elsewhere(self, others: Iterable[FlowKey], asked: float, *, complete: bool) -> None:
        """Conntrack's list of the flows that use another server (see ``FlowTable``): these are no evidence."""
        if self.flows.list_elsewhere(others, asked, complete=complete):
            self.detect.recent.clear()  # some of it was about another server

    def lost(self, now: float, drops: int) -> None:
        """The capture dropped packets: these may have been replies, so no open request counts as evidence."""
        self._drops += drops
        self.lost_at = now
        self.detect.lost(now)
        self.flows.lost()

    # ------------------------------------------------------------ queries

    def overdue(self, now: float) -> list[list[tuple[bytes, Packet]]]:
        """The first packets of each overdue flow: a healthy server would have answered, this one answers no client.

        All first packets of such a flow are returned, young ones too: one server must answer all requests of a flow.
        """
        mute = now - self.detect.server_seen  # seconds since its last packet to any client
        if mute < MIN_WAIT:
            return []
        flows: dict[FlowKey, list[tuple[bytes, Packet]]] = {}
        for frame, p in self.flows.unanswered(now):
            flows.setdefault((p.src, p.sport), []).append((frame, p))
        return [first for key, first in flows.items() if self._is_overdue(key, now, mute)]

    def _is_overdue(self, key: FlowKey, now: float, mute: float) -> bool:
        flow = self.flows.get(key)
        waiting = () if flow is None else flow.open.values()
        return any(min(mute, now - request.asked) >= self.detect.patience(request) for request in waiting)

    def stats(self, now: float) -> TrafficStats:
        """The numbers that ``check_failover_traffic`` shows."""
        window = [r for r in self.detect.recent if r.asked > now - 10.0 and r.key != "syn"]
        answered = [r for r in window if r.answered is not None]
        waiting = [r for r in self.detect.recent if r.counts and r.answered is None and r.asked > now - RECENT]
        return TrafficStats(
            request_rate=round(self.share * len(window) / 10.0, 1),
            reply_rate=round(self.share * len(answered) / 10.0, 1),
            unanswered=len(waiting),
            oldest_unanswered=round(now - waiting[0].asked, 3) if waiting else 0.0,
            p50=max((g.p50 for g in self.detect.reply_times.values() if g.p50 is not None), default=None),
            p99=self.usual(),
            error_share=self.detect.error_share,
            requests=self._requests,
            replies=self._replies,
            rescued=self.rescued,
            drops=self._drops,
            share=self.share,
        )

    def usual(self) -> float | None:
        """The largest p99 of the operations seen, in seconds: the expected upper duration of a probe."""
        return max((g.p99 for g in self.detect.reply_times.values() if g.p99 is not None), default=None)
