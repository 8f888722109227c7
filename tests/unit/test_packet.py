"""The parser: frames of every supported kind built by scapy, and anything else without a word."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import inet
from scapy.layers.dot11 import Dot11
from scapy.layers.inet import ICMP, IP, IPOption_Router_Alert, TCPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, CookedLinux, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet as Layer
from scapy.packet import Raw

from check_failover.rawip import checksum
from check_failover.sniffer.stage1.flows import StreamDirection
from check_failover.sniffer.stage1.packet import ACK, ETHERNET, LINUX_SLL, RAW_IP, RST, SYN, TCP, UDP, parse
from tests.fuzz.packets import run
from tests.unit.packets import packed

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # given, or scapy asks the network for them
V4, V6 = IP(src="198.51.100.7", dst="192.0.2.10"), IPv6(src="2001:db8::7", dst="2001:db8::10")
SEGMENT = inet.TCP(sport=40000, dport=389, flags="PA", seq=0xFFFFFFF0, ack=7) / Raw(b"hello")
LINKS = {
    "ethernet": ETHER,
    "vlan": ETHER / Dot1Q(vlan=5),
    "stacked vlan": ETHER / Dot1AD(vlan=5) / Dot1Q(vlan=6),
}
NETWORKS = {
    "v4": V4,
    "v4 with options": IP(src="198.51.100.7", dst="192.0.2.10", options=[IPOption_Router_Alert()]),
    "v6": V6,
    "v6 hop by hop": V6 / IPv6ExtHdrHopByHop(),
    "v6 with three headers": V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt(),
}


def raw(layers: Layer) -> bytes:
    return bytes(layers)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_tcp_is_read_through_every_link_and_network(link: Layer, network: Layer) -> None:
    """Addresses, ports, numbers and payload, wherever they stand."""
    frame = raw(link / network / SEGMENT)
    p = parse(frame, 5.0)
    assert p is not None
    client, server = ("198.51.100.7", "192.0.2.10") if network.version == 4 else ("2001:db8::7", "2001:db8::10")
    assert (p.now, p.proto, p.src, p.sport, p.dst, p.dport) == (5.0, TCP, packed(client), 40000, packed(server), 389)
    assert (p.seq, p.ack, p.flags & ACK, p.payload, p.length) == (0xFFFFFFF0, 7, ACK, b"hello", 5)
    assert frame[p.ip_offset] >> 4 == network.version
    assert not p.unreachable


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_udp_is_read(network: Layer) -> None:
    """A datagram with its payload."""
    p = parse(raw(ETHER / network / inet.UDP(sport=5353, dport=53) / Raw(b"question")), 5.0)
    assert p is not None
    assert (p.proto, p.sport, p.dport, p.payload, p.length) == (UDP, 5353, 53, b"question", 8)


@pytest.mark.parametrize(
    ("frame", "linktype", "offset"),
    [(CookedLinux(proto=0x0800) / V4 / SEGMENT, LINUX_SLL, 16), (V4 / SEGMENT, RAW_IP, 0), (V6 / SEGMENT, RAW_IP, 0)],
    ids=["cooked", "raw v4", "raw v6"],
)
def test_other_links(frame: Layer, linktype: int, offset: int) -> None:
    """What a recording from "any", or from a tunnel, brings."""
    p = parse(raw(frame), 5.0, linktype)
    assert p is not None
    assert (p.ip_offset, p.payload) == (offset, b"hello")


def test_options_of_tcp_are_no_payload() -> None:
    """Timestamps, SACK and the like stand before the payload."""
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("WScale", 7)]
    p = parse(raw(ETHER / V4 / inet.TCP(sport=40000, dport=389, flags="S", options=options)), 5.0)
    assert p is not None
    assert (p.flags, p.payload, p.length) == (SYN, b"", 0)


def test_padding_of_short_frames_is_no_payload() -> None:
    """Ethernet fills up to 60 bytes; an ACK must not look like six bytes of data."""
    frame = raw(ETHER / V4 / inet.TCP(sport=40000, dport=389, flags="A")).ljust(60, b"\0")
    p = parse(frame, 5.0)
    assert p is not None
    assert (p.payload, p.length) == (b"", 0)


def test_a_short_capture_tells_what_is_missing() -> None:
    """The snaplen cuts the payload; the length stays that of the wire."""
    p = parse(raw(ETHER / V4 / inet.TCP(sport=1, dport=2, flags="A") / Raw(b"x" * 1000))[:200], 5.0)
    assert p is not None
    assert (len(p.payload), p.length) == (200 - 54, 1000)
    u = parse(raw(ETHER / V4 / inet.UDP(sport=1, dport=2) / Raw(b"x" * 1000))[:200], 5.0)
    assert u is not None
    assert (len(u.payload), u.length) == (200 - 42, 1000)


def test_segmentation_offload_leaves_the_length_to_the_frame() -> None:
    """A total length of 0 is what a frame beyond 64 KiB carries before it is cut up (BIG TCP)."""
    frame = bytearray(raw(ETHER / V4 / SEGMENT))
    frame[16:18] = b"\0\0"
    p = parse(bytes(frame), 5.0)
    assert p is not None
    assert p.payload == b"hello"
    frame = bytearray(raw(ETHER / V6 / SEGMENT))
    frame[18:20] = b"\0\0"
    p = parse(bytes(frame), 5.0)
    assert p is not None
    assert p.payload == b"hello"


def test_a_lying_udp_length_never_makes_bytes_missing_or_surplus() -> None:
    """What is captured is never more than what was on the wire."""
    for length in (0, 4, 8, 12, 65535):
        p = parse(raw(ETHER / V4 / inet.UDP(sport=1, dport=2, len=length) / Raw(b"question")), 5.0)
        assert p is not None
        assert 0 <= len(p.payload) <= p.length <= 8


@pytest.mark.parametrize("code", [0, 1, 3, 9, 10, 13])
def test_an_icmp_error_tells_whom_it_is_about(code: int) -> None:
    """Net, host and port unreachable, and prohibited: the quoted packet, marked."""
    quoted = IP(src="198.51.100.7", dst="10.0.0.11", proto=6) / TCPerror(sport=40000, dport=389)
    p = parse(raw(ETHER / IP(src="10.0.0.1", dst="198.51.100.7") / ICMP(type=3, code=code) / quoted), 5.0)
    assert p is not None
    assert p.unreachable
    assert (p.src, p.sport, p.dst, p.dport) == (packed("198.51.100.7"), 40000, packed("10.0.0.11"), 389)


def test_an_icmpv6_error_tells_whom_it_is_about() -> None:
    """The same for IPv6."""
    quoted = V6 / inet.UDP(sport=5353, dport=53) / Raw(b"question")
    p = parse(raw(ETHER / IPv6(src="2001:db8::1", dst="2001:db8::7") / ICMPv6DestUnreach(code=4) / quoted), 5.0)
    assert p is not None
    assert p.unreachable
    assert (p.proto, p.sport, p.dst, p.dport) == (UDP, 5353, packed("2001:db8::10"), 53)


NOTHING = {
    "empty": b"",
    "arp": raw(ETHER / ARP()),
    "ping": raw(ETHER / V4 / ICMP()),
    "ping v6": raw(ETHER / V6 / ICMPv6EchoRequest()),
    "a later fragment": raw(ETHER / IP(src="198.51.100.7", dst="192.0.2.10", frag=100, proto=6) / Raw(b"x" * 40)),
    "a fragment of v6": raw(ETHER / V6 / IPv6ExtHdrFragment(offset=100) / Raw(b"x" * 40)),
    "path MTU discovery": raw(ETHER / V4 / ICMP(type=3, code=4) / V4 / SEGMENT),
    "time exceeded": raw(ETHER / V4 / ICMP(type=11) / V4 / SEGMENT),
    "wireless": raw(Dot11()) * 4,
    "a tunnel": raw(ETHER / V4 / IP() / SEGMENT),
    "nothing but a VLAN": raw(ETHER)[:12] + b"\x81\0\0\5" * 12,
    "an impossible IPv4 header": raw(ETHER)[:12] + b"\x08\0\x42" + b"\0" * 60,
    "an impossible TCP header": raw(ETHER / V4 / inet.TCP(dataofs=3)),
}


@pytest.mark.parametrize("frame", NOTHING.values(), ids=NOTHING)
def test_all_else_is_nothing(frame: bytes) -> None:
    """A capture brings all sorts; what is no packet of a service is None."""
    assert parse(frame, 5.0) is None


@pytest.mark.parametrize("layers", [V4 / SEGMENT, V6 / SEGMENT, NETWORKS["v6 with three headers"] / SEGMENT])
def test_a_frame_may_end_anywhere(layers: Layer) -> None:
    """Every cut gives None or a packet with the right ports, never an error."""
    for link, kind in ((LINKS["stacked vlan"], ETHERNET), (ETHER, ETHERNET)):
        whole = raw(link / layers)
        for size in range(len(whole)):
            p = parse(whole[:size], 5.0, kind)
            assert p is None or (p.sport, p.dport, p.length) == (40000, 389, 5)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([ETHERNET, RAW_IP, LINUX_SLL, 99]))
def test_random_bytes_never_raise(data: bytes, linktype: int) -> None:
    """Whatever the wire brings."""
    p = parse(data, 0.0, linktype)
    assert p is None or (0 <= len(p.payload) <= p.length or p.unreachable)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6))
def test_mutated_packets_never_raise(network: str, changes: list[tuple[int, int]]) -> None:
    """A valid packet with some bytes changed, then cut."""
    data = bytearray(_CACHE.setdefault(network, raw(ETHER / NETWORKS[network] / SEGMENT)))
    for at, value in changes:
        data[at % len(data)] = value
    p = parse(bytes(data), 0.0)
    assert p is None or 0 <= len(p.payload) <= p.length or p.unreachable


_CACHE: dict[str, bytes] = {}


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, (1 << 32) - 1),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=30),
)
def test_a_direction_passes_every_byte_on_once(start: int, pieces: list[tuple[int, int]]) -> None:
    """Repetitions, overlaps, holes and the wrap of the sequence numbers: no byte twice, none in the wrong order."""
    stream = bytes(range(100))
    direction = StreamDirection()
    direction.next = start
    passed: list[int] = []
    for offset, length in pieces:
        payload = stream[offset : offset + length]
        segment = direction.take((start + offset) % (1 << 32), payload, len(payload))
        passed += segment.new
        assert not (segment.new and (segment.repeated or segment.late))
    assert passed == sorted(set(passed))


def test_a_segment_that_fills_a_hole_is_no_repetition() -> None:
    """It was lost before it was seen; nobody repeated anything that was here."""
    direction = StreamDirection()
    for seq in (0, 20):
        direction.take(seq, b"x" * 10, 10)
    late = direction.take(10, b"x" * 5, 5)
    assert (late.late, late.repeated) == (True, False)
    assert direction.take(10, b"x" * 5, 5).repeated
    assert direction.take(15, b"x" * 5, 5).late
    assert direction.take(15, b"x" * 5, 5).repeated
    assert direction.take(0, b"x" * 10, 10).repeated


def test_resets_are_recognised() -> None:
    """The flag that means so much."""
    p = parse(raw(ETHER / V4 / inet.TCP(sport=389, dport=40000, flags="RA", seq=0, ack=1001)), 5.0)
    assert p is not None
    assert (p.flags & RST, p.seq, p.ack) == (RST, 0, 1001)


def test_scapy_and_rawip_agree_on_checksums() -> None:
    """The frames of these tests are what a kernel would send."""
    assert checksum(raw(V4 / SEGMENT)[:20]) == 0


def test_200_000_mutated_packets_raise_nothing_and_leave_nothing() -> None:
    """Parser, dialects and watches under mutated traffic of every service: no error, no growing memory."""
    sizes: list[int] = []

    def measure(number: int, _target: object) -> None:
        if number % 40_000 == 39_999:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            sizes.append(pages * os.sysconf("SC_PAGESIZE"))

    run(200_000, 20, measure)
    assert sizes[-1] - sizes[1] < 4 << 20, sizes
