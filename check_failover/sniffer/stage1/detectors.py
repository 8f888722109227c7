"""The detectors of stage 1: unanswered, refused, repeated and failed requests raise a Suspicion. Pure.

Their clocks run only while there is demand: an idle night is no failure. The detectors and their thresholds:

- a refused SYN (RST, ICMP unreachable): at once
- a SYN without an answer, and no packet from the server to any client since: SRTT + 4 RTTVAR
- a request without a reply: 4 * p99 of that operation, 4 * p50 where several in a row have none. Bytes from the server
  on the same connection count as progress. No suspicion while nearly all later requests of the same operation are
  answered: then it is one slow query
- retransmissions of data: at least half of the active flows within 800 ms (Blink, NSDI 2019), or two on one flow while
  the server sends no packet. Data that the server has acknowledged does not count: the loss is on that client's path
- error replies: the first one, and 20 % of the last 100 of that operation
- silence without demand: one probe after max(60 s, 10 * the usual gap)

A refuted suspicion doubles the threshold for a while, so that a slow but working server gets only a few probes: for
that operation, that client, and requests that the server has acknowledged or not (``voices``). What one client sends
hides nothing from the others: a segment that never reaches the server, say, or an error that it provokes. While
several connections wait longer than usual, a probe goes out every five seconds whatever the thresholds.
"""

import heapq
from collections import defaultdict, deque
from itertools import count, islice, takewhile

from check_failover.model import Detector, Suspicion
from check_failover.sniffer.stage1 import thresholds
from check_failover.sniffer.stage1.flows import WINDOW, Flow, FlowKey, Request
from check_failover.sniffer.stage1.flowtable import FlowTable
from check_failover.sniffer.stage1.thresholds import ERROR_SHARE, Counters, Errors, Quiet, ReplyTimes, RoundTrip, Scale
from check_failover.sniffer.stage1.voices import Kind, Scales, client, weigh

MAX_RECENT = 20000  # requests remembered for ``since``
RECENT = 30.0  # seconds
OTHERS = 2.0  # seconds for which a reply to other clients shows that an error may be this client's own fault
MIN_INTERVAL = 0.25  # seconds between two suspicions of one detector
ANYWAY = 5.0  # seconds without a suspicion until several overdue connections raise one whatever the thresholds
MAX_KNOWN = 4096  # clients that the server has answered
MAX_PROVOKERS = 64  # clients whose errors are counted apart
_NEARLY_ALL, _ENOUGH = 0.9, 500  # share of the later requests, and how many of these are examined
NEVER = float("-inf")


class Detectors:
    """The detectors of one service, over its flows. Each method returns a Suspicion when it raises one."""

    def __init__(self, name: str, flows: FlowTable) -> None:
        self._name, self._flows = name, flows
        self._heap: list[tuple[float, int, Request]] = []
        self._count = count()
        self.recent: deque[Request] = deque(maxlen=MAX_RECENT)
        self.reply_times: dict[str, ReplyTimes] = defaultdict(ReplyTimes)
        self.round_trip = RoundTrip()
        self._errors: dict[str, Errors] = defaultdict(Errors)
        self._provokers: dict[tuple[str, bytes], Errors] = {}  # by operation and client, since a suspicion was refuted
        self.quiet = Quiet()
        self.server_seen = self._answered_at = 0.0
        self._known: dict[bytes, None] = {}  # clients that the server has answered: their addresses are not forged
        self._forget_suspicions()

    # ------------------------------------------------------------ open requests

    def opened(self, request: Request, now: float) -> None:
        """A client sent a request that expects a reply."""
        self.recent.append(request)
        times = self.reply_times[request.operation]
        times.asked(now)
        fixed = request.key == "syn" or request.operation == "encrypted"
        self._push(now + (self.patience(request) if fixed else times.usual()), request)

    def progress(self, flow: Flow) -> None:
        """The server sent payload on this connection, at least a part of a reply.

        For a request older than the run without replies it may be a kernel that empties its buffers.
        """
        for request in flow.open.values():
            times = self.reply_times[request.operation]
            if request.asked >= times.run_began:
                times.unanswered_run = 0

    def replied(self, request: Request, error: bool, now: float) -> Suspicion | None:
        """The server answered this request."""
        who, operation = client(request.flow[0]), request.operation
        if not error:
            self._answered_at = now
            self.reply_times[operation].add(now - request.asked)
            if who not in self._known:
                self._known[who] = None
                if len(self._known) > MAX_KNOWN:
                    del self._known[next(iter(self._known))]
        usual, kind = self._errors[operation], (Detector.ERROR_SHARE, operation)
        errors = self._provokers.get((operation, who), usual) if self._provokers else usual
        if errors is not usual and self._scales.own(kind, who, now) == 1.0:
            del self._provokers[operation, who]  # long ago
            errors = usual
        if error and errors is not usual and request.provoked and now - usual.at < OTHERS and usual.share < ERROR_SHARE:
            request.counts = False  # the others are answered
            return None
        errors.add(error, now)
        text = errors.suspicious(now, self._scales.now(kind, who, now)) if error else None
        return None if text is None else self._raise(kind, who, now, text, request.asked)

    @property
    def error_share(self) -> float:
        """Of the last replies, in the operation that has most."""
        return max((errors.share for errors in (*self._errors.values(), *self._provokers.values())), default=0.0)

    def _push(self, due: float, request: Request) -> None:
        heapq.heappush(self._heap, (due, next(self._count), request))

    def patience(self, request: Request, now: float = 0.0) -> float:
        """Seconds that a healthy server may take to answer this request, as learned so far."""
        if request.key == "syn":
            return self.round_trip.wait()
        if request.operation == "encrypted":
            return thresholds.ENCRYPTED_WAIT
        return self.reply_times[request.operation].wait(now)

    def _kind(self, request: Request) -> Kind:
        if request.key == "syn":
            return (Detector.UNANSWERED_SYN,)
        return (Detector.UNANSWERED_REQUEST, request.operation, self._acknowledged(request))

    def _wait(self, request: Request, now: float) -> float:
        return self.patience(request, now) * self._scales.now(self._kind(request), client(request.flow[0]), now)

    def _received(self, request: Request) -> bool:
        """Whether the server has this request, as far as known; a server that sends nothing to anyone may have it."""
        return request.answered is not None or request.asked >= self.server_seen or self._acknowledged(request)

    def _acknowledged(self, request: Request) -> bool:
        """Nothing acknowledges a datagram; but an address that the server has answered is not forged."""
        if request.end is None:
            return request.key != "syn" and client(request.flow[0]) in self._known
        flow = self._flows.get(request.flow)
        return flow is not None and flow.acknowledged(request.end, 0)

    def deadline(self) -> float | None:
        """The next moment at which ``tick`` may raise a suspicion."""
        silence = self.quiet.due(self._silence)
        first = self._heap[0][0] if self._heap else None
        return min((moment for moment in (first, silence) if moment is not None), default=None)

    def tick(self, now: float, *, datagrams: bool) -> Suspicion | None:
        """Check the unanswered requests. ``datagrams``: a flow without an open request is over."""
        youngest: Request | None = None
        excused: Request | None = None  # overdue, and waits longer because suspicions were refuted
        suspicion = None
        while self._heap and self._heap[0][0] <= now:
            *_, request = heapq.heappop(self._heap)
            flow = self._flows.get(request.flow)
            is_open = flow is not None and flow.open.get(request.key) is request
            if not is_open and not request.sent_to_standby:
                continue
            age = now - request.asked
            progress = flow.last_payload if flow is not None and is_open else 0.0
            due = max(request.asked, progress) + self._wait(request, now)
            later = now + max(MIN_INTERVAL, age / 4)
            if due > now:
                if request.key != "syn" and max(request.asked, progress) + self.patience(request, now) <= now:
                    excused = request
                self._push(min(due, later), request)
                continue
            if age < RECENT:
                self._push(later, request)
            elif flow is not None and is_open:  # the client has given up long ago
                del flow.open[request.key]
                if not flow.open and datagrams:
                    self._flows.drop(request.flow)
            if request.key == "syn":
                suspicion = self._unanswered_syn(request, now) or suspicion
            elif youngest is None or request.asked > youngest.asked:
                youngest = request
        if youngest is not None:
            suspicion = self.unanswered(youngest, now) or suspicion
        elif excused is not None and suspicion is None and self._several_wait(now):
            suspicion = self.unanswered(excused, now, anyway=True)
        return suspicion or self._silent(now)

    def _several_wait(self, now: float) -> bool:
        """Whether requests of several connections are overdue, and there was no suspicion of that for a while."""
        if now - self._raised.get((Detector.UNANSWERED_REQUEST,), NEVER) < ANYWAY:
            return False
        waiting = (r for r in islice(reversed(self.recent), _ENOUGH) if r.counts and r.answered is None)
        overdue = {r.flow for r in waiting if now - r.asked >= self.patience(r, now) and self._received(r)}
        return len(overdue) >= thresholds.SEVERAL

    # ------------------------------------------------------------ one by one

    def refused(self, now: float, text: str, asked: float) -> Suspicion | None:
        return self._raise((Detector.REFUSED,), b"", now, text, asked)

    def _unanswered_syn(self, request: Request, now: float) -> Suspicion | None:
        if self.server_seen >= request.asked:
            return None  # the server sends to other clients: a lost SYN, a flood, a full backlog that drains
        text = f"connection unanswered for {now - request.asked:.2f} s"
        return self._raise(self._kind(request), client(request.flow[0]), now, text, request.asked)

    def unanswered(self, request: Request, now: float, text: str = "", *, anyway: bool = False) -> Suspicion | None:
        """A request is overdue, or its connection ended without a reply.

        The fault began after the server's last useful answer, however old the request is.
        """
        kind, who = self._kind(request), client(request.flow[0])
        if not anyway and not self._ready(kind, who, now):
            return None  # checked before the counting, which may cover thousands of requests
        if self._single_slow_query(request, now):
            return None
        asked, answered = self.since(request.asked)
        text = text or f"{asked - answered} of {asked} requests without reply for {now - request.asked:.2f} s"
        return self._raise(kind, who, now, text, max(request.asked, self._answered_at), anyway=anyway)

    def forwarded(self, asked: int, answered: int, now: float) -> Suspicion | None:
        """The NAT's counters: several requests of all connections in a row without an answer (see ``ReplyTimes``)."""
        requests, seconds = self.counters.read(asked, answered, now)
        kind = (Detector.UNANSWERED_REQUEST, "forwarded")
        known = (times.usual() for times in self.reply_times.values() if times.count)
        usual = max(known, default=thresholds.UNKNOWN_WAIT)
        if requests < thresholds.SEVERAL or seconds < usual * self._scales.now(kind, b"", now):
            return None
        text = f"none of {requests} forwarded requests answered for {seconds:.2f} s"
        return self._raise(kind, b"", now, text, now - seconds)

    def _single_slow_query(self, request: Request, now: float) -> bool:
        """Whether nearly all later requests of the same operation are answered: one slow query, not a hang."""
        answered = others = 0
        wait = self._wait(request, now)
        for other in reversed(self.recent):
            if other.asked < request.asked or others >= _ENOUGH:
                break
            waits = other.answered is None and now - other.asked < wait
            same = other is not request and other.counts and other.operation == request.operation
            if same and not waits and self._received(other):
                others += 1
                answered += other.answered is True
        return others > 0 and answered >= _NEARLY_ALL * others

    def _silent(self, now: float) -> Suspicion | None:
        due = self.quiet.due(self._silence)
        if due is None or self.quiet.last is None or now < due:
            return None
        self.quiet.probed = True
        return self._raise((Detector.SILENCE,), b"", now, f"no traffic for {now - self.quiet.last:.0f} s")

    def repeated(self, key: FlowKey, now: float) -> Suspicion | None:
        """A client retransmitted data that the server has not acknowledged."""
        self._flows.stalled.repeated(key, now)
        kind, who = (Detector.RETRANSMISSION,), client(key[0])
        if not self._ready(kind, who, now):
            return None
        stalled = len(self._flows.stalled)
        enough = stalled >= 2 * self._scales.now(kind, who, now)
        if self._flows.stalled.two_since(key, self.server_seen):
            text = "data sent three times and no packet from the server"
        elif enough and 2 * stalled >= (active := self._flows.active(now)):
            text = f"{stalled} of {active} connections repeat data within {WINDOW} s"
        else:
            return None
        return self._raise(kind, who, now, text)

    # ------------------------------------------------------------ all detectors

    def _ready(self, kind: Kind, who: bytes, now: float) -> bool:
        """Whether such a suspicion may be raised again for this client."""
        pause = MIN_INTERVAL * (1.0 if kind == (Detector.REFUSED,) else self._scales.now(kind, who, now))
        return now - self._raised.get(kind, NEVER) >= pause

    def _raise(
        self, kind: Kind, who: bytes, now: float, text: str, since: float | None = None, *, anyway: bool = False
    ) -> Suspicion | None:
        if not anyway and not self._ready(kind, who, now):
            return None
        detector = Detector(str(kind[0]))
        self._raised[kind] = self._raised[(detector,)] = now
        self._raisers[detector] = (kind, who)
        return Suspicion(self._name, detector, now, text, since)

    def refuted(self, detector: Detector, now: float) -> None:
        """A probe passed: double the threshold of this detector's last suspicion for a while."""
        if detector is Detector.SILENCE:
            self._silence.double(now)
            return
        kind, who = self._raisers.get(detector, ((detector,), b""))
        self._scales.double(kind, who, now)
        if detector is Detector.ERROR_SHARE and len(kind) == 2 and len(self._provokers) < MAX_PROVOKERS:
            self._provokers.setdefault((str(kind[1]), who), Errors())

    def since(self, at: float, detector: Detector | None = None) -> tuple[int, int]:
        """(requests since ``at``, usefully answered ones among them). Unanswered connection attempts count as requests.

        For an error share only the failing operations count, and of these the worst: a server that accepts every bind
        and answers no search is useless, however many binds succeed.
        """
        since = self._evidence(at)
        if detector is not Detector.ERROR_SHARE:
            return weigh(since)
        by_operation: dict[str, list[Request]] = {}
        for request in since:
            by_operation.setdefault(request.operation, []).append(request)
        erring = [of for of in by_operation.values() if any(request.answered is False for request in of)]
        # what only one client asks may be its own fault
        erring = [of for of in erring if len({client(request.flow[0]) for request in of}) > 1] or erring
        counts = [weigh(of) for of in erring] or [weigh(since)]
        return min(counts, key=lambda pair: pair[1] / max(1, pair[0]))

    def _evidence(self, at: float) -> list[Request]:
        """The requests since ``at`` that the server has.

        Those lost on their way count if several connections that exist have one, and if the server does not answer
        nearly all that it has: loss also takes replies, a client that aims too short loses only its own requests.
        """
        found: list[Request] = []
        lost: dict[FlowKey, Request] = {}
        for request in takewhile(lambda r: r.asked >= at, reversed(self.recent)):
            if request.counts and self._received(request):
                found.append(request)
            elif request.counts:
                flow = self._flows.get(request.flow)
                real = flow is not None and flow.acked is not None
                if real or (client(request.flow[0]) in self._known and request.end is None):
                    lost[request.flow] = request
        seen = [r for r in found if r.answered is not None or self.server_seen - r.asked >= thresholds.MIN_WAIT]
        well = seen and sum(r.answered is True for r in seen) >= _NEARLY_ALL * len(seen)
        return found if well or len(lost) < thresholds.SEVERAL else [*found, *lost.values()]

    def flipped(self, now: float) -> None:
        """Another server serves now: open requests do not belong to it."""
        self._heap.clear()
        self.recent.clear()
        self._errors.clear()
        self._provokers.clear()
        self._forget_suspicions()
        self._reset_silence(now)

    def _forget_suspicions(self) -> None:
        self._scales, self._silence, self.counters = Scales(), Scale(), Counters()
        self._raised: dict[Kind, float] = {}
        self._raisers: dict[Detector, tuple[Kind, bytes]] = {}

    def lost(self, now: float) -> None:
        """The capture lost packets, perhaps replies: no open request counts as evidence."""
        for *_, request in self._heap:
            request.counts = request.counts and request.answered is True
        self._heap.clear()
        self._reset_silence(now)

    def _reset_silence(self, now: float) -> None:
        self.server_seen = now
        for reply_times in self.reply_times.values():
            reply_times.unanswered_run = 0
