"""One client's connection (or UDP port) in stage 1: its open requests and the order of its bytes. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from check_failover.sniffer.stage1.dialects.messages import ALL, ANY, GIVEN_UP, Dialect, Reply

MAX_OPEN = 256  # open requests of one flow; further ones of a client that reads no replies are not tracked
WINDOW = 0.8  # seconds in which retransmissions count (Blink, NSDI 2019)
_MAX_HOLES = 8
_HALF = 1 << 31
_WORD = 1 << 32

FlowKey = tuple[bytes, int]  # the client's address and port


@dataclass(slots=True, eq=False)
class Request:
    """One request of a client. ``answered``: None: open; True: usefully; False: with an error, or not at all.

    ``end``: the sequence number behind its segment; None: a datagram or a SYN.
    """

    flow: FlowKey
    key: Hashable
    operation: str
    asked: float
    end: int | None
    answered: bool | None = None
    counts: bool = True  # False: no evidence either way (an answered SYN, an abandoned request)
    provoked: bool = False  # the error may be the client's doing
    sent_to_standby: bool = False  # the other server got it, because this one did not answer


class Segment(NamedTuple):
    """The new part of a segment. ``late``: it fills a hole, too late for the dialect; ``repeated``: nothing is new."""

    new: bytes
    missing: int  # new bytes that were not captured
    hole: bool  # bytes before it were not captured
    repeated: bool
    late: bool


_LATE = Segment(b"", 0, False, False, True)
_REPEATED = Segment(b"", 0, False, True, False)


@dataclass(slots=True, eq=False)
class StreamDirection:
    """One direction of a TCP stream: returns new bytes, detects retransmissions and holes (RFC 9293, 3.4)."""

    next: int | None = None
    _holes: list[tuple[int, int]] = field(default_factory=list)

    def forget(self) -> None:
        """Forget the position: continue at the next segment's sequence number."""
        self.next = None
        self._holes.clear()

    def take(self, seq: int, payload: bytes, length: int) -> Segment:
        end = (seq + length) % _WORD
        expected = seq if self.next is None else self.next
        ahead = (seq - expected) % _WORD
        if ahead < _HALF:
            if ahead:
                self._holes = [*self._holes[1 - _MAX_HOLES :], (expected, seq)]
            self.next = end
            return Segment(payload, length - len(payload), ahead > 0, False, False)
        old = _WORD - ahead
        filled = self._fill(seq, end)
        if old >= length:
            return _LATE if filled else _REPEATED
        self.next = end
        new = payload[old:]
        return Segment(new, length - old - len(new), filled, False, False)

    def _fill(self, seq: int, end: int) -> bool:
        """Whether the bytes from ``seq`` to ``end`` lie in a hole, at least in part."""
        if not self._holes:
            return False
        length = (end - seq) % _WORD
        left: list[tuple[int, int]] = []
        found = False
        for first, last in self._holes:
            if (first - seq) % _WORD < length or (seq - first) % _WORD < (last - first) % _WORD:
                found = True
                if (first - seq) % _WORD >= _HALF:
                    left.append((first, seq))
                if 0 < (last - end) % _WORD < _HALF:
                    left.append((end, last))
            else:
                left.append((first, last))
        self._holes = left[-_MAX_HOLES:]
        return found


@dataclass(slots=True, eq=False)
class Flow:
    """The state of one connection, or of one UDP port of a client.

    state        event                                                  next
    -----------  -----------------------------------------------------  -----------
    (none)       a SYN (``syn`` is set)                                 connecting
    (none)       data, where the capture began later                    established
    connecting   SYN-ACK, or data from the client                       established
    established  FIN from the client, requests open (``client_fin``)    half closed
    established  FIN from the client, no request open                   dropped
    established  FIN from the server, requests open: these failed       dropped
    half closed  FIN from the server                                    dropped
    any          RST, reuse of the port, ``MAX_FLOWS`` reached          dropped
    """

    key: FlowKey
    dialect: Dialect
    client: StreamDirection = field(default_factory=StreamDirection)
    server: StreamDirection = field(default_factory=StreamDirection)
    open: OrderedDict[Hashable, Request] = field(default_factory=OrderedDict)
    syn: tuple[int, float] | None = None  # ISN and time of an unanswered SYN
    began: float | None = None  # when its SYN was captured; None: the capture did not see its beginning
    syn_repeated: bool = False  # the SYN was retransmitted: it gives no round-trip sample (Karn; RFC 6298, 3)
    acked: int | None = None  # the server's last acknowledgement number
    last_payload: float = 0.0  # when the server last sent payload here
    client_seen: float | None = None  # when the client last sent a packet, or got data: its ACKs are not captured
    client_fin: bool = False  # the client's FIN was seen

    def acknowledged(self, seq: int, length: int) -> bool:
        """Whether the server has these bytes: a client that repeats them lost the ACK; the server is not at fault."""
        return self.acked is not None and (self.acked - seq - length) % _WORD < _HALF

    def ask(self, asked: list[tuple[Hashable, str]], now: float, end: int | None = None) -> list[Request]:
        """Open requests and return the new ones; a key that is open already is a repetition."""
        fresh: list[Request] = []
        for key, operation in asked:
            if operation == GIVEN_UP:
                self.give_up(key)
                continue
            if key in self.open or len(self.open) >= MAX_OPEN:
                continue
            request = self.open[key] = Request(self.key, key, operation, now, end)
            fresh.append(request)
        return fresh

    def give_up(self, key: Hashable) -> None:
        """Close a request (or ALL) as no evidence: its client stopped waiting, or its outcome was not captured."""
        for request in list(self.open.values()) if key == ALL else [self.open.get(key)]:
            if request is not None:
                request.counts = False
                del self.open[request.key]

    def answer(self, replies: list[Reply]) -> list[tuple[Request, bool]]:
        """Close requests; returns the closed ones, each with whether the reply was an error."""
        ended: list[tuple[Request, bool]] = []
        for reply in replies:
            if reply.key == ALL:
                if reply.final:
                    ended += [(request, reply.error) for request in self.open.values()]
                    self.open.clear()
                else:
                    self.give_up(ALL)
                continue
            if not reply.final:
                continue
            key = next(iter(self.open), None) if reply.key == ANY else reply.key
            request = self.open.pop(key, None)
            if request is not None:
                request.provoked = reply.provoked
                ended.append((request, reply.error))
        for request, error in ended:
            request.answered = not error
        return ended


class StalledFlows:
    """Flows whose client retransmits data, without an acknowledgement or any packet from the server since."""

    def __init__(self) -> None:
        self._last: OrderedDict[FlowKey, float] = OrderedDict()  # the last retransmission
        self._runs: dict[FlowKey, list[float]] = {}  # the last two

    def repeated(self, key: FlowKey, now: float) -> None:
        while self._last and next(iter(self._last.values())) < now - WINDOW:
            self.progress(next(iter(self._last)))
        self._last[key] = now
        self._last.move_to_end(key)
        self._runs[key] = [*self._runs.get(key, [])[-1:], now]

    def progress(self, key: FlowKey) -> None:
        """The server sent a packet on this flow, or the connection is over."""
        if self._last.pop(key, None) is not None:
            del self._runs[key]

    def two_since(self, key: FlowKey, moment: float) -> bool:
        """Whether there were two retransmissions after ``moment`` and within the window."""
        run = self._runs.get(key, [])
        return len(run) == 2 and run[0] > moment and run[1] - run[0] <= WINDOW

    def __len__(self) -> int:
        return len(self._last)
