"""The filters, run twice over frames that scapy builds: by a small interpreter, and by the kernel itself.

The kernel runs a socket's filter over whatever that socket is sent, a pair of Unix datagram sockets included, so this
needs neither root nor an interface.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from scapy.layers import inet
from scapy.layers.inet import ICMP, IP, IPOption_Router_Alert, TCPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet as Layer
from scapy.packet import Padding, Raw

from check_failover.model import Service
from check_failover.sniffer.capture import bpf
from check_failover.sniffer.stage1.packet import parse
from tests.unit import packets as made

SO_ATTACH_FILTER = 26
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # given, or scapy asks the network for them
CLIENT, SERVER, OTHER = "198.51.100.7", "192.0.2.10", "192.0.2.11"
CLIENT6, SERVER6, OTHER6 = "2001:db8::7", "2001:db8::10", "2001:db8::11"


NAMES = {code: name for name, code in bpf.CODES.items()}
LOADS = {"ld [": "!I", "ldh [": "!H", "ldb [": "B"}
SUMS: dict[str, Callable[[int, int, int], int]] = {
    "ld #": lambda _a, k, _x: k,
    "add #": lambda a, k, _x: a + k,
    "add x": lambda a, _k, x: a + x,
    "mul #": lambda a, k, _x: a * k,
    "and #": lambda a, k, _x: a & k,
    "lsh #": lambda a, k, _x: a << k,
    "rsh #": lambda a, k, _x: a >> k,
}
JUMPS: dict[str, Callable[[int, int, int], bool]] = {
    "jeq #": lambda a, k, _x: a == k,
    "jeq x": lambda a, _k, x: a == x,
    "jgt #": lambda a, k, _x: a > k,
    "jset #": lambda a, k, _x: a & k != 0,
}


def interpret(program: bytes, frame: bytes) -> int:
    """A classic BPF program over a frame: the bytes it lets through (McCanne and Jacobson; filter.rst)."""
    a = x = at = 0
    memory = [0] * 16
    for _ in range(len(program) // 8):  # programs only jump forward
        code, true, false, k = struct.unpack_from("HBBI", program, 8 * at)
        name = NAMES[code]
        at += 1
        try:
            if name == "ldb [" and k == bpf.PACKET_TYPE:
                a = 0  # to this host
            elif name in LOADS:
                (a,) = struct.unpack_from(LOADS[name], frame, k)
            elif "[x + " in name:
                (a,) = struct.unpack_from(LOADS[name.removesuffix("x + ")], frame, k + x)
            elif name == "ldxb 4*([":
                x = 4 * (frame[k] & 15)
            elif name in ("st M[", "stx M["):
                memory[k] = a if name == "st M[" else x
            elif name == "ld M[":
                a = memory[k]
            elif name in ("ldx M[", "ldx #", "tax"):
                x = {"ldx M[": memory[k % 16], "ldx #": k, "tax": a}[name]
            elif name in SUMS:
                a = SUMS[name](a, k, x) & 0xFFFFFFFF
            elif name in JUMPS:
                at += true if JUMPS[name](a, k, x) else false
            elif name == "jmp ":
                at += k
            elif name == "ret #":
                return int(k)
            else:
                raise AssertionError(f"unknown instruction {code:#x}")
        except (struct.error, IndexError):
            return 0  # a load behind the frame's end
    raise AssertionError("fell off the end")


class Kernel:
    """The same by the kernel."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._there.setblocking(False)

    def run(self, program: bytes, frame: bytes) -> int:
        code = ctypes.create_string_buffer(program)
        filter_ = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
        self._there.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)
        self._here.setblocking(False)
        try:
            self._here.send(frame)
            return len(self._there.recv(65536))
        except (BlockingIOError, PermissionError):
            return 0

    def close(self) -> None:
        self._here.close()
        self._there.close()


Run = Callable[[bytes, Layer], int]


@pytest.fixture
def passes() -> Iterator[Run]:
    """The bytes of a frame that a filter lets through, by both."""
    kernel = Kernel()

    def run(program: bytes, frame: Layer | bytes) -> int:
        data = bytes(frame)
        kept = min(interpret(program, data), len(data))
        assert kernel.run(program, data) == kept
        return kept

    yield run
    kernel.close()


def service(protocol: str = "tcp", address: str = SERVER, port: int = 389) -> Service:
    return made.service(protocol=protocol, address=address, port=port)


def watching(one: Service, *sample: int) -> bytes:
    """The filter for one service; ``sample``: bits and port."""
    bits, port, *_ = (*sample, 0, 0)
    return bpf.clients_filter({bpf.number(one.protocol, one.address): (bits, port)})


def segment(protocol: str, sport: int, dport: int) -> Layer:
    return inet.TCP(sport=sport, dport=dport) if protocol == "tcp" else inet.UDP(sport=sport, dport=dport)


NETWORKS: dict[str, tuple[str, str, str, Callable[..., Layer]]] = {
    "v4": (CLIENT, SERVER, OTHER, IP),
    "v4 with options": (CLIENT, SERVER, OTHER, lambda **ends: IP(options=[IPOption_Router_Alert()], **ends)),
    "v6": (CLIENT6, SERVER6, OTHER6, IPv6),
    "v6 hop by hop": (CLIENT6, SERVER6, OTHER6, lambda **ends: IPv6(**ends) / IPv6ExtHdrHopByHop()),
    "v6 fragmented": (CLIENT6, SERVER6, OTHER6, lambda **ends: IPv6(**ends) / IPv6ExtHdrFragment(m=1)),
    "v6 with four headers": (
        *(CLIENT6, SERVER6, OTHER6),
        lambda **ends: (
            IPv6(**ends)
            / IPv6ExtHdrHopByHop()
            / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"x" * 30)])
            / IPv6ExtHdrRouting()
            / IPv6ExtHdrFragment(m=1)
        ),
    ),
}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("link", [ETHER, ETHER / Dot1Q(vlan=5)], ids=["ethernet", "vlan"])
def test_both_directions_of_the_service_and_nothing_else(passes: Run, link: Layer, network: str, protocol: str) -> None:
    """Address and port together, at the server's end of the packet."""
    client, server, other, ip = NETWORKS[network]
    program = watching(service(protocol, server))
    wrong = "udp" if protocol == "tcp" else "tcp"

    def kept(source: str, sport: int, to: str, dport: int, kind: str = protocol) -> bool:
        return passes(program, link / ip(src=source, dst=to) / segment(kind, sport, dport) / Raw(b"x" * 30)) > 0

    assert kept(client, 40000, server, 389)
    assert kept(server, 389, client, 40000)
    assert kept(client, 389, server, 389)
    assert not kept(client, 40000, server, 390)
    assert not kept(client, 40000, other, 389)
    assert not kept(server, 390, client, 40000)
    assert not kept(other, 389, client, 40000)
    assert not kept(server, 40000, client, 389)
    assert not kept(client, 389, server, 40000)
    assert not kept(client, 40000, server, 389, wrong)


@pytest.mark.parametrize(
    "frame",
    [
        ETHER / ARP(),
        ETHER / Dot1Q(type=0x0806) / ARP(),
        ETHER / IP(src=CLIENT, dst=SERVER) / ICMP(),
        ETHER / IP(src=CLIENT, dst=SERVER, frag=100, proto=6) / Raw(struct.pack("!HH", 40000, 389) + b"x" * 40),
        ETHER / IPv6(src=CLIENT6, dst=SERVER6) / inet.TCP(sport=40000, dport=389),
        ETHER / Raw(b"short"),
    ],
    ids=["arp", "arp in a vlan", "ping", "a later fragment", "the other family", "short"],
)
def test_what_else_is_on_the_wire_is_dropped(passes: Run, frame: Layer) -> None:
    """In the kernel, before anybody pays for it."""
    assert passes(watching(service()), frame) == 0


def test_frames_may_end_anywhere(passes: Run) -> None:
    """A load behind the end drops the frame; it never passes by accident what the parser could use."""
    for link in (ETHER, ETHER / Dot1Q()):
        whole = bytes(link / IP(src=CLIENT, dst=SERVER) / inet.TCP(sport=40000, dport=389))
        for size in range(1, len(whole)):
            if passes(watching(service()), whole[:size]):
                assert size >= len(whole) - 16  # the ports were there


def test_no_more_than_the_snaplen_is_copied(passes: Run) -> None:
    """A large segment costs 512 bytes."""
    frame = ETHER / IP(src=CLIENT, dst=SERVER) / inet.TCP(sport=40000, dport=389) / Raw(b"x" * 1400)
    assert passes(watching(service()), frame) == bpf.SNAPLEN == 512


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("vlan", [False, True], ids=["ethernet", "vlan"])
@pytest.mark.parametrize("sample", [1, 3, 8])
def test_sampling_keeps_whole_connections(network: str, vlan: bool, sample: int) -> None:
    """Both directions of a connection or none; of even ports, which Linux favours, one of 2**sample."""
    client, server, _, ip = NETWORKS[network]
    program = watching(service("tcp", server), sample)
    link = ETHER / Dot1Q(vlan=5) if vlan else ETHER
    up = bytearray(bytes(link / ip(src=client, dst=server) / inet.TCP(sport=1, dport=389)))
    down = bytearray(bytes(link / ip(src=server, dst=client) / inet.TCP(sport=389, dport=1)))
    kept = 0
    ports = range(32768, 61440, 8)
    for port in ports:
        up[len(up) - 20 : len(up) - 18] = down[len(down) - 18 : len(down) - 16] = port.to_bytes(2, "big")
        there, back = interpret(program, bytes(up)), interpret(program, bytes(down))
        assert there == back
        kept += there > 0
    assert kept / len(ports) == pytest.approx(1 / 2**sample, rel=0.1)


def test_the_kernel_samples_alike(passes: Run) -> None:
    """A few ports through the kernel as well."""
    program = watching(service(), 2)
    for port in (32768, 32784, 32800, 32816, 32832, 40001, 50002):
        for ends, ports in (((CLIENT, SERVER), (port, 389)), ((SERVER, CLIENT), (389, port))):
            frame = ETHER / IP(src=ends[0], dst=ends[1]) / inet.TCP(sport=ports[0], dport=ports[1])
            assert (passes(program, frame) > 0) is ((port >> 4) & 3 == 0)


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    """Watching fewer connections never begins to watch new ones in their middle."""
    programs = [watching(service(), bits) for bits in (0, 1, 2, 3)]
    head = bytes(ETHER / IP(src=CLIENT, dst=SERVER) / inet.TCP())[:34]
    for port in range(32768, 61000, 2):
        kept = [interpret(program, head + struct.pack("!HH", port, 389)) > 0 for program in programs]
        assert kept == sorted(kept, reverse=True)


FAULTS = {
    "RST of a connection": (ETHER / IP() / inet.TCP(flags="RA", seq=7), False),
    "RST without ACK": (ETHER / IP() / inet.TCP(flags="R"), False),
    "RST and ACK": (ETHER / IP() / inet.TCP(flags="RA"), True),
    "RST behind options": (ETHER / IP(options=[IPOption_Router_Alert()]) / inet.TCP(flags="RA"), True),
    "RST v6": (ETHER / IPv6() / inet.TCP(flags="RA"), True),
    "unreachable": (ETHER / IP() / ICMP(type=3, code=1) / IP(proto=6) / TCPerror(), True),
    "unreachable v6": (ETHER / IPv6() / ICMPv6DestUnreach() / IPv6() / inet.UDP(), True),
    "SYN": (ETHER / IP() / inet.TCP(flags="S"), False),
    "data": (ETHER / IP() / inet.TCP(flags="PA") / Raw(b"\x04" * 40), False),
    "data v6": (ETHER / IPv6() / inet.TCP(flags="PA") / Raw(b"\x04" * 40), False),
    "UDP": (ETHER / IP() / inet.UDP() / Raw(b"\xff" * 40), False),
    "UDP v6": (ETHER / IPv6() / inet.UDP() / Raw(b"\xff" * 40), False),
    "ping": (ETHER / IP() / ICMP(), False),
    "time exceeded": (ETHER / IP() / ICMP(type=11) / IP() / TCPerror(), False),
    "ping v6": (ETHER / IPv6() / ICMPv6EchoRequest(), False),
    "hop by hop": (ETHER / IPv6() / IPv6ExtHdrHopByHop() / inet.TCP(flags="PA"), False),
    "a later fragment": (ETHER / IP(frag=100, proto=6) / Raw(b"\xff" * 40), False),
    "arp": (ETHER / ARP(), False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_faults_filter_passes_refusals_and_icmp_errors(passes: Run, name: str) -> None:
    """Of any address and port, and nothing of the traffic."""
    frame, wanted = FAULTS[name]
    assert (passes(bpf.faults_filter(), frame) > 0) is wanted
    if wanted:
        packet = parse(bytes(frame), 0.0)
        assert packet is not None


@pytest.mark.parametrize("name", [name for name, (_, wanted) in FAULTS.items() if wanted and "unreach" not in name])
def test_refusals_are_sampled_like_the_connections(passes: Run, name: str) -> None:
    """By the client's port, so that both taps keep the same clients."""
    frame = FAULTS[name][0].copy()
    for port in (40000, 40016, 40032):
        frame[inet.TCP].dport = port
        assert (passes(bpf.faults_filter(1, 40000), frame) > 0) is ((port ^ 40000) >> 4 & 1 == 0)


def test_a_later_fragment_of_v6_has_no_ports(passes: Run) -> None:
    """Whatever its bytes look like."""
    frame = ETHER / IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrFragment(offset=100, nh=6) / Raw(b"\x9c\x40\1\x85" * 9)
    assert passes(watching(service("tcp", SERVER6)), frame) == 0


def test_the_connection_seen_last_is_kept() -> None:
    """A handful of busy connections must not all be left out."""
    syn = bytes(ETHER / IP(src=CLIENT, dst=SERVER) / inet.TCP(flags="S"))
    for port in (40001, 51234, 65535):
        for bits in range(9):
            assert interpret(watching(service(), bits, port), syn[:34] + struct.pack("!HH", port, 389) + syn[38:]) > 0


def test_a_jump_too_far_is_refused() -> None:
    """Offsets have eight bits; a program that does not fit must not be assembled into another one."""
    middle = "and #0\n" * 256
    with pytest.raises(ValueError, match="jump too far at instruction 0"):
        bpf.assemble(bpf.parse(f"jeq #0, end\n{middle}end:\nret #0"))
    with pytest.raises(ValueError, match="jump too far"):
        bpf.assemble(bpf.parse("end:\nand #0\njeq #0, end\nret #0"))
    with pytest.raises(ValueError, match="not understood: mod #1 2 3"):
        bpf.parse("mod #1 2 3")


@pytest.mark.parametrize("network", ["4", "4 with options", "6", "6 behind an extension"])
@pytest.mark.parametrize("options", [[], [("Timestamp", (1, 2))], [("NOP", None)] * 40], ids=["none", "time", "all"])
def test_a_clients_ack_without_data_is_dropped(passes: Run, network: str, options: list[object]) -> None:
    """It demands nothing; padded by Ethernet or not. One that carries data or ends the connection stays."""
    ip = {
        "4": IP(src=CLIENT, dst=SERVER),
        "4 with options": IP(src=CLIENT, dst=SERVER, options=[IPOption_Router_Alert()]),
        "6": IPv6(src=CLIENT6, dst=SERVER6),
        "6 behind an extension": IPv6(src=CLIENT6, dst=SERVER6)
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 12)]),
    }[network]
    program = watching(made.service(address=SERVER6 if "6" in network else SERVER))

    def segment(flags: str, data: bytes = b"") -> Layer:
        return ETHER / ip / inet.TCP(sport=40000, dport=389, flags=flags, options=options) / Raw(data)

    assert not passes(program, segment("A"))
    assert not passes(program, segment("PA"))
    if network == "4" and not options:
        assert not passes(program, segment("A") / Padding(b"\0" * 6))
    for flags, data in (("A", b"x"), ("PA", b"x" * 50), ("FA", b""), ("S", b""), ("R", b""), ("RA", b"")):
        assert passes(program, segment(flags, data)), flags


def crowd(number: int) -> list[Service]:
    """Services of both protocols and families: some share an address, some a port."""
    found = []
    for n in range(number):
        address = f"192.0.{n // 200}.{n % 200 + 1}" if n % 3 else f"2001:db8::{n // 2:x}"
        found.append(service("udp" if n % 5 == 0 else "tcp", address, 389 + n % 7 if n % 2 else 10_000 + n))
    return found


def ask(one: Service, port: int, back: bool = False) -> Layer:
    client, ip = (CLIENT, IP) if one.address.family == 4 else (CLIENT6, IPv6)
    ends = (client, one.address.address) if not back else (one.address.address, client)
    ports = (port, one.address.port) if not back else (one.address.port, port)
    return ETHER / ip(src=ends[0], dst=ends[1]) / segment(one.protocol, *ports)


def test_one_program_for_a_thousand_services(passes: Run) -> None:
    """Each is found in both directions, also while a hundred are sampled; the kernel takes the program."""
    services = crowd(1023)
    numbers = [bpf.number(one.protocol, one.address) for one in services]
    assert len(set(numbers)) == 1023
    program = bpf.clients_filter({key: (3 if n % 10 == 0 else 0, 40000) for n, key in enumerate(numbers)})
    assert len(program) // 8 <= 4096
    for n, one in enumerate(services[:60] + services[-60:]):
        for back in (False, True):
            assert passes(program, ask(one, 40000, back))
            assert (passes(program, ask(one, 40016, back)) > 0) is (services.index(one) % 10 != 0)
            assert not passes(program, ask(service(one.protocol, str(one.address.address), 9000 + n), 40000, back))


def test_too_many_samples_keep_the_narrowest_in_the_kernel(passes: Run) -> None:
    """A wide sample may be left to the reader, so the program always fits."""
    services = crowd(1023)
    numbers = [bpf.number(one.protocol, one.address) for one in services]
    program = bpf.clients_filter({key: (9 if n < 100 else 1, 40000) for n, key in enumerate(numbers)}, leaving=True)
    assert len(program) // 8 <= 4096
    assert not any(passes(program, ask(one, 40016)) for one in services[:100])
    assert sum(passes(program, ask(one, 40016)) > 0 for one in services[100:200]) > 50


@pytest.mark.parametrize(("number", "foreign"), [(100, False), (400, True)])
def test_a_short_program_for_a_bsd(passes: Run, monkeypatch: pytest.MonkeyPatch, number: int, foreign: bool) -> None:
    """512 instructions, bpf(4). With too many services the reader looks each packet up."""
    monkeypatch.setattr(bpf, "LONGEST", 512)
    services = crowd(number)
    program = bpf.clients_filter({bpf.number(one.protocol, one.address): (0, 0) for one in services})
    assert len(program) // 8 <= 512
    assert all(passes(program, ask(one, 40000, back)) for one in services[:20] for back in (False, True))
    assert (passes(program, ask(service(port=9), 40000)) > 0) is foreign
    assert not passes(program, ETHER / ARP())


@pytest.mark.parametrize("six", [False, True], ids=["4", "6"])
def test_a_servers_rst_without_ack_is_dropped(passes: Run, six: bool) -> None:
    """It answers a segment of a connection that the server does not have. A refusal or an abort has ACK."""
    server, client = (SERVER6, CLIENT6) if six else (SERVER, CLIENT)
    ip = (IPv6 if six else IP)(src=server, dst=client)
    for program in (watching(service(address=server)), watching(service(address=server), 1, 40000)):
        for flags, kept in (("R", False), ("RA", True), ("SA", True), ("A", True), ("FA", True)):
            found = passes(program, ETHER / ip / inet.TCP(sport=389, dport=40000, flags=flags))
            assert (found > 0) is kept, flags
