"""DNS: replies by transaction id (RFC 1035, 4.1.1; over TCP with a length of two bytes before it, 4.2.2). Pure.

SERVFAIL and REFUSED show a faulty server; NXDOMAIN is a regular answer.
"""

from collections.abc import Hashable

from check_failover.sniffer.stage1.dialects.messages import UNREADABLE, Reply
from check_failover.sniffer.stage1.dialects.stream import NotAMessageError, Stream

# Code -> whether a client can cause it (RFC 1035, 4.1.1): SERVFAIL, by asking for a zone whose own servers fail;
# REFUSED, by asking what the server's policy denies.
FAULT_CODES = {2: True, 5: True}
_HEADER = 12

Message = tuple[int, bool, int]  # id, is a response, rcode


class Dns:
    """One connection, or one client's UDP port. See ``dialects``."""

    __slots__ = ("_client", "_server", "_udp", "encrypted")

    def __init__(self, udp: bool) -> None:
        self.encrypted = False
        self._udp = udp
        self._client: Stream[Message] = Stream(_framed)
        self._server: Stream[Message] = Stream(_framed)

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]:
        messages = self._datagram(data) if self._udp else self._client.feed(data, missing)
        return [(number, "query") for number, response, _ in messages if not response]

    def reply(self, data: bytes, missing: int) -> list[Reply]:
        messages = self._datagram(data) if self._udp else self._server.feed(data, missing)
        found = [
            Reply(number, True, code in FAULT_CODES, FAULT_CODES.get(code, False))
            for number, response, code in messages
            if response
        ]
        if not self._udp and self._server.out_of_sync:
            found.append(UNREADABLE)
        return found

    def resync(self, from_client: bool) -> None:
        (self._client if from_client else self._server).resync()

    @staticmethod
    def _datagram(data: bytes) -> list[Message]:
        return [_message(data)] if len(data) >= _HEADER else []


def is_query(datagram: bytes) -> bool:
    """Whether it is a QUERY, which changes nothing; UPDATE (RFC 2136) and NOTIFY (RFC 1996) are none."""
    return len(datagram) >= _HEADER and not datagram[2] & 0xF8


def _message(data: bytes) -> Message:
    return (data[0] << 8) | data[1], bool(data[2] & 0x80), data[3] & 15


def _framed(data: bytes, _last: bool) -> tuple[int, Message] | None:
    if len(data) < 2 + 4:
        return None
    length = (data[0] << 8) | data[1]
    if length < _HEADER:
        raise NotAMessageError
    return 2 + length, _message(data[2:6])
