"""Conntrack: dump a service's entries, find one, delete one or many. The kernel filters by ct mark.

Source: linux/netfilter/nfnetlink_conntrack.h, libnetfilter_conntrack.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from check_failover.model import Endpoint, Service
from check_failover.redirector.nftables.netlink import ACK, DUMP, NESTED, Netlink, attribute, attributes, nested

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_CTA_TUPLE_ORIG, _CTA_STATUS, _CTA_PROTOINFO = 1, 3, 4
_CTA_MARK, _CTA_ID, _CTA_MARK_MASK, _CTA_STATUS_MASK = 8, 12, 21, 26
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
_ASSURED = 1 << 2  # IPS_ASSURED
_SRC_NAT, _DST_NAT = 1 << 4, 1 << 5  # IPS_SRC_NAT, IPS_DST_NAT
_TCP_SYN_SENT, _TCP_ESTABLISHED, _TCP_CLOSE_WAIT, _TCP_CLOSE = 1, 3, 5, 8  # enum tcp_conntrack
_PROTOCOLS = {"tcp": 6, "udp": 17}
_BATCH = 100  # deletes in one message


@dataclass(frozen=True, slots=True)
class Entry:
    """One tracked connection of a service: its client, its state, and by its mark its server."""

    client: Endpoint
    mark: int
    unanswered: bool  # no reply yet, or only a refusal: its client loses nothing when the entry is deleted
    assured: bool  # packets went both ways, more than a handshake's first two
    established: bool
    open: bool  # client or server may still send; UDP: the entry exists
    original: bytes  # CTA_TUPLE_ORIG as the kernel wrote it, to name the entry in a delete
    id: bytes  # CTA_ID: so that a delete never meets a younger entry of the same tuple


class Conntrack:
    """All methods raise RedirectError when the kernel refuses; safe to call from several threads."""

    def __init__(self) -> None:
        self._kernel = Netlink("conntrack")

    def dump(self, mark: int, mask: int, family: int, *, unassured: bool = False) -> list[Entry]:
        """All entries with that mark; ``unassured``: only those that are not assured. ``family`` is 4 or 6."""
        filters = _marked(mark, mask)
        if unassured:  # kernels before 5.18 ignore it
            filters += attribute(_CTA_STATUS, bytes(4)) + attribute(_CTA_STATUS_MASK, struct.pack("!I", _ASSURED))
        found = map(_entry, self._kernel.ask(_GET, DUMP, _af(family), filters))
        return [e for e in found if e is not None and e.mark & mask == mark and not (unassured and e.assured)]

    def flush(self, mark: int, mask: int, family: int) -> None:
        """Remove all entries with that mark by one request."""
        self._kernel.ask(_DELETE, ACK, _af(family), _marked(mark, mask))

    def delete_all(self, entries: Sequence[Entry]) -> int:
        """Remove exactly these entries, many to a message; returns how many were still there.

        One at a time, 230 entries took 20 to 60 ms of a flip.
        """
        gone = 0
        for first in range(0, len(entries), _BATCH):
            batch = entries[first : first + _BATCH]
            requests = []
            for entry in batch:
                name = attribute(_CTA_TUPLE_ORIG | NESTED, entry.original) + attribute(_CTA_ID, entry.id)
                requests.append((_DELETE, ACK if entry is batch[-1] else 0, _af(entry.client.family), name))
            gone += self._kernel.send_all(requests, ignored=errno.ENOENT)
        return len(entries) - gone

    def find(self, service: Service, client: Endpoint) -> Entry | None:
        """The entry of one client's connection to a service; None when there is none."""
        original = _tuple(client, service.address, _PROTOCOLS[service.protocol])
        try:
            name = attribute(_CTA_TUPLE_ORIG | NESTED, original)
            found = map(_entry, self._kernel.ask(_GET, ACK, _af(client.family), name))
        except FileNotFoundError:
            return None
        return next((entry for entry in found if entry is not None), None)


def _marked(mark: int, mask: int) -> bytes:
    return attribute(_CTA_MARK, struct.pack("!I", mark)) + attribute(_CTA_MARK_MASK, struct.pack("!I", mask))


def _af(family: int) -> int:
    return int(socket.AF_INET6 if family == 6 else socket.AF_INET)


def _tuple(source: Endpoint, destination: Endpoint, protocol: int) -> bytes:
    """CTA_TUPLE_IP (1) with source and destination, CTA_TUPLE_PROTO (2) with number and ports."""
    v6 = source.family == 6
    ip = attribute(3 if v6 else 1, source.packed) + attribute(4 if v6 else 2, destination.packed)
    proto = attribute(1, bytes([protocol])) + attribute(2, struct.pack("!H", source.port))
    proto += attribute(3, struct.pack("!H", destination.port))
    return nested(1, ip) + nested(2, proto)


def _entry(payload: bytes) -> Entry | None:
    """None for one without ports. Few steps, because a flip waits for thousands of these."""
    parts = dict(attributes(payload))
    status = int.from_bytes(parts.get(_CTA_STATUS, b""))
    # Of the source (1, 3: its address, 2: its port) or the destination (2, 4 and 3), if it began with the server
    # (``ruleset``).
    v4, v6, port = (2, 4, 3) if status & (_SRC_NAT | _DST_NAT) == _SRC_NAT else (1, 3, 2)
    original = dict(attributes(parts.get(_CTA_TUPLE_ORIG, b"")))
    ip, proto = dict(attributes(original.get(1, b""))), dict(attributes(original.get(2, b"")))
    if port not in proto or (v4 not in ip and v6 not in ip):
        return None
    address = socket.inet_ntop(socket.AF_INET, ip[v4]) if v4 in ip else ipaddress.IPv6Address(ip[v6]).compressed
    tcp = dict(attributes(dict(attributes(parts.get(_CTA_PROTOINFO, b""))).get(1, b"")))
    state = tcp.get(1, b"\0")[0]
    return Entry(
        client=Endpoint(address, int.from_bytes(proto[port])),
        mark=int.from_bytes(parts.get(_CTA_MARK, b"")),
        unanswered=not status & _SEEN_REPLY or (state == _TCP_CLOSE and not status & _ASSURED),
        assured=bool(status & _ASSURED),
        established=state == _TCP_ESTABLISHED,
        open=proto[1][0] != _PROTOCOLS["tcp"] or _TCP_SYN_SENT <= state <= _TCP_CLOSE_WAIT,
        original=parts[_CTA_TUPLE_ORIG],
        id=parts.get(_CTA_ID, b"\0\0\0\0"),
    )
