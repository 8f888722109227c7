"""The flows of one service, the flows that use the other server, and the unanswered first packets. Pure.

Every table is bounded; the flow that was idle longest is dropped first.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from check_failover.sniffer.stage1.dialects.messages import ALL, Dialect
from check_failover.sniffer.stage1.flows import WINDOW, Flow, FlowKey, StalledFlows
from check_failover.sniffer.stage1.packet import RST, SYN, TCP, UDP, Packet

MAX_FLOWS = 20000
MAX_FRAMES = 5000
MAX_ELSEWHERE = 100_000  # flows; as many as the redirector lists
REPLAY_AGE = 3.0  # seconds: the sender of an older SYN or datagram gave up or retransmitted
SENT_ON = REPLAY_AGE + 1.0  # seconds after which conntrack has the entry of a first packet sent to the standby
UDP_ELSEWHERE = 120.0  # seconds without a packet until conntrack's entry for a client's UDP port expires


@dataclass(slots=True)
class Elsewhere:
    """A flow that uses another server than the target."""

    seen: float  # its last packet; UDP only
    sent_on: tuple[float, int] | None = None  # time and ISN of a first packet that was sent to the standby


class FlowTable(OrderedDict[FlowKey, Flow]):
    """``dialect`` makes the dialect object of a new flow. ``frames``: the unanswered first packets."""

    def __init__(self, dialect: Callable[[], Dialect]) -> None:
        super().__init__()
        self._dialect = dialect
        self.frames: OrderedDict[tuple[bytes, int, object], tuple[bytes, Packet]] = OrderedDict()
        self._elsewhere: OrderedDict[FlowKey, Elsewhere] = OrderedDict()
        self._complete = True  # False: a flow whose beginning was not captured may use either server
        self._connecting: OrderedDict[int, FlowKey] = OrderedDict()  # by the number that acknowledges the SYN
        self.stalled = StalledFlows()

    def at(self, key: FlowKey) -> Flow:
        """The flow with this key; makes it when it is missing."""
        flow = self.get(key)
        if flow is None:
            if len(self) >= MAX_FLOWS:
                self.drop(next(iter(self)))
            flow = self[key] = Flow(key, self._dialect())
        else:
            self.move_to_end(key)
        return flow

    def drop(self, key: FlowKey) -> None:
        """Forget a flow; its open requests count neither as asked nor as answered."""
        self.stalled.progress(key)
        flow = self.pop(key, None)
        if flow is not None:
            for request in flow.open.values():
                request.counts = False
                self.frames.pop((*key, request.key), None)

    def narrowed(self, kept: Callable[[int], bool]) -> None:
        """Drop the flows from client ports that ``kept`` rejects: the filter no longer captures them."""
        for key in [key for key in self if not kept(key[1])]:
            self.drop(key)

    def active(self, now: float) -> int:
        """The number of flows with data within the window; the newest are last in the table."""
        count = 0
        for flow in reversed(self.values()):
            if flow.client_seen is not None:
                if flow.client_seen < now - WINDOW:
                    break
                count += 1
        return count

    def connects(self, flow: Flow, seq: int, now: float) -> None:
        """A new SYN opened this flow."""
        flow.syn, flow.began = (seq, now), now
        self._connecting[(seq + 1) & 0xFFFFFFFF] = flow.key
        if len(self._connecting) > MAX_FLOWS:
            self._connecting.popitem(last=False)

    def by_syn(self, ack: int) -> Flow | None:
        """The flow whose unanswered SYN ``ack`` acknowledges; needed where source NAT hides the client."""
        flow = self.get(self._connecting.get(ack, (b"", 0)))
        return flow if flow is not None and flow.syn and ack == (flow.syn[0] + 1) & 0xFFFFFFFF else None

    # ------------------------------------------------------------ first packets

    def keep(self, frame_key: tuple[bytes, int, object], frame: bytes, p: Packet) -> None:
        """Keep a first packet. ``frame_key``: client address, client port, the request's key."""
        self.frames[frame_key] = (frame, p)
        if len(self.frames) > MAX_FRAMES:
            self.frames.popitem(last=False)

    def unanswered(self, now: float) -> Iterator[tuple[bytes, Packet]]:
        """The kept first packets without an answer, oldest first: these can be replayed."""
        for frame_key, (frame, p) in list(self.frames.items()):
            flow = self.get((p.src, p.sport))
            if now - p.now > REPLAY_AGE or flow is None or frame_key[2] not in flow.open:
                del self.frames[frame_key]
                continue
            yield frame, p

    def first_packet(self, client: bytes, port: int) -> tuple[bytes, Packet] | None:
        """The kept SYN of a client's connection, while it has no answer."""
        flow = self.get((client, port))
        return self.frames.get((client, port, "syn")) if flow is not None and flow.syn is not None else None

    def waits(self, p: Packet) -> bool:
        """Whether this kept first packet still has no answer."""
        key = (p.src, p.sport)
        flow = self.get(key)
        return flow is not None and any(self.frames.get((*key, asked), (b"", None))[1] is p for asked in flow.open)

    # ------------------------------------------------------------ the other server

    def sent_to_standby(self, p: Packet) -> None:
        """A first packet was sent to the standby: its reply says nothing about the primary.

        The request stays counted as unanswered by the primary: otherwise a service whose every client is rescued would
        never raise a suspicion.
        """
        key = (p.src, p.sport)
        flow = self.get(key)
        if flow is not None:
            for request in flow.open.values():
                request.answered, request.sent_to_standby = False, True
                self.frames.pop((*key, request.key), None)
            flow.open.clear()
        self.drop(key)
        self._elsewhere[key] = Elsewhere(p.now, (p.now, p.seq))
        self._elsewhere.move_to_end(key)
        if len(self._elsewhere) > MAX_ELSEWHERE:
            self._elsewhere.popitem(last=False)
            self._complete = False

    def list_elsewhere(self, others: Iterable[FlowKey], asked: float, *, complete: bool) -> bool:
        """The flows that use another server, as conntrack had them some time after ``asked``.

        ``complete``: these are all of them. Returns whether a flow may have been taken for the target's by mistake.
        """
        before, self._elsewhere = self._elsewhere, OrderedDict()
        mistaken = self._complete and not complete
        self._complete = complete
        for key, mark in before.items():
            if mark.sent_on is not None and mark.sent_on[0] > asked - SENT_ON:
                self._elsewhere[key] = mark
        for key in others:
            flow = self.get(key)
            if flow is not None and flow.began is not None and flow.began >= asked:
                continue  # the port was used again since
            mistaken = mistaken or key not in before
            mark = self._elsewhere[key] = before.get(key) or Elsewhere(asked)
            mark.seen = max(mark.seen, asked)
            self.drop(key)
        for key in [] if complete else [key for key, flow in self.items() if flow.began is None]:
            self.drop(key)
        return mistaken

    def knows_elsewhere(self) -> bool:
        """Whether a flow uses another server, or may use it."""
        return bool(self._elsewhere) or not self._complete

    def asks_elsewhere(self, key: FlowKey, p: Packet) -> bool:
        """Whether the client of this packet still uses another server, or may use it; a new connection does not."""
        mark = self._elsewhere.get(key)
        if mark is None:
            return not p.flags & SYN and self._unknown(key)
        if p.proto == UDP:
            stays = p.now - mark.seen < UDP_ELSEWHERE
        else:
            stays = not p.flags & SYN or (mark.sent_on is not None and mark.sent_on[1] == p.seq)
        mark.seen = p.now
        if not stays:
            del self._elsewhere[key]
        return stays

    def answers_elsewhere(self, key: FlowKey, p: Packet) -> bool:
        """Whether this packet comes from another server, or may come from it."""
        mark = self._elsewhere.get(key)
        if mark is None:
            return not p.flags & RST and self._unknown(key)
        mark.seen = p.now
        return True

    def _unknown(self, key: FlowKey) -> bool:
        if self._complete:
            return False
        flow = self.get(key)
        return flow is None or flow.began is None

    def flipped(self, proto: int, now: float) -> None:
        """Another server serves now: the open connections stay with the old one."""
        self._elsewhere.clear()
        if proto == TCP:
            for key, flow in self.items():
                if flow.syn is None:
                    self._elsewhere[key] = Elsewhere(now)
        self.clear()
        self.frames.clear()
        self.stalled = StalledFlows()

    def lost(self) -> None:
        """The capture lost packets of unknown flows: no open request is evidence, and every stream may have a hole."""
        for flow in self.values():
            flow.give_up(ALL)
            flow.syn = None
            flow.dialect.resync(from_client=True)
            flow.dialect.resync(from_client=False)
            flow.client.forget()
            flow.server.forget()
        self.frames.clear()
        self.stalled = StalledFlows()
