"""One client's connection (or UDP port) as far as stage 1 needs it: what is open, in which order bytes came. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from check_failover.sniffer.dialects import ALL, ANY, Dialect, Reply

MAX_OPEN = 256  # requests of one flow that are waited for; a client that asks more and reads nothing is its own fault
_HALF = 1 << 31
_WORD = 1 << 32

FlowKey = tuple[bytes, int]  # the client's address and port


class Request:
    """One request of a client. ``answered``: None open, True usefully, False by an error or given up."""

    __slots__ = ("answered", "asked", "counts", "key", "operation")

    def __init__(self, key: Hashable, operation: str, asked: float) -> None:
        self.key, self.operation, self.asked = key, operation, asked
        self.answered: bool | None = None
        self.counts = True  # False: not a request after all (a SYN that was answered)


class Direction:
    """Bytes of one direction in order: new ones are passed on, repeated ones counted, holes noticed (RFC 9293, 3.4)."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next: int | None = None

    def take(self, seq: int, payload: bytes, length: int) -> tuple[bytes, int, bool, bool]:
        """(new bytes, bytes not captured, they come after a hole, nothing in it was new)."""
        end = (seq + length) % _WORD
        if self.next is None:
            self.next = end
            return payload, length - len(payload), False, False
        ahead = (seq - self.next) % _WORD
        if ahead == 0:
            self.next = end
            return payload, length - len(payload), False, False
        if ahead < _HALF:
            self.next = end
            return payload, length - len(payload), True, False
        old = _WORD - ahead
        if old >= length:
            return b"", 0, False, True
        self.next = end
        new = payload[old:]
        return new, length - old - len(new), False, False


class Flow:
    """State of one connection."""

    __slots__ = ("client", "dialect", "heard", "key", "open", "server", "spoke", "syn")

    def __init__(self, key: FlowKey, dialect: Dialect) -> None:
        self.key = key
        self.dialect = dialect
        self.client, self.server = Direction(), Direction()
        self.open: OrderedDict[Hashable, Request] = OrderedDict()
        self.syn: tuple[int, float] | None = None  # ISN and time of a SYN that has no answer yet
        self.heard = 0.0  # when the server last sent payload here
        self.spoke = 0.0  # when the client last sent anything

    def ask(self, asked: list[tuple[Hashable, str]], now: float) -> list[Request]:
        """Open requests; one that is open already (same key) is the same one."""
        fresh: list[Request] = []
        for key, operation in asked:
            if key in self.open or len(self.open) >= MAX_OPEN:
                continue
            request = self.open[key] = Request(key, operation, now)
            fresh.append(request)
        return fresh

    def answer(self, replies: list[Reply]) -> list[tuple[Request, bool]]:
        """Close requests; returns those that ended, with whether the reply was an error."""
        ended: list[tuple[Request, bool]] = []
        for reply in replies:
            if reply.key == ALL:
                ended += [(request, reply.error) for request in self.open.values()]
                self.open.clear()
                continue
            if not reply.final:
                continue
            key = next(iter(self.open), None) if reply.key == ANY else reply.key
            request = self.open.pop(key, None)
            if request is not None:
                ended.append((request, reply.error))
        for request, error in ended:
            request.answered = not error
        return ended
