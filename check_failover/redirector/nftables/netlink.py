"""Netlink messages of the kernel's packet filter (NETLINK_NETFILTER): one socket that stays open, requests, replies.

Raw messages with struct, because opening a socket for each flip costs 8 to 16 ms, pyroute2 took 7 s to dump and delete
7,000 conntrack entries, and libnftables reads the whole table before each command, which takes the longer the more
services there are. The few messages needed here are short.

Source: netlink(7), linux/netfilter/nfnetlink.h.
"""

import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

from check_failover.redirector import RedirectError

NETLINK_NETFILTER = 12
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300  # nlmsghdr's flags
NESTED = 0x8000
_ERROR, _DONE = 2, 3
_BUFFER = 1 << 18
_HEADER = struct.Struct("=HH").unpack_from  # of an attribute: length and kind
_TIMEOUT = 2.0  # seconds for the kernel to answer


class Netlink:
    """All methods raise RedirectError when the kernel refuses, and FileNotFoundError for ENOENT.

    Safe to call from several threads. ``what``: names the part of the kernel in errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._sequence = 0

    def ask(self, kind: int, flags: int, family: int, attributes: bytes) -> list[bytes]:
        """Send one request; returns the payloads of the replies, without their nfgenmsg."""
        with self._lock, self._kernel() as sock:
            sock.send(self._message(kind, flags, family, attributes))
            replies = takewhile(lambda answer: answer[1] is None, self._answers(sock, self._sequence))
            return [payload for _, _, payload in replies]

    def send_all(self, requests: Sequence[tuple[int, int, int, bytes]], ignored: int = 0) -> int:
        """Send requests (kind, flags, family or resource, attributes) in one datagram.

        Only the last one is acknowledged: the kernel answers the others when they fail, and a socket's buffer holds
        some hundred answers. Returns how many failed with the error number ``ignored``.
        """
        with self._lock, self._kernel() as sock:
            first = self._sequence + 1
            messages = [self._message(kind, flags, family, body) for kind, flags, family, body in requests]
            sock.send(b"".join(messages))
            acknowledged = first + max(n for n, request in enumerate(requests) if request[1] & ACK)
            failed = 0
            for number, code, _ in self._answers(sock, first, ignored):
                failed += bool(code)
                if number == acknowledged:
                    break
            return failed

    def _answers(self, sock: socket.socket, first: int, ignored: int = 0) -> Iterator[tuple[int, int | None, bytes]]:
        """Number of the request, error number (0: done; None: a reply) and payload, for requests from ``first`` on."""
        while True:
            for number, kind, payload in split(sock.recv(_BUFFER)):
                if not first <= number <= self._sequence:
                    continue
                if kind not in (_ERROR, _DONE):
                    yield number, None, payload[4:]
                    continue
                code = 0 if kind == _DONE else -int(struct.unpack_from("=i", payload)[0])
                if code not in (0, ignored):
                    raise OSError(code, os.strerror(code))
                yield number, code, b""

    def _message(self, kind: int, flags: int, family: int, attributes: bytes) -> bytes:
        """``family``: nfgenmsg's first byte, and its resource ID above."""
        self._sequence += 1
        body = struct.pack("!BBH", family & 0xFF, 0, family >> 8) + attributes
        return struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, self._sequence, 0) + body

    @contextmanager
    def _kernel(self) -> Iterator[socket.socket]:
        """The socket; after a failure other than "no such entry" it is closed, and opened anew next time."""
        try:
            sock = self._socket = self._socket or opened()
            sock.settimeout(_TIMEOUT)
            yield sock
        except FileNotFoundError:
            raise
        except OSError as error:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            hint = " (is CAP_NET_ADMIN there?)" if isinstance(error, PermissionError) else ""
            raise RedirectError(f"{self._what}: {error.strerror or error}{hint}") from None


def opened(groups: int = 0) -> socket.socket:
    """A socket to the packet filter that hears of changes in these multicast groups (bits). Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.bind((0, groups))
    return sock


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Sequence number, kind and payload of each message of a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _flags, number, _pid = struct.unpack_from("=IHHII", data, offset)
        yield number, kind, data[offset + 16 : offset + length]
        offset += (max(length, 16) + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset, size = 0, len(data)
    while offset + 4 <= size:
        length, kind = _HEADER(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
