"""A client that wants the sniffer to see what is not so. Runs in the client's namespace, as root.

    python -m tests.lab.attacker KIND ADDRESS PORT RATE

======== ============================================================================================================
strays   RATE searches a second, each on a connection of its own, with a TTL that ends at the controller: seen there,
         and never forwarded
forged   the same without any connection: segments from the client's own address and ever new ports
provoke  RATE binds a second with a name and no password; slapd answers unwillingToPerform (53)
acks     RATE bare ACKs a second from many ports, of connections that do not exist: the server answers each with a RST
orphans  RATE searches a second, as ``acks``
windows  RATE connections with 80 searches each, whose replies it reads eight seconds later: its receive window
         is closed until then
======== ============================================================================================================
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

from check_failover.rawip import finish
from tests.lab.load import search_request, tlv
from tests.lab.netns import CLIENT
from tests.lab.slapd import BASE

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, RECEIVED, SENT, REPAIR_OFF = 19, 20, 21, 1, 2, -1  # linux/tcp.h
ACK, PSH = 0x10, 0x08


def paced(rate: float) -> Iterator[int]:
    """Numbers, so many a second; those that are late come at once."""
    begun, number = time.monotonic(), 0
    while True:
        number += 1
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        yield number


def packet(
    source: str, sport: int, to: str, dport: int, flags: int, seq: int, ack: int, data: bytes, ttl: int
) -> bytes:
    """A TCP segment from its IP header on."""
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 502, 0, 0) + data
    if ":" in source:
        pack = [socket.inet_pton(socket.AF_INET6, address) for address in (source, to)]
        head = struct.pack("!IHBB", 6 << 28, len(tcp), 6, ttl)
    else:
        pack = [socket.inet_aton(address) for address in (source, to)]
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, ttl, 6, 0)
        head = head[:10] + struct.pack("!H", _checksum(head + b"".join(pack))) + head[12:]
    made = finish(head + b"".join(pack) + tcp)
    assert made is not None
    return made


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def forge_reply(address: str, server: str, port: int, link: bytes, data: bytes) -> bytes:
    """Connect to the service, then send ``data`` to ourselves as the server would; returns what the socket received.

    ``link``: the controller's hardware address. The frame has the numbers of the real connection, as its client knows
    them, and the server's own address: the controller's conntrack finds it in order.
    """
    with socket.create_connection((address, port), timeout=5.0) as client:
        ours, sport = client.getsockname()[:2]
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        numbers = []
        for queue in (RECEIVED, SENT):
            client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
            numbers.append(client.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF)
        forged = packet(server, port, ours, sport, ACK | PSH, numbers[0], numbers[1], data, 64)
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw:
            kind = 0x86DD if ":" in ours else 0x0800
            raw.sendto(forged, ("eth0", kind, 0, 0, link))
        client.settimeout(1.0)
        try:
            return client.recv(1000)
        except TimeoutError:
            return b""


def strays(address: str, port: int, rate: float) -> None:
    connections: list[socket.socket] = []
    for number in paced(rate):
        with contextlib.suppress(OSError):  # a server that hangs accepts no more
            made = socket.create_connection((address, port), timeout=3.0)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            made.send(search_request(number, BASE, "cn"))
            connections = [*connections[-199:], made]


def forged(address: str, port: int, rate: float) -> None:
    with _raw() as raw:
        for number in paced(rate):
            sport, seq, data = (
                random.randrange(1024, 32768),
                random.randrange(1 << 32),
                search_request(number, BASE, "cn"),
            )
            raw.sendto(packet(CLIENT, sport, address, port, ACK | PSH, seq, 1, data, 1), (address, 0))


def provoke(address: str, port: int, rate: float) -> None:
    with socket.create_connection((address, port), timeout=3.0) as made:
        for number in paced(rate):
            identity = (number % 30000 + 1).to_bytes(2, "big")
            made.send(tlv(0x30, tlv(2, identity), tlv(0x60, tlv(2, b"\x03"), tlv(4, b"cn=nobody"), tlv(0x80))))
            made.recv(4096)


def acks(address: str, port: int, rate: float, data: bytes = b"") -> None:
    ports = [random.randrange(1024, 65536) for _ in range(2000)]
    flags = ACK | PSH if data else ACK
    made = [packet(CLIENT, sport, address, port, flags, 1000 + sport, 1, data, 64) for sport in ports]
    with _raw() as raw:
        for number in paced(rate / 100):
            for each in range(100):
                with contextlib.suppress(BlockingIOError):
                    raw.sendto(made[(100 * number + each) % len(made)], (address, 0))


def orphans(address: str, port: int, rate: float) -> None:
    acks(address, port, rate, search_request(1, BASE, "cn"))


def windows(address: str, port: int, rate: float) -> None:
    made = [socket.socket() for _ in range(int(rate))]
    for one in made:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        one.connect((address, port))
        one.setblocking(False)
    for first in range(1, 1 << 30, 80):
        for one in made:
            with contextlib.suppress(BlockingIOError):
                one.send(b"".join(search_request(number, BASE, "description") for number in range(first, first + 80)))
        time.sleep(8.0)
        end, read = time.monotonic() + 1.0, 0
        while time.monotonic() < end:
            for one in select.select(made, [], [], 0.1)[0]:
                read += len(one.recv(65536))
        print(f"read late: {read}", flush=True)


def _raw() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


KINDS: dict[str, Callable[[str, int, float], None]] = {
    "strays": strays,
    "forged": forged,
    "provoke": provoke,
    "acks": acks,
    "orphans": orphans,
    "windows": windows,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
