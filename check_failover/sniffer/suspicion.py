"""Stage 1: packets in, suspicion out. Pure; time comes with the packets.

A suspicion costs one probe, so the detectors are sensitive and stage 2 is strict. Their clocks run only while there is
demand: an idle night is no failure. The detectors (DESIGN, "When to suspect"):

- a refused SYN (RST, ICMP unreachable): at once
- a SYN without an answer and no packet at all from the server since: SRTT + 4 RTTVAR
- a request without a reply: 4 * p99 of that operation; bytes from the server on the same connection are progress. Not
  while the same operation, asked later, is answered to nearly everybody: then it is one slow query
- retransmissions of data: at least half of the active flows within 800 ms (Blink, NSDI 2019), or two on one flow while
  the server says nothing to anyone. What the server has acknowledged does not count: that client's own way is lossy
- error replies: the first one asks for a look, 20 % of the last 100 are a suspicion
- silence with no demand: one look after max(60 s, 10 * the usual gap)

A refuted suspicion doubles that detector's threshold for a while: a slow but honest server costs a handful of probes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator

from check_failover.model import Detector, Service, Suspicion, TrafficStats
from check_failover.sniffer.dialects import ALL, UNREADABLE, dialect_for
from check_failover.sniffer.flows import WINDOW, Flow, FlowKey, Request, Stuck
from check_failover.sniffer.packet import ACK, FIN, RST, SYN, TCP, UDP, Packet
from check_failover.sniffer.thresholds import ENCRYPTED_WAIT, Errors, Gaps, Quiet, RoundTrip, Scale

MAX_FLOWS = 20000
MAX_FRAMES = 5000
MAX_RECENT = 20000  # requests remembered for "asked since, answered since"
RECENT = 30.0  # seconds
AGAIN = 0.25  # seconds between two suspicions of one detector
REPLAY_AGE = 3.0  # seconds: an older SYN or datagram was given up or repeated by its sender
UDP_ELSEWHERE = 120.0  # seconds without a packet until conntrack forgets which server a client's port talks to
_OPAQUE = frozenset({"bytes", "encrypted"})  # operations of which nobody knows whether they want a reply
_NEARLY_ALL, _ENOUGH = 0.9, 500  # share of the requests asked later, and how many of these are looked at
_NEVER = float("inf")


class Watch:
    """Stage 1 of one service: feed it packets and moments, it answers with a Suspicion when there is one."""

    def __init__(self, service: Service) -> None:
        self._name = service.name
        self._proto = TCP if service.protocol == "tcp" else UDP
        self._address, self._port = service.address.packed, service.address.port
        self._servers = {(e.packed, e.port) for e in (service.primary, service.standby)}
        self._nat = service.source_nat is not None
        self._dialect = dialect_for(service)
        self._flows: OrderedDict[FlowKey, Flow] = OrderedDict()
        self._heap: list[tuple[float, int, FlowKey, Request]] = []
        self._count = 0
        self._recent: deque[Request] = deque(maxlen=MAX_RECENT)
        self._gaps: dict[str, Gaps] = {}
        self._round_trip = RoundTrip()
        self._scales = {detector: Scale() for detector in Detector}
        self._raised: dict[Detector, float] = {}
        self._errors = Errors()
        self._stuck = Stuck()
        self._quiet = Quiet()
        self._frames: OrderedDict[tuple[bytes, int, object], tuple[bytes, Packet]] = OrderedDict()
        # Flows that talk to another server than the target, with the ISN (TCP) or the time of the last packet (UDP).
        self._elsewhere: OrderedDict[FlowKey, float] = OrderedDict()
        self._server_spoke = 0.0
        self.lost_at = -_NEVER  # when the capture last dropped packets
        self._requests = self._replies = self._drops = 0
        self.rescued = 0

    # ------------------------------------------------------------ packets

    def packet(self, p: Packet, frame: bytes | None = None) -> Suspicion | None:
        """One packet of this service, or about it; others are ignored. ``frame`` is kept while it is unanswered."""
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
        self._quiet.heard(p.now)
        key = (p.src, p.sport)
        if key in self._elsewhere and self._is_elsewhere(key, p):
            return None
        if p.proto == UDP:
            self._datagram(key, p, frame)
            return None
        if p.flags & SYN:
            self._syn(key, p, frame)
            return None
        if p.flags & RST:
            self._drop(key)
            return None
        if not p.length and key not in self._flows:
            return None  # the end of a connection that is over, or a keep-alive of one that was never seen
        flow = self._flow(key)
        flow.spoke = p.now
        suspicion = self._data(flow, p) if p.length else None
        if p.flags & FIN:
            flow.client_done = True
            if not flow.open:
                self._drop(key)
        return suspicion

    def _is_elsewhere(self, key: FlowKey, p: Packet) -> bool:
        """Whether this client still talks to the other server; a new connection does not."""
        mark = self._elsewhere[key]
        if p.proto == UDP:
            stays = p.now - mark < UDP_ELSEWHERE
            self._elsewhere[key] = p.now
        else:
            stays = not p.flags & SYN or mark == p.seq
        if not stays:
            del self._elsewhere[key]
        return stays

    def _datagram(self, key: FlowKey, p: Packet, frame: bytes | None) -> None:
        flow = self._flow(key)
        flow.spoke = p.now
        fresh = flow.ask(flow.dialect.request(p.payload, p.length - len(p.payload)), p.now)
        self._opened(flow, fresh, p.now)
        if frame is not None:
            for request in fresh:
                self._keep((*key, request.key), frame, p)
        if not flow.open:
            self._drop(key)  # nothing in it was understood

    def _syn(self, key: FlowKey, p: Packet, frame: bytes | None) -> None:
        flow = self._flows.get(key)
        if flow is not None and flow.client.next == (p.seq + 1) & 0xFFFFFFFF:
            flow.spoke = p.now  # the same one again
            flow.twice = True
            return
        self._drop(key)  # the port is used anew: what was open belongs to the past
        flow = self._flow(key)
        flow.spoke = p.now
        flow.syn = (p.seq, p.now)
        flow.client.next = (p.seq + 1) & 0xFFFFFFFF
        self._opened(flow, flow.ask([("syn", "connect")], p.now), p.now)
        if frame is not None and not p.length:  # data in a SYN is Fast Open: never replayed
            self._keep((*key, "syn"), frame, p)

    def _data(self, flow: Flow, p: Packet) -> Suspicion | None:
        if flow.client.next is None and p.length == 1:
            flow.client.take(p.seq, p.payload, p.length)  # out of nowhere: a keep-alive of old
            return None
        segment = flow.client.take(p.seq, p.payload, p.length)
        if segment.repeated:
            if p.length == 1 or flow.acknowledged(p.seq, p.length):
                return None  # a keep-alive (RFC 9293, 3.8.4), or the client did not get the server's ACK
            self._stuck.repeated(flow.key, p.now)
            return self._retransmissions(flow.key, p.now)
        if segment.late:
            return None
        if segment.hole:
            flow.dialect.gap(from_client=True)
        if flow.syn is not None:  # its answer was not captured, but the client has one
            flow.give_up("syn")
            flow.syn = None
        self._opened(flow, flow.ask(flow.dialect.request(segment.new, segment.missing), p.now), p.now)
        return None

    def _opened(self, flow: Flow, requests: list[Request], now: float) -> None:
        for request in requests:
            self._recent.append(request)
            if request.key != "syn":
                self._requests += 1
            self._push(now + self._wait(request, now), flow.key, request)

    def _push(self, due: float, key: FlowKey, request: Request) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key, request))

    def _from_server(self, p: Packet, *, withheld: bool) -> Suspicion | None:
        key = (p.dst, p.dport)
        if key in self._elsewhere:
            if p.proto == UDP:
                self._elsewhere[key] = p.now
            return None
        flow = self._flows.get(key)
        if p.flags & RST and p.proto == TCP:
            return self._reset(flow, p, withheld=withheld)
        self._quiet.heard(p.now)
        self._server_spoke = p.now
        if flow is None:
            if not p.length or p.proto == UDP:
                return None
            flow = self._flow(key)  # the capture began in the middle of a connection
        self._stuck.moves(key)
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
                flow.give_up(ALL)  # a reply may be in what was not seen yet
            suspicion = self._closed(flow, p.now) or suspicion
        elif p.proto == UDP and not flow.open:
            self._drop(key)
        return suspicion

    def _accepted(self, flow: Flow, p: Packet) -> None:
        """A SYN-ACK."""
        if flow.syn is not None and not flow.twice:
            self._round_trip.add(p.now - flow.syn[1])
        flow.syn = None
        flow.give_up("syn")
        self._frames.pop((*flow.key, "syn"), None)
        flow.server.next = (p.seq + 1) & 0xFFFFFFFF

    def _replied(self, flow: Flow, p: Packet) -> Suspicion | None:
        flow.heard = p.now
        new, missing = p.payload, p.length - len(p.payload)
        if p.proto == TCP:
            segment = flow.server.take(p.seq, p.payload, p.length)
            if segment.repeated or segment.late:
                return None
            new, missing = segment.new, segment.missing
            if segment.hole:  # replies may have been in it
                flow.dialect.gap(from_client=False)
                flow.answer([UNREADABLE])
        suspicion = None
        for request, error in flow.answer(flow.dialect.reply(new, missing)):
            self._frames.pop((*flow.key, request.key), None)
            self._replies += 1
            self._errors.add(error)
            if error:
                suspicion = self._error(p.now) or suspicion
            else:
                self._gaps.setdefault(request.operation, Gaps()).add(p.now - request.asked)
        return suspicion

    def _reset(self, flow: Flow | None, p: Packet, *, withheld: bool) -> Suspicion | None:
        """A RST that answers a SYN is a refusal; any other one ends the connection and its requests."""
        if flow is None and withheld and self._nat and p.flags & ACK:
            syns = (f for f in reversed(self._flows.values()) if f.syn is not None)
            flow = next((f for f in syns if f.syn and p.ack == (f.syn[0] + 1) & 0xFFFFFFFF), None)
        if flow is None:
            return None
        if flow.syn is not None:
            if not p.flags & ACK or p.ack != (flow.syn[0] + 1) & 0xFFFFFFFF:
                return None
            asked = flow.syn[1]
            if not withheld:  # the client knows
                self._failed(flow)
            return self._raise(Detector.REFUSED, p.now, "connection refused", asked)
        if withheld:
            return None  # it will be seen once more, on its way to the client
        if flow.client_done:
            flow.give_up(ALL)
        return self._failed(flow, p.now, "reset")

    def _closed(self, flow: Flow, now: float) -> Suspicion | None:
        """The server closed in order. To a client that waits and did not close itself that is a failure."""
        for request in list(flow.open.values()):
            if flow.client_done or request.operation in _OPAQUE:
                flow.give_up(request.key)
        suspicion = self._failed(flow, now, "closed") if flow.open else None
        if flow.client_done:
            self._drop(flow.key)
        return suspicion

    def _failed(self, flow: Flow, now: float = 0.0, how: str = "") -> Suspicion | None:
        """The connection is over; what was asked there was asked in vain."""
        cut = list(flow.open.values())
        for request in cut:
            request.answered = False
        flow.open.clear()
        self._drop(flow.key)
        if not how or not cut:
            return None
        return self._unanswered(cut[-1], now, f"connection {how} with {len(cut)} requests open")

    def _unreachable(self, p: Packet) -> Suspicion | None:
        about_service = (p.dst, p.dport) == (self._address, self._port) or (p.dst, p.dport) in self._servers
        if p.proto != self._proto or not about_service:
            return None
        flow = self._flows.get((p.src, p.sport))
        if flow is None or not flow.open:
            return None  # nobody asked: forged, or long ago
        return self._raise(Detector.REFUSED, p.now, "ICMP unreachable", next(iter(flow.open.values())).asked)

    # ------------------------------------------------------------ moments

    def deadline(self) -> float | None:
        """The next moment at which ``tick`` may have something to say."""
        silence = self._quiet.due(self._scales[Detector.SILENCE])
        first = self._heap[0][0] if self._heap else None
        return min((moment for moment in (first, silence) if moment is not None), default=None)

    def tick(self, now: float) -> Suspicion | None:
        """Look at what is unanswered. Call it at ``deadline`` or later."""
        youngest: Request | None = None
        suspicion = None
        while self._heap and self._heap[0][0] <= now:
            _, _, key, request = heapq.heappop(self._heap)
            flow = self._flows.get(key)
            is_open = flow is not None and flow.open.get(request.key) is request
            if not is_open and not request.sent_on:
                continue
            age = now - request.asked
            due = max(request.asked, flow.heard if flow is not None and is_open else 0.0) + self._wait(request, now)
            if due > now:
                self._push(due, key, request)
                continue
            if age < RECENT:
                self._push(now + max(AGAIN, age / 4), key, request)
            elif flow is not None and is_open:  # the client has given up long ago
                del flow.open[request.key]
                if not flow.open and self._proto == UDP:
                    self._drop(key)
            if request.key == "syn":
                suspicion = self._mute(request, now) or suspicion
            elif youngest is None or request.asked > youngest.asked:
                youngest = request
        if youngest is not None:
            suspicion = self._unanswered(youngest, now) or suspicion
        return suspicion or self._silent(now)

    def _mute(self, request: Request, now: float) -> Suspicion | None:
        if self._server_spoke >= request.asked:
            return None  # the server speaks to others: a lost SYN, a flood, a full backlog that drains
        text = f"connection unanswered for {now - request.asked:.2f} s"
        return self._raise(Detector.UNANSWERED_SYN, now, text, request.asked)

    def _unanswered(self, request: Request, now: float, text: str = "") -> Suspicion | None:
        """A request that has waited long enough, or in vain."""
        if not self._ready(Detector.UNANSWERED_REQUEST, now):
            return None  # before anything is counted: there may be thousands
        if self._excused(request, now):
            return None
        asked, answered = self.since(request.asked)
        text = text or f"{asked - answered} of {asked} requests without reply for {now - request.asked:.2f} s"
        return self._raise(Detector.UNANSWERED_REQUEST, now, text, request.asked)

    def _excused(self, request: Request, now: float) -> bool:
        """Whether nearly all of the same operation that were asked later are answered: one slow query, not a hang."""
        answered = others = 0
        wait = self._wait(request, now)
        for other in reversed(self._recent):
            if other.asked < request.asked or others >= _ENOUGH:
                break
            waits = other.answered is None and now - other.asked < wait
            if other is not request and other.counts and other.operation == request.operation and not waits:
                others += 1
                answered += other.answered is True
        return others > 0 and answered >= _NEARLY_ALL * others

    def _silent(self, now: float) -> Suspicion | None:
        due = self._quiet.due(self._scales[Detector.SILENCE])
        if due is None or self._quiet.last is None or now < due:
            return None
        self._quiet.looked()
        return self._raise(Detector.SILENCE, now, f"no traffic for {now - self._quiet.last:.0f} s")

    def _retransmissions(self, key: FlowKey, now: float) -> Suspicion | None:
        if not self._ready(Detector.RETRANSMISSION, now):
            return None
        stuck = len(self._stuck)
        enough = stuck >= 2 * self._scales[Detector.RETRANSMISSION].now(now)
        if self._stuck.twice_since(key, self._server_spoke):
            text = "data sent three times and no packet from the server"
        elif enough and 2 * stuck >= (active := self._active(now)):
            text = f"{stuck} of {active} connections repeat data within {WINDOW} s"
        else:
            return None
        return self._raise(Detector.RETRANSMISSION, now, text)

    def _active(self, now: float) -> int:
        """Connections whose client spoke within the window; the newest stand last."""
        count = 0
        for flow in reversed(self._flows.values()):
            if flow.spoke is not None:
                if flow.spoke < now - WINDOW:
                    break
                count += 1
        return count

    def _error(self, now: float) -> Suspicion | None:
        text = self._errors.suspicious(now, self._scales[Detector.ERROR_SHARE].now(now))
        return None if text is None else self._raise(Detector.ERROR_SHARE, now, text)

    def _ready(self, detector: Detector, now: float) -> bool:
        """Whether this detector may speak again."""
        pause = AGAIN * (self._scales[detector].now(now) if detector is not Detector.REFUSED else 1.0)
        return now - self._raised.get(detector, -_NEVER) >= pause

    def _raise(self, detector: Detector, now: float, text: str, since: float | None = None) -> Suspicion | None:
        if not self._ready(detector, now):
            return None
        self._raised[detector] = now
        return Suspicion(self._name, detector, now, text, since)

    def _wait(self, request: Request, now: float) -> float:
        if request.key == "syn":
            return self._round_trip.wait() * self._scales[Detector.UNANSWERED_SYN].now(now)
        scale = self._scales[Detector.UNANSWERED_REQUEST].now(now)
        if request.operation == "encrypted":
            return ENCRYPTED_WAIT * scale
        return self._gaps.setdefault(request.operation, Gaps()).wait() * scale

    # ------------------------------------------------------------ what others tell and ask

    def refuted(self, detector: Detector, now: float) -> None:
        """A probe passed: be slower to suspect for a while."""
        self._scales[detector].double(now)

    def flipped(self, now: float) -> None:
        """Another server answers now: what was unanswered is not its fault, and open connections are not its own."""
        self._elsewhere.clear()
        if self._proto == TCP:
            for key, flow in self._flows.items():
                if flow.syn is None:
                    self._elsewhere[key] = -1
        self._flows.clear()
        self._frames.clear()
        self._heap.clear()
        self._recent.clear()
        self._errors = Errors()
        self._stuck.clear()
        self._raised.clear()
        self._server_spoke = now
        for detector in self._scales:
            self._scales[detector] = Scale()

    def lost(self, now: float, drops: int) -> None:
        """The capture dropped packets: replies may have been among them, so nothing open is evidence."""
        self._drops += drops
        self.lost_at = now
        for *_, request in self._heap:
            request.counts = request.counts and request.answered is True
        for flow in self._flows.values():
            flow.give_up(ALL)
            flow.syn = None
            flow.dialect.gap(from_client=True)
            flow.dialect.gap(from_client=False)
            flow.client.forget()
            flow.server.forget()
        self._heap.clear()
        self._frames.clear()
        self._stuck.clear()
        self._server_spoke = now

    def since(self, at: float) -> tuple[int, int]:
        """(requests asked since ``at``, of these usefully answered). Connections that got no answer count as asked."""
        asked = answered = 0
        for request in reversed(self._recent):
            if request.asked < at:
                break
            if request.counts:
                asked += 1
                answered += request.answered is True
        return asked, answered

    def unanswered(self, now: float) -> Iterator[tuple[bytes, Packet]]:
        """Captured first packets that nobody answered yet, oldest first: what can be sent on for their clients."""
        for whose, (frame, p) in list(self._frames.items()):
            flow = self._flows.get((p.src, p.sport))
            if now - p.now > REPLAY_AGE or flow is None or whose[2] not in flow.open:
                del self._frames[whose]
                continue
            yield frame, p

    def first_packet(self, client: bytes, port: int) -> tuple[bytes, Packet] | None:
        """The captured first packet of a client's connection, while nobody answered it."""
        flow = self._flows.get((client, port))
        return self._frames.get((client, port, "syn")) if flow is not None and flow.syn is not None else None

    def sent_on(self, p: Packet) -> None:
        """A first packet was sent to the other server: what comes of it says nothing about this one any more.

        That this one did not answer remains: else a service whose every client is rescued would never be suspected.
        """
        key = (p.src, p.sport)
        flow = self._flows.get(key)
        if flow is not None:
            for request in flow.open.values():
                request.answered, request.sent_on = False, True
                self._frames.pop((*key, request.key), None)
            flow.open.clear()
        self._drop(key)
        self._elsewhere[key] = p.seq if p.proto == TCP else p.now
        self._elsewhere.move_to_end(key)
        if len(self._elsewhere) > MAX_FLOWS:
            self._elsewhere.popitem(last=False)

    def stats(self, now: float) -> TrafficStats:
        """Numbers for ``check_failover_traffic``."""
        window = [r for r in self._recent if r.asked > now - 10.0 and r.key != "syn"]
        answered = [r for r in window if r.answered is not None]
        waiting = [r for r in self._recent if r.counts and r.answered is None and r.asked > now - RECENT]
        p50 = [g.p50 for g in self._gaps.values() if g.p50 is not None]
        p99 = [g.p99 for g in self._gaps.values() if g.p99 is not None]
        return TrafficStats(
            request_rate=round(len(window) / 10.0, 1),
            reply_rate=round(len(answered) / 10.0, 1),
            unanswered=len(waiting),
            oldest_unanswered=round(now - waiting[0].asked, 3) if waiting else 0.0,
            p50=max(p50) if p50 else None,
            p99=max(p99) if p99 else None,
            error_share=self._errors.share,
            requests=self._requests,
            replies=self._replies,
            rescued=self.rescued,
            drops=self._drops,
        )

    def mute_since(self, now: float) -> float:
        """For how long the server has said nothing to anyone, in seconds."""
        return now - self._server_spoke

    def usual(self) -> float | None:
        """The largest p99 of the operations seen, in seconds: what a probe may be expected to take."""
        known = [g.p99 for g in self._gaps.values() if g.p99 is not None]
        return max(known) if known else None

    # ------------------------------------------------------------ flows

    def _flow(self, key: FlowKey) -> Flow:
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                self._drop(next(iter(self._flows)))
            flow = self._flows[key] = Flow(key, self._dialect())
        else:
            self._flows.move_to_end(key)
        return flow

    def _keep(self, whose: tuple[bytes, int, object], frame: bytes, p: Packet) -> None:
        self._frames[whose] = (frame, p)
        if len(self._frames) > MAX_FRAMES:
            self._frames.popitem(last=False)

    def _drop(self, key: FlowKey) -> None:
        """Forget a flow; what is open there was given up: neither asked nor answered."""
        self._stuck.moves(key)
        flow = self._flows.pop(key, None)
        if flow is not None:
            for request in flow.open.values():
                request.counts = False
                self._frames.pop((*key, request.key), None)
