"""Stage 1: packets in, suspicion out. Pure; time comes with the packets.

A suspicion costs one probe, so the detectors are sensitive and stage 2 is strict. Their clocks run only while there is
demand: an idle night is no failure. The detectors (DESIGN, "When to suspect"):

- a refused SYN (RST, ICMP unreachable): at once
- a SYN without an answer and no packet at all from the server since: SRTT + 4 RTTVAR
- a request without a reply: 4 * p99 of that operation; bytes from the server on the same connection are progress
- retransmissions: at least half of the active flows within 800 ms (Blink, NSDI 2019), or two on one flow while the
  server says nothing to anyone
- error replies: the first one asks for a look, 20 % of the last 100 are a suspicion
- silence with no demand: one look after max(60 s, 10 * the usual gap)

A refuted suspicion doubles that detector's threshold for a while: a slow but honest server costs a handful of probes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator

from check_failover.model import Detector, Service, Suspicion, TrafficStats
from check_failover.sniffer.dialects import dialect_for
from check_failover.sniffer.flows import Flow, FlowKey, Request
from check_failover.sniffer.packet import ACK, FIN, RST, SYN, TCP, UDP, Packet
from check_failover.sniffer.thresholds import ENCRYPTED_WAIT, Gaps, RoundTrip, Scale

MAX_FLOWS = 20000
MAX_RECENT = 20000  # requests remembered for "asked since, answered since"
RECENT = 30.0  # seconds
WINDOW = 0.8  # seconds, retransmissions (Blink)
ERRORS, ERROR_SHARE, ERRORS_LEAST = 100, 0.2, 5
SILENCE, SILENCE_GAPS = 60.0, 10.0
AGAIN = 0.25  # seconds between two suspicions of one detector
REPLAY_AGE = 3.0  # seconds: an older SYN or datagram was given up or repeated by its sender
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
        self._errors: deque[bool] = deque(maxlen=ERRORS)
        self._repeats: deque[tuple[float, FlowKey]] = deque(maxlen=1000)
        self._frames: OrderedDict[FlowKey, tuple[bytes, Packet]] = OrderedDict()
        self._elsewhere: OrderedDict[FlowKey, int] = OrderedDict()  # sent on to the other server; value: ISN
        self._server_spoke = 0.0
        self._last_seen: float | None = None
        self._usual_gap = 0.0
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
        self._seen(p.now)
        key = (p.src, p.sport)
        if key in self._elsewhere:
            if self._elsewhere[key] == p.seq or not p.flags & SYN:
                return None
            del self._elsewhere[key]
        flow = self._flow(key)
        flow.spoke = p.now
        if p.proto == UDP:
            self._opened(flow, flow.ask(flow.dialect.request(p.payload, p.length - len(p.payload)), p.now), p.now)
            if frame is not None and flow.open:
                self._keep(key, frame, p)
            return None
        if p.flags & SYN:
            return self._syn(flow, p, frame)
        if p.flags & RST:
            self._drop(key)
            return None
        if p.length:
            self._data(flow, p)
        if p.flags & FIN and not flow.open:
            self._drop(key)
        return self._retransmissions(p.now)

    def _syn(self, flow: Flow, p: Packet, frame: bytes | None) -> Suspicion | None:
        if flow.syn is not None and flow.syn[0] == p.seq:
            self._repeats.append((p.now, flow.key))
            return self._retransmissions(p.now)
        if flow.open or flow.client.next is not None:  # the port is used anew: what was open belongs to the past
            self._drop(flow.key)
            flow = self._flow(flow.key)
            flow.spoke = p.now
        flow.syn = (p.seq, p.now)
        flow.client.next = (p.seq + 1) & 0xFFFFFFFF
        request = Request("syn", "connect", p.now)
        flow.open["syn"] = request
        self._opened(flow, [request], p.now)
        if frame is not None and not p.length:  # data in a SYN is Fast Open: never replayed
            self._keep(flow.key, frame, p)
        return None

    def _data(self, flow: Flow, p: Packet) -> None:
        new, missing, hole, repeated = flow.client.take(p.seq, p.payload, p.length)
        if repeated:
            if p.length > 1:  # one old byte is a keep-alive (RFC 9293, 3.8.4)
                self._repeats.append((p.now, flow.key))
            return
        if hole:
            flow.dialect.gap(from_client=True)
        if "syn" in flow.open:  # its answer was not captured, but the client has one
            flow.open.pop("syn").counts = False
            flow.syn = None
        self._opened(flow, flow.ask(flow.dialect.request(new, missing), p.now), p.now)

    def _opened(self, flow: Flow, requests: list[Request], now: float) -> None:
        for request in requests:
            self._recent.append(request)
            if request.key != "syn":
                self._requests += 1
            self._count += 1
            heapq.heappush(self._heap, (now + self._wait(request, now), self._count, flow.key, request))

    def _from_server(self, p: Packet, *, withheld: bool) -> Suspicion | None:
        key = (p.dst, p.dport)
        if key in self._elsewhere:
            return None
        flow = self._flows.get(key)
        if p.flags & RST and p.proto == TCP:
            return self._reset(flow, p, withheld=withheld)
        self._seen(p.now)
        self._server_spoke = p.now
        if flow is None:
            if not p.length:
                return None
            flow = self._flow(key)  # the capture began in the middle of a connection
        if p.flags & SYN and flow.syn is not None:
            self._round_trip.add(p.now - flow.syn[1])
            flow.syn = None
            request = flow.open.pop("syn", None)
            if request is not None:
                request.counts = False
            self._frames.pop(key, None)
            flow.server.next = (p.seq + 1) & 0xFFFFFFFF
            return None
        suspicion = self._replied(flow, p) if p.length or p.proto == UDP else None
        if p.flags & FIN:
            self._closed(flow)
        return suspicion

    def _replied(self, flow: Flow, p: Packet) -> Suspicion | None:
        flow.heard = p.now
        self._frames.pop(flow.key, None)
        if p.proto == UDP:
            new, missing = p.payload, p.length - len(p.payload)
        else:
            new, missing, hole, repeated = flow.server.take(p.seq, p.payload, p.length)
            if repeated:
                return None
            if hole:
                flow.dialect.gap(from_client=False)
        suspicion = None
        for request, error in flow.answer(flow.dialect.reply(new, missing)):
            self._replies += 1
            self._errors.append(error)
            if error:
                suspicion = self._error(p.now)
            else:
                self._gaps.setdefault(request.operation, Gaps()).add(p.now - request.asked)
        return suspicion

    def _reset(self, flow: Flow | None, p: Packet, *, withheld: bool) -> Suspicion | None:
        """A RST that answers a SYN is a refusal; any other one ends the connection and its requests."""
        if flow is None:
            if withheld and self._nat and any(f.syn for f in self._flows.values()):
                return self._raise(Detector.REFUSED, p.now, "connection refused")
            return None
        if flow.syn is not None and p.flags & ACK and p.ack == (flow.syn[0] + 1) & 0xFFFFFFFF:
            return self._raise(Detector.REFUSED, p.now, "connection refused")
        if not withheld and flow.syn is None:
            cut = [request for request in flow.open.values() if request.key != "syn"]
            self._drop(flow.key)
            if cut:
                return self._raise(Detector.UNANSWERED_REQUEST, p.now, f"reset with {len(cut)} requests open")
        return None

    def _unreachable(self, p: Packet) -> Suspicion | None:
        about_service = (p.dst, p.dport) == (self._address, self._port) or (p.dst, p.dport) in self._servers
        if p.proto != self._proto or not about_service:
            return None
        flow = self._flows.get((p.src, p.sport))
        if flow is None or not flow.open:
            return None  # nobody asked: forged, or long ago
        return self._raise(Detector.REFUSED, p.now, "ICMP unreachable")

    # ------------------------------------------------------------ moments

    def deadline(self) -> float | None:
        """The next moment at which ``tick`` may have something to say."""
        silence = None
        if self._last_seen is not None:
            silence = max(self._last_seen, self._raised.get(Detector.SILENCE, 0.0)) + self._silence()
        first = self._heap[0][0] if self._heap else None
        moments = [moment for moment in (first, silence) if moment is not None]
        return min(moments) if moments else None

    def tick(self, now: float) -> Suspicion | None:
        """Look at what is unanswered. Call it at ``deadline`` or later."""
        suspicion = None
        while self._heap and self._heap[0][0] <= now:
            _, number, key, request = heapq.heappop(self._heap)
            flow = self._flows.get(key)
            if flow is None or flow.open.get(request.key) is not request:
                continue
            since = max(request.asked, flow.heard)
            due = since + self._wait(request, now)
            if due > now:
                heapq.heappush(self._heap, (due, number, key, request))
                continue
            if now - request.asked < RECENT:
                heapq.heappush(self._heap, (now + AGAIN, number, key, request))
            else:  # the client has given up long ago
                flow.open.pop(request.key, None)
            suspicion = self._overdue(request, now) or suspicion
        return suspicion or self._silent(now)

    def _overdue(self, request: Request, now: float) -> Suspicion | None:
        if request.key == "syn":
            if self._server_spoke >= request.asked:
                return None  # the server speaks to others: a lost SYN, a flood, a full backlog that drains
            return self._raise(Detector.UNANSWERED_SYN, now, f"connection unanswered for {now - request.asked:.2f} s")
        asked, answered = self.since(request.asked)
        text = f"{asked - answered} of {asked} requests without reply for {now - request.asked:.2f} s"
        return self._raise(Detector.UNANSWERED_REQUEST, now, text, request.asked)

    def _silent(self, now: float) -> Suspicion | None:
        if self._last_seen is None:
            return None
        quiet = now - max(self._last_seen, self._raised.get(Detector.SILENCE, 0.0))
        if quiet < self._silence():
            return None
        return self._raise(Detector.SILENCE, now, f"no traffic for {now - self._last_seen:.0f} s")

    def _silence(self) -> float:
        return max(SILENCE, SILENCE_GAPS * self._usual_gap) * self._scales[Detector.SILENCE].now(0.0)

    def _retransmissions(self, now: float) -> Suspicion | None:
        while self._repeats and self._repeats[0][0] < now - WINDOW:
            self._repeats.popleft()
        if len(self._repeats) < 2:
            return None
        flows = {key for _, key in self._repeats}
        scale = self._scales[Detector.RETRANSMISSION].now(now)
        mute = self._server_spoke < self._repeats[0][0] and len(self._repeats) > len(flows)
        active = self._active(now) if len(flows) >= 2 * scale else 0
        if mute or (active and len(flows) * 2 >= active):
            text = f"{len(self._repeats)} retransmissions of {len(flows)} connections within {WINDOW} s"
            return self._raise(Detector.RETRANSMISSION, now, text)
        return None

    def _active(self, now: float) -> int:
        """Connections whose client spoke within the window; the newest stand last."""
        count = 0
        for flow in reversed(self._flows.values()):
            if flow.spoke < now - WINDOW:
                break
            count += 1
        return count

    def _error(self, now: float) -> Suspicion | None:
        errors = sum(self._errors)
        share = errors / len(self._errors)
        first = Detector.ERROR_SHARE not in self._raised
        least = ERRORS_LEAST * self._scales[Detector.ERROR_SHARE].now(now)
        if not first and (errors < least or share < ERROR_SHARE):
            return None
        return self._raise(Detector.ERROR_SHARE, now, f"{errors} of the last {len(self._errors)} replies are errors")

    def _raise(self, detector: Detector, now: float, text: str, since: float | None = None) -> Suspicion | None:
        pause = AGAIN * (self._scales[detector].now(now) if detector is not Detector.REFUSED else 1.0)
        if now - self._raised.get(detector, -_NEVER) < pause:
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
        """Another server answers now: what was unanswered is not its fault."""
        for flow in self._flows.values():
            flow.open.clear()
        self._elsewhere.clear()
        self._heap.clear()
        self._recent.clear()
        self._errors.clear()
        self._repeats.clear()
        self._raised.clear()
        self._server_spoke = now
        for detector in self._scales:
            self._scales[detector] = Scale()

    def lost(self, now: float, drops: int) -> None:
        """The capture dropped packets: replies may have been among them, so nothing open is evidence."""
        self._drops += drops
        for flow in self._flows.values():
            flow.open.clear()
            flow.dialect.gap(from_client=True)
            flow.dialect.gap(from_client=False)
            flow.client.next = flow.server.next = None
        self._heap.clear()
        self._repeats.clear()
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
        for key, (frame, p) in list(self._frames.items()):
            flow = self._flows.get(key)
            if now - p.now > REPLAY_AGE or flow is None or (p.proto == TCP and flow.syn is None):
                del self._frames[key]
                continue
            yield frame, p

    def first_packet(self, client: bytes, port: int) -> tuple[bytes, Packet] | None:
        """The captured first packet of a client's connection, while nobody answered it."""
        flow = self._flows.get((client, port))
        return self._frames.get((client, port)) if flow is not None and flow.syn is not None else None

    def sent_on(self, p: Packet) -> None:
        """A first packet was sent to the other server: what comes of it says nothing about this one."""
        key = (p.src, p.sport)
        self._drop(key)
        if p.proto == TCP:
            self._elsewhere[key] = p.seq
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
            error_share=sum(self._errors) / len(self._errors) if self._errors else 0.0,
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
                old, _ = self._flows.popitem(last=False)
                self._frames.pop(old, None)
            flow = self._flows[key] = Flow(key, self._dialect())
        else:
            self._flows.move_to_end(key)
        return flow

    def _keep(self, key: FlowKey, frame: bytes, p: Packet) -> None:
        self._frames[key] = (frame, p)
        if len(self._frames) > MAX_FLOWS // 4:
            self._frames.popitem(last=False)

    def _drop(self, key: FlowKey) -> None:
        self._frames.pop(key, None)
        flow = self._flows.pop(key, None)
        if flow is not None:
            for request in flow.open.values():  # the client gave up: neither asked nor answered
                request.counts = False

    def _closed(self, flow: Flow) -> None:
        """The server closed in order: an answer to whatever was open, unless it was a request."""
        if not flow.open:
            return
        for request in flow.open.values():
            request.answered = False
        flow.open.clear()

    def _seen(self, now: float) -> None:
        if self._last_seen is not None and now > self._last_seen:
            gap = now - self._last_seen
            self._usual_gap = gap if not self._usual_gap else 0.95 * self._usual_gap + 0.05 * gap
        self._last_seen = now
