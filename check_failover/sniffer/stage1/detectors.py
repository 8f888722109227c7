"""The detectors of stage 1: unanswered, refused, repeated and failed requests raise a Suspicion. Pure.

Their clocks run only while there is demand: an idle night is no failure. The detectors and their thresholds:

- a refused SYN (RST, ICMP unreachable): at once
- a SYN without an answer, and no packet from the server to any client since: SRTT + 4 RTTVAR
- a request without a reply: 4 * p99 of that operation, 4 * p50 where ten in a row have none. Bytes from the server on
  the same connection count as progress. No suspicion while nearly all later requests of the same operation are
  answered: then it is one slow query
- retransmissions of data: at least half of the active flows within 800 ms (Blink, NSDI 2019), or two on one flow while
  the server sends no packet. Data that the server has acknowledged does not count: the loss is on that client's path
- error replies: the first one, and 20 % of the last 100
- silence without demand: one probe after max(60 s, 10 * the usual gap)

A refuted suspicion doubles that detector's threshold for a while: a slow but working server gets only a few probes.
"""

import heapq
from collections import deque
from itertools import takewhile

from check_failover.model import Detector, Suspicion
from check_failover.sniffer.stage1.flows import WINDOW, Flow, FlowKey, Request
from check_failover.sniffer.stage1.flowtable import FlowTable
from check_failover.sniffer.stage1.thresholds import ENCRYPTED_WAIT, Errors, Quiet, ReplyTimes, RoundTrip, Scale

MAX_RECENT = 20000  # requests remembered for ``since``
RECENT = 30.0  # seconds
MIN_INTERVAL = 0.25  # seconds between two suspicions of one detector
_NEARLY_ALL, _ENOUGH = 0.9, 500  # share of the later requests, and how many of these are examined
NEVER = float("-inf")


class Detectors:
    """The detectors of one service, over its flows. Each method returns a Suspicion when it raises one."""

    def __init__(self, name: str, flows: FlowTable) -> None:
        self._name, self._flows = name, flows
        self._heap: list[tuple[float, int, FlowKey, Request]] = []
        self._count = 0
        self.recent: deque[Request] = deque(maxlen=MAX_RECENT)
        self.reply_times: dict[str, ReplyTimes] = {}
        self.round_trip = RoundTrip()
        self.errors = Errors()
        self.quiet = Quiet()
        self.server_seen = 0.0
        self._scales = {detector: Scale() for detector in Detector}
        self._raised: dict[Detector, float] = {}

    # ------------------------------------------------------------ open requests

    def opened(self, key: FlowKey, request: Request, now: float) -> None:
        """A client sent a request that expects a reply."""
        self.recent.append(request)
        self.reply_times.setdefault(request.operation, ReplyTimes()).unanswered_run += 1
        self._push(now + self._wait(request, now), key, request)

    def progress(self, flow: Flow) -> None:
        """The server sent payload on this connection, at least a part of a reply."""
        for request in flow.open.values():
            self.reply_times[request.operation].unanswered_run = 0

    def _push(self, due: float, key: FlowKey, request: Request) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key, request))

    def patience(self, request: Request) -> float:
        """Seconds that a healthy server may take to answer this request, as learned so far."""
        if request.key == "syn":
            return self.round_trip.wait()
        if request.operation == "encrypted":
            return ENCRYPTED_WAIT
        return self.reply_times.setdefault(request.operation, ReplyTimes()).wait()

    def _wait(self, request: Request, now: float) -> float:
        detector = Detector.UNANSWERED_SYN if request.key == "syn" else Detector.UNANSWERED_REQUEST
        return self.patience(request) * self._scales[detector].now(now)

    def deadline(self) -> float | None:
        """The next moment at which ``tick`` may raise a suspicion."""
        silence = self.quiet.due(self._scales[Detector.SILENCE])
        first = self._heap[0][0] if self._heap else None
        return min((moment for moment in (first, silence) if moment is not None), default=None)

    def tick(self, now: float, *, datagrams: bool) -> Suspicion | None:
        """Check the unanswered requests. ``datagrams``: a flow without an open request is over."""
        youngest: Request | None = None
        suspicion = None
        while self._heap and self._heap[0][0] <= now:
            _, _, key, request = heapq.heappop(self._heap)
            flow = self._flows.get(key)
            is_open = flow is not None and flow.open.get(request.key) is request
            if not is_open and not request.sent_to_standby:
                continue
            age = now - request.asked
            progress = flow.last_payload if flow is not None and is_open else 0.0
            due = max(request.asked, progress) + self._wait(request, now)
            if due > now:
                self._push(due, key, request)
                continue
            if age < RECENT:
                self._push(now + max(MIN_INTERVAL, age / 4), key, request)
            elif flow is not None and is_open:  # the client has given up long ago
                del flow.open[request.key]
                if not flow.open and datagrams:
                    self._flows.drop(key)
            if request.key == "syn":
                suspicion = self._unanswered_syn(request, now) or suspicion
            elif youngest is None or request.asked > youngest.asked:
                youngest = request
        if youngest is not None:
            suspicion = self.unanswered(youngest, now) or suspicion
        return suspicion or self._silent(now)

    # ------------------------------------------------------------ one by one

    def refused(self, now: float, text: str, asked: float) -> Suspicion | None:
        return self._raise(Detector.REFUSED, now, text, asked)

    def _unanswered_syn(self, request: Request, now: float) -> Suspicion | None:
        if self.server_seen >= request.asked:
            return None  # the server sends to other clients: a lost SYN, a flood, a full backlog that drains
        text = f"connection unanswered for {now - request.asked:.2f} s"
        return self._raise(Detector.UNANSWERED_SYN, now, text, request.asked)

    def unanswered(self, request: Request, now: float, text: str = "") -> Suspicion | None:
        """A request is overdue, or its connection ended without a reply."""
        if not self._ready(Detector.UNANSWERED_REQUEST, now):
            return None  # checked before the counting, which may cover thousands of requests
        if self._single_slow_query(request, now):
            return None
        asked, answered = self.since(request.asked)
        text = text or f"{asked - answered} of {asked} requests without reply for {now - request.asked:.2f} s"
        return self._raise(Detector.UNANSWERED_REQUEST, now, text, request.asked)

    def _single_slow_query(self, request: Request, now: float) -> bool:
        """Whether nearly all later requests of the same operation are answered: one slow query, not a hang."""
        answered = others = 0
        wait = self._wait(request, now)
        for other in reversed(self.recent):
            if other.asked < request.asked or others >= _ENOUGH:
                break
            waits = other.answered is None and now - other.asked < wait
            if other is not request and other.counts and other.operation == request.operation and not waits:
                others += 1
                answered += other.answered is True
        return others > 0 and answered >= _NEARLY_ALL * others

    def _silent(self, now: float) -> Suspicion | None:
        due = self.quiet.due(self._scales[Detector.SILENCE])
        if due is None or self.quiet.last is None or now < due:
            return None
        self.quiet.probed()
        return self._raise(Detector.SILENCE, now, f"no traffic for {now - self.quiet.last:.0f} s")

    def repeated(self, key: FlowKey, now: float) -> Suspicion | None:
        """A client retransmitted data that the server has not acknowledged."""
        self._flows.stalled.repeated(key, now)
        if not self._ready(Detector.RETRANSMISSION, now):
            return None
        stalled = len(self._flows.stalled)
        enough = stalled >= 2 * self._scales[Detector.RETRANSMISSION].now(now)
        if self._flows.stalled.two_since(key, self.server_seen):
            text = "data sent three times and no packet from the server"
        elif enough and 2 * stalled >= (active := self._flows.active(now)):
            text = f"{stalled} of {active} connections repeat data within {WINDOW} s"
        else:
            return None
        return self._raise(Detector.RETRANSMISSION, now, text)

    def bad_reply(self, request: Request, now: float) -> Suspicion | None:
        """The last reply, to ``request``, was an error."""
        text = self.errors.suspicious(now, self._scales[Detector.ERROR_SHARE].now(now))
        return None if text is None else self._raise(Detector.ERROR_SHARE, now, text, request.asked)

    # ------------------------------------------------------------ all detectors

    def _ready(self, detector: Detector, now: float) -> bool:
        """Whether this detector may raise a suspicion again."""
        pause = MIN_INTERVAL * (self._scales[detector].now(now) if detector is not Detector.REFUSED else 1.0)
        return now - self._raised.get(detector, NEVER) >= pause

    def _raise(self, detector: Detector, now: float, text: str, since: float | None = None) -> Suspicion | None:
        if not self._ready(detector, now):
            return None
        self._raised[detector] = now
        return Suspicion(self._name, detector, now, text, since)

    def refuted(self, detector: Detector, now: float) -> None:
        """A probe passed: double this detector's threshold for a while."""
        self._scales[detector].double(now)

    def since(self, at: float, detector: Detector | None = None) -> tuple[int, int]:
        """(requests since ``at``, usefully answered ones among them). Unanswered connection attempts count as requests.

        For an error share only the failing operations count: a server that accepts every bind and answers no search
        is useless, however many binds succeed.
        """
        since = [request for request in takewhile(lambda r: r.asked >= at, reversed(self.recent)) if request.counts]
        if detector is Detector.ERROR_SHARE:
            erring = {request.operation for request in since if request.answered is False}
            since = [request for request in since if request.operation in erring] or since
        return len(since), sum(request.answered is True for request in since)

    def flipped(self, now: float) -> None:
        """Another server serves now: open requests do not belong to it."""
        self._heap.clear()
        self.recent.clear()
        self.errors = Errors()
        self._raised.clear()
        self._reset_silence(now)
        for detector in self._scales:
            self._scales[detector] = Scale()

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
