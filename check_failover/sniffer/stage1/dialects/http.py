"""HTTP/1.1: replies come in the order of the requests (RFC 9112, 9.3.2). Pure.

Content-Length or chunks (RFC 9112, 6.3) give the length of a body, so that no line in it counts as a start line. Where
the length is unknown, only the start of a segment can be a start line; with several open requests the server's bytes
are then no evidence for any of them. 5xx is an error, 1xx is no reply yet, 101 and CONNECT change the protocol of the
connection (RFC 9110, 9.3.6, 15.2.2).
"""

import re
from collections import deque
from collections.abc import Callable, Hashable

from check_failover.sniffer.stage1.dialects.messages import ALL, ANY, UNREADABLE, Reply
from check_failover.sniffer.stage1.dialects.stream import NotAMessageError, Stream

_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH ")
_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH) [^\r\n ]")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)[ \r\n]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]{0,100}\r\n")
_HEAD = 2048  # bytes of a head, at most
_PIPELINE = 256  # methods remembered
# Codes that a client can cause (RFC 9110, 15.6): a broken page, a method or version that is not implemented,
# an upstream of its choice.
_PROVOKED = frozenset({500, 501, 502, 504, 505})
_CHUNKS, _UNKNOWN = -1, -2  # instead of a body's length

Begun = Callable[[re.Match[bytes], bytes], int]


class _Half(Stream[None]):
    """One direction: calls ``begun(start line, head)`` for each message; that returns the body's length."""

    __slots__ = ("_begun", "_chunks", "_prefixes", "_start", "_trailer")

    def __init__(self, start: re.Pattern[bytes], prefixes: tuple[bytes, ...], begun: Begun) -> None:
        self._start, self._prefixes, self._begun = start, prefixes, begun
        super().__init__(self._next, _HEAD)

    def resync(self) -> None:
        super().resync()
        self._chunks = self._trailer = False

    def _next(self, data: bytes, last: bool) -> tuple[int | None, None] | None:
        """The length of a head with its body, unless that is in chunks; of a chunk; of a line of the trailer."""
        return self._chunk(data) if self._chunks else self._message(data, last)

    def _message(self, data: bytes, last: bool) -> tuple[int | None, None] | None:
        start = self._start.match(data)
        if start is None:
            if not last and any(prefix.startswith(data[: len(prefix)]) for prefix in self._prefixes):
                return None
            raise NotAMessageError
        end = data.find(b"\r\n\r\n")
        if end < 0 and not last:
            return None
        length = self._begun(start, data[: end + 4] if end >= 0 else b"")
        if end < 0 or length == _UNKNOWN:
            return None, None
        self._chunks = length == _CHUNKS
        return end + 4 + max(0, length), None

    def _chunk(self, data: bytes) -> tuple[int, None] | None:
        if self._trailer:
            line, found, _ = data.partition(b"\r\n")
            if not found and len(data) < _HEAD:
                return None
            self._trailer = self._chunks = bool(line)
            return len(line) + len(found), None
        size = _CHUNK.match(data)
        if size is None:
            if len(data) < 120 and b"\n" not in data:
                return None
            raise NotAMessageError
        length = int(size[1], 16)
        self._trailer = not length
        return size.end() + (length + 2 if length else 0), None


class Http:
    """One connection. See ``dialects``."""

    __slots__ = ("_asked", "_client", "_methods", "_replies", "_requests", "_server", "encrypted")

    def __init__(self) -> None:
        self.encrypted = False
        self._asked = 0
        self._methods: deque[bytes] = deque(maxlen=_PIPELINE)  # of the requests without a final reply
        self._requests: list[tuple[Hashable, str]] = []
        self._replies: list[Reply] = []
        self._client = _Half(_REQUEST, _METHODS, self._request)
        self._server = _Half(_STATUS, (b"HTTP/1.",), self._reply)

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]:
        if self.encrypted or data[:2] == b"\x16\x03":
            self.encrypted = True
            return [("bytes", "encrypted")]
        self._requests = []
        self._client.feed(data, missing)
        return self._requests

    def reply(self, data: bytes, missing: int) -> list[Reply]:
        if self.encrypted:
            return [Reply(ALL, True, False)]
        self._replies = []
        self._server.feed(data, missing)
        if self._server.out_of_sync and len(self._methods) > 1:
            self._methods.clear()
            self._replies.append(UNREADABLE)
        return self._replies

    def resync(self, from_client: bool) -> None:
        if from_client:
            self._client.resync()
        else:
            self._server.resync()
            self._methods.clear()

    def _request(self, start: re.Match[bytes], head: bytes) -> int:
        self._asked += 1
        self._methods.append(start[1])
        self._requests.append((self._asked, start[1].decode()))
        return _body(head, 0)

    def _reply(self, start: re.Match[bytes], head: bytes) -> int:
        code = int(start[1])
        if code < 200 and code != 101:
            return 0
        self._replies.append(Reply(ANY, True, code >= 500, code in _PROVOKED))
        method = self._methods.popleft() if self._methods else None
        if code == 101 or (method == b"CONNECT" and code < 300):
            self.encrypted = True
        if method is None or self.encrypted:
            return _UNKNOWN  # the reply to a HEAD has a Content-Length and no body
        return 0 if method == b"HEAD" or code in (204, 304) else _body(head, _UNKNOWN)


def _body(head: bytes, otherwise: int) -> int:
    """The length of the body behind a head."""
    if _CHUNKED.search(head):
        return _CHUNKS
    length = _LENGTH.search(head)
    return int(length[1]) if length else otherwise
