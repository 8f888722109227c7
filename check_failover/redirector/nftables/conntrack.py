"""Conntrack over one netlink socket that stays open: dump a service's entries, delete one, find one.

Raw ctnetlink with struct, because opening a socket for each flip costs 8 to 16 ms and pyroute2 took 7 s to dump and
delete 7,000 entries; the few messages needed here are short. The kernel filters the dump by ct mark.

Source: linux/netfilter/nfnetlink_conntrack.h, netlink(7), libnetfilter_conntrack.
"""

import errno
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from check_failover.model import Endpoint, Service
from check_failover.redirector import RedirectError

NETLINK_NETFILTER = 12
_SUBSYS_CTNETLINK = 1 << 8
_MSG_GET, _MSG_DELETE = _SUBSYS_CTNETLINK | 1, _SUBSYS_CTNETLINK | 2
_NLM_REQUEST, _NLM_ACK, _NLM_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_STATUS, _CTA_PROTOINFO, _CTA_MARK, _CTA_ID, _CTA_MARK_MASK = (
    1,
    2,
    3,
    4,
    8,
    12,
    21,
)
_NESTED = 0x8000
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
_ASSURED = 1 << 2  # IPS_ASSURED
_TCP_SYN_SENT, _TCP_ESTABLISHED, _TCP_CLOSE_WAIT, _TCP_CLOSE = 1, 3, 5, 8  # enum tcp_conntrack
_PROTOCOLS = {"tcp": 6, "udp": 17}
_BATCH = 100  # deletes in one message
_TIMEOUT = 2.0  # seconds for the kernel to answer


@dataclass(frozen=True, slots=True)
class Entry:
    """One tracked connection of a service: its client, its server and its state."""

    client: Endpoint
    service: Endpoint
    server: Endpoint
    protocol: int
    mark: int
    unanswered: bool  # no reply yet, or only a refusal: its client loses nothing when the entry is deleted
    established: bool
    open: bool  # client or server may still send; UDP: the entry exists
    original: bytes  # CTA_TUPLE_ORIG as the kernel wrote it, to name the entry in a delete
    id: bytes  # CTA_ID: so that a delete never meets a younger entry of the same tuple


class Conntrack:
    """All methods raise RedirectError when the kernel refuses; safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._sequence = 0

    def dump(self, mark: int, mask: int, family: int) -> list[Entry]:
        """All entries with that mark. ``family`` is 4 or 6."""
        filters = _attribute(_CTA_MARK, struct.pack("!I", mark)) + _attribute(_CTA_MARK_MASK, struct.pack("!I", mask))
        with self._lock:
            payloads = list(self._ask(_MSG_GET, _NLM_DUMP, _af(family), filters))
        entries = map(_entry, payloads)  # outside the lock: a flip does not wait until a long list is parsed
        return [entry for entry in entries if entry is not None and entry.mark & mask == mark]

    def delete(self, entry: Entry) -> bool:
        """Remove exactly this entry; False when it is gone already."""
        name = _attribute(_CTA_TUPLE_ORIG | _NESTED, entry.original) + _attribute(_CTA_ID, entry.id)
        with self._lock:
            try:
                list(self._ask(_MSG_DELETE, _NLM_ACK, _af(entry.client.family), name))
            except FileNotFoundError:
                return False
        return True

    def delete_all(self, entries: Sequence[Entry]) -> int:
        """Remove these entries, many to a message; returns how many were still there.

        Only the last one of a batch is acknowledged: the kernel answers the others when they fail, and a socket's
        buffer holds some hundred answers. One at a time, 230 entries took 20 to 60 ms of a flip.
        """
        gone = 0
        for first in range(0, len(entries), _BATCH):
            batch = entries[first : first + _BATCH]
            with self._lock:
                gone += self._delete_batch(batch)
        return len(entries) - gone

    def _delete_batch(self, batch: Sequence[Entry]) -> int:
        """How many were gone already."""
        messages = []
        for entry in batch:
            name = _attribute(_CTA_TUPLE_ORIG | _NESTED, entry.original) + _attribute(_CTA_ID, entry.id)
            flags = _NLM_ACK if entry is batch[-1] else 0
            messages.append(self._message(_MSG_DELETE, flags, _af(entry.client.family), name))
        missing = 0
        with self._kernel() as sock:
            sock.send(b"".join(messages))
            last = self._sequence
            answered = False
            while not answered:
                for number, kind, payload in _parts(sock.recv(1 << 18)):
                    if kind != _NLMSG_ERROR or not last - len(batch) < number <= last:
                        continue
                    code = -struct.unpack_from("=i", payload)[0]
                    if code not in (0, errno.ENOENT):
                        raise OSError(code, os.strerror(code))
                    missing += code == errno.ENOENT
                    answered = answered or number == last
        return missing

    def find(self, service: Service, client: Endpoint) -> Entry | None:
        """The entry of one client's connection to a service; None when there is none."""
        original = _tuple(client, service.address, _PROTOCOLS[service.protocol])
        with self._lock:
            try:
                name = _attribute(_CTA_TUPLE_ORIG | _NESTED, original)
                found = [_entry(p) for p in self._ask(_MSG_GET, _NLM_ACK, _af(client.family), name)]
            except FileNotFoundError:
                return None
        return next((entry for entry in found if entry is not None), None)

    def _ask(self, kind: int, flags: int, af: int, attributes: bytes) -> Iterator[bytes]:
        """Payloads of the replies. FileNotFoundError for ENOENT; a broken socket is opened anew next time."""
        with self._kernel() as sock:
            sock.send(self._message(kind, flags, af, attributes))
            yield from _replies(sock, self._sequence)

    def _message(self, kind: int, flags: int, af: int, attributes: bytes) -> bytes:
        self._sequence += 1
        body = struct.pack("!BBH", af, 0, 0) + attributes
        return struct.pack("=IHHII", 16 + len(body), kind, _NLM_REQUEST | flags, self._sequence, 0) + body

    @contextmanager
    def _kernel(self) -> Iterator[socket.socket]:
        """The socket; after a failure other than "no such entry" it is closed, and opened anew next time."""
        try:
            sock = self._socket = self._socket or _open()
            yield sock
        except FileNotFoundError:
            raise
        except OSError as error:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            raise RedirectError(f"conntrack: {error.strerror or error}") from None


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.bind((0, 0))
    sock.settimeout(_TIMEOUT)
    return sock


def _replies(sock: socket.socket, sequence: int) -> Iterator[bytes]:
    while True:
        for number, kind, payload in _parts(sock.recv(1 << 18)):
            if number != sequence:
                continue
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                if code == 0:
                    return
                raise OSError(code, os.strerror(code))
            yield payload[4:]


def _parts(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Sequence number, kind and payload of each message of a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _flags, number, _pid = struct.unpack_from("=IHHII", data, offset)
        yield number, kind, data[offset + 16 : offset + length]
        offset += (max(length, 16) + 3) & ~3


def _af(family: int) -> int:
    return int(socket.AF_INET6 if family == 6 else socket.AF_INET)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _tuple(source: Endpoint, destination: Endpoint, protocol: int) -> bytes:
    """CTA_TUPLE_IP (1) with source and destination, CTA_TUPLE_PROTO (2) with number and ports."""
    v6 = source.family == 6
    ip = _attribute(3 if v6 else 1, source.packed) + _attribute(4 if v6 else 2, destination.packed)
    proto = _attribute(1, bytes([protocol])) + _attribute(2, struct.pack("!H", source.port))
    proto += _attribute(3, struct.pack("!H", destination.port))
    return _attribute(1 | _NESTED, ip) + _attribute(2 | _NESTED, proto)


def _ends(data: bytes) -> tuple[Endpoint, Endpoint, int] | None:
    """Source, destination and protocol of a tuple; None for one without ports."""
    parts = dict(_attributes(data))
    ip, proto = dict(_attributes(parts.get(1, b""))), dict(_attributes(parts.get(2, b"")))
    source, destination = ip.get(1) or ip.get(3), ip.get(2) or ip.get(4)
    if not source or not destination or 2 not in proto or 3 not in proto:
        return None
    return (
        Endpoint(ipaddress.ip_address(source).compressed, struct.unpack("!H", proto[2])[0]),
        Endpoint(ipaddress.ip_address(destination).compressed, struct.unpack("!H", proto[3])[0]),
        proto[1][0],
    )


def _entry(payload: bytes) -> Entry | None:
    parts = dict(_attributes(payload))
    original, reply = _ends(parts.get(_CTA_TUPLE_ORIG, b"")), _ends(parts.get(_CTA_TUPLE_REPLY, b""))
    if original is None or reply is None:
        return None
    status = struct.unpack("!I", parts.get(_CTA_STATUS, b"\0\0\0\0"))[0]
    tcp = dict(_attributes(dict(_attributes(parts.get(_CTA_PROTOINFO, b""))).get(1, b"")))
    state = tcp.get(1, b"\0")[0]
    return Entry(
        client=original[0],
        service=original[1],
        server=reply[0],
        protocol=original[2],
        mark=struct.unpack("!I", parts.get(_CTA_MARK, b"\0\0\0\0"))[0],
        unanswered=not status & _SEEN_REPLY or (state == _TCP_CLOSE and not status & _ASSURED),
        established=state == _TCP_ESTABLISHED,
        open=original[2] != _PROTOCOLS["tcp"] or _TCP_SYN_SENT <= state <= _TCP_CLOSE_WAIT,
        original=parts[_CTA_TUPLE_ORIG],
        id=parts.get(_CTA_ID, b"\0\0\0\0"),
    )
