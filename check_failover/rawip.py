"""The Internet checksum, and correction of a captured packet's checksums; the sockets for whole packets.

Captured packets often carry partial checksums, because the sender's network card was to finish them; they must be
recomputed before such a packet is sent again. scapy would do it in 25 ms, this takes microseconds.

Source: RFC 1071, 791, 9293 (3.1), 768, 8200 (8.1); raw(7).
"""

import random
import socket
import struct

from check_failover.model import Endpoint

_TCP, _UDP = 6, 17
_CHECKSUM_AT = {_TCP: 16, _UDP: 6}


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def bare_ack(source: Endpoint, destination: Endpoint) -> bytes:
    """A TCP segment that has the ACK flag, random numbers and nothing else (RFC 9293, section 3.1)."""
    numbers = random.getrandbits(32), random.getrandbits(32)
    segment = struct.pack("!HHIIBBHHH", source.port, destination.port, *numbers, 5 << 4, 0x10, 1024, 0, 0)
    return _with_checksum(source.packed + destination.packed, _TCP, bytearray(segment))


def finish(packet: bytes) -> bytes | None:
    """A complete TCP or UDP packet from its IP header on, with correct checksums; None for any other input."""
    if len(packet) < 20:
        return None
    if packet[0] >> 4 == 4:
        header, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        proto, addresses = packet[9], packet[12:20]
    else:
        if len(packet) < 40:
            return None
        header, total = 40, 40 + struct.unpack_from("!H", packet, 4)[0]
        proto, addresses = packet[6], packet[8:40]
    segment = bytearray(packet[header:total])
    at = _CHECKSUM_AT.get(proto)
    if at is None or len(packet) < total or len(segment) < at + 2:
        return None
    return packet[:header] + _with_checksum(addresses, proto, segment)


def _with_checksum(addresses: bytes, proto: int, segment: bytearray) -> bytes:
    at = _CHECKSUM_AT[proto]
    segment[at : at + 2] = b"\0\0"
    value = checksum(addresses + struct.pack("!IBBH", len(segment), 0, 0, proto) + segment)
    if proto == _UDP and value == 0:
        value = 0xFFFF  # 0 would mean "no checksum" (RFC 768)
    segment[at : at + 2] = struct.pack("!H", value)
    return bytes(segment)


def marked_socket(version: int, mark: int) -> socket.socket:
    """A raw socket for whole packets of IPv4 or IPv6, each with that mark. Raises OSError."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)  # implies that we write the IP header
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    return sock
