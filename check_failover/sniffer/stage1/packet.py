"""Frames to packets: Ethernet (802.1Q, 802.1ad), IPv4, IPv6, TCP, UDP, ICMP unreachable. Pure.

Any other frame, and one that is cut before its ports, is None. Addresses stay bytes and fields stay numbers, because
this code runs for every captured frame.

Source: RFC 791, 8200, 9293, 768, 792, 4443; IEEE 802.1Q.
"""

from struct import unpack_from
from typing import NamedTuple

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
TCP, UDP = 6, 17
ETHERNET, RAW_IP, LINUX_SLL = 1, 101, 113  # pcap link types
_VLAN = frozenset({0x8100, 0x88A8, 0x9100})
_EXTENSIONS = frozenset({0, 43, 44, 60})  # hop-by-hop, routing, fragment, destination options
_FRAGMENT = 44


class Packet(NamedTuple):
    """One TCP or UDP packet, or (``unreachable``) an ICMP error about one, with the quoted packet's addresses."""

    now: float
    proto: int
    src: bytes
    sport: int
    dst: bytes
    dport: int
    flags: int
    seq: int
    ack: int
    payload: bytes  # the captured part
    length: int  # of the payload on the wire
    unreachable: bool = False
    ip_offset: int = 0  # where the IP header begins in the frame


def parse(frame: bytes, now: float, linktype: int = ETHERNET) -> Packet | None:
    """The packet in a frame, or None. Never raises."""
    size = len(frame)
    if linktype == ETHERNET:
        if size < 34:
            return None
        kind, offset = (frame[12] << 8) | frame[13], 14
        while kind in _VLAN and size >= offset + 4:
            kind, offset = (frame[offset + 2] << 8) | frame[offset + 3], offset + 4
    elif linktype == LINUX_SLL:
        if size < 36:
            return None
        kind, offset = (frame[14] << 8) | frame[15], 16
    else:
        if size < 20:
            return None
        kind, offset = (0x0800 if frame[0] >> 4 == 4 else 0x86DD), 0
    if kind == 0x0800:
        return _ipv4(frame, offset, now)
    if kind == 0x86DD:
        return _ipv6(frame, offset, now)
    return None


def _ipv4(frame: bytes, offset: int, now: float) -> Packet | None:
    if len(frame) < offset + 20 or frame[offset] >> 4 != 4:
        return None
    header = (frame[offset] & 15) * 4
    total, _, fragment = unpack_from("!HHH", frame, offset + 2)
    if header < 20 or fragment & 0x1FFF:  # a later fragment has no ports
        return None
    proto = frame[offset + 9]
    src, dst = frame[offset + 12 : offset + 16], frame[offset + 16 : offset + 20]
    end = offset + total if total else len(frame)  # 0: segmentation offload, use the frame's length
    if proto == 1:
        return _icmp(frame, offset + header, now, 4, offset)
    return _transport(frame, offset + header, end, proto, src, dst, now, offset)


def _ipv6(frame: bytes, offset: int, now: float) -> Packet | None:
    if len(frame) < offset + 40 or frame[offset] >> 4 != 6:
        return None
    length, proto = unpack_from("!HB", frame, offset + 4)
    src, dst = frame[offset + 8 : offset + 24], frame[offset + 24 : offset + 40]
    end = offset + 40 + length if length else len(frame)
    position = offset + 40
    for _ in range(8):
        if proto not in _EXTENSIONS:
            break
        if len(frame) < position + 8:
            return None
        if proto == _FRAGMENT:
            if unpack_from("!H", frame, position + 2)[0] & 0xFFF8:  # a later fragment has no ports
                return None
            proto, position = frame[position], position + 8
        else:
            proto, position = frame[position], position + 8 + 8 * frame[position + 1]
    if proto == 58:
        return _icmp(frame, position, now, 6, offset)
    return _transport(frame, position, end, proto, src, dst, now, offset)


def _transport(
    frame: bytes, position: int, end: int, proto: int, src: bytes, dst: bytes, now: float, ip_offset: int
) -> Packet | None:
    size = len(frame)
    if proto == TCP and size >= position + 14:
        sport, dport, seq, ack, header, flags = unpack_from("!HHIIBB", frame, position)
        header = (header >> 4) * 4
        if header < 20:
            return None
        start = position + header
        return Packet(
            now, TCP, src, sport, dst, dport, flags, seq, ack, frame[start:end], max(0, end - start), False, ip_offset
        )
    if proto == UDP and size >= position + 8:
        sport, dport, length = unpack_from("!HHH", frame, position)
        start = position + 8
        end = min(end, position + length) if length else end  # 0: a jumbogram, use the IP header's length
        size = max(0, end - start)
        return Packet(now, UDP, src, sport, dst, dport, 0, 0, 0, frame[start:end], size, False, ip_offset)
    return None


def _icmp(frame: bytes, position: int, now: float, version: int, ip_offset: int) -> Packet | None:
    """The packet that a "destination unreachable" quotes, marked ``unreachable``."""
    if len(frame) < position + 8 + 20:
        return None
    kind, code = frame[position], frame[position + 1]
    # "fragmentation needed" (code 4) belongs to path MTU discovery and is no fault
    if (version == 4 and (kind != 3 or code == 4)) or (version == 6 and kind != 1):
        return None
    quoted = position + 8
    if version == 4:
        proto, ports = frame[quoted + 9], quoted + (frame[quoted] & 15) * 4
        src, dst = frame[quoted + 12 : quoted + 16], frame[quoted + 16 : quoted + 20]
    else:
        if len(frame) < quoted + 44:
            return None
        proto, ports = frame[quoted + 6], quoted + 40
        src, dst = frame[quoted + 8 : quoted + 24], frame[quoted + 24 : quoted + 40]
    if proto not in (TCP, UDP) or len(frame) < ports + 4:
        return None
    sport, dport = unpack_from("!HH", frame, ports)
    return Packet(now, proto, src, sport, dst, dport, 0, 0, 0, b"", 0, True, ip_offset)
