"""Classic BPF programs for packet sockets: the kernel drops what stage 1 does not need. Pure.

A small assembler with the matches that the sniffer needs: service address and port in either direction, IPv4 and IPv6
(extension headers are skipped), one in-band VLAN tag (the kernel moves the outer tag to the frame's metadata), refusals
and ICMP errors. Sampling keeps whole connections by bits of the client's port. Linux's connect() prefers even ports, so
the lowest bits do not count. scapy's compile_filter would need libpcap, costs 41 MiB, and cannot sample.

Source: Linux Documentation/networking/filter.rst; McCanne and Jacobson, "The BSD Packet Filter", 1993; RFC 8200, 4.
"""

from collections.abc import Sequence
from struct import pack

from check_failover.model import Service

LDW, LDH, LDB = 0x20, 0x28, 0x30  # load absolute
LDXW, LDXH, LDXB = 0x40, 0x48, 0x50  # load relative to X
LDX_MSH = 0xB1  # X = 4 * (byte & 15): an IPv4 header's length
LDX_IMM, LDX_MEM, ST = 0x01, 0x61, 0x02
JEQ, JSET = 0x15, 0x45
AND, LSH, RSH, ADD, ADD_X = 0x54, 0x64, 0x74, 0x04, 0x0C
RET = 0x06
PACKET_TYPE = 0xFFFFF004  # metadata, no offset in the frame: SKF_AD_OFF + SKF_AD_PKTTYPE
SNAPLEN = 512  # bytes captured of a frame
_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, 0x8100
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = 4  # headers between IPv6 and TCP that the filter skips, at most
_OUTGOING = 4

Sample = tuple[int, int]  # bits, a port that is kept
Instruction = tuple[int, int | str, int | str, int]  # code, jump if true, jump if false, k; labels are names


def assemble(program: Sequence[Instruction | str]) -> bytes:
    """The ``struct sock_filter`` array of instructions and labels (a str is a label). Raises ValueError."""
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for item in program:
        if isinstance(item, str):
            labels[item] = len(instructions)
        else:
            instructions.append(item)
    code = b""
    for number, (operation, true, false, k) in enumerate(instructions):
        jumps = [labels[to] - number - 1 if isinstance(to, str) else to for to in (true, false)]
        if not all(0 <= jump < 256 for jump in jumps):
            raise ValueError(f"jump too far at instruction {number}")
        code += pack("HBBI", operation, *jumps, k)
    return code


def clients_filter(service: Service, sample: int = 0, port: int = 0, *, leaving: bool = False) -> bytes:
    """Frames between clients and one service address.

    Keeps one of 2**``sample`` connections, the one from client port ``port`` among them. A client's ACK without data
    demands nothing and is dropped, and so is a RST without ACK: it says that the server knows no such connection
    (RFC 9293, 3.10.7.1). A flood of these must not narrow the sample. ``leaving`` (Linux):
    keep answers only when this machine sends them, as a router does. An incoming packet from the service address is
    forged: with it a client could make a dead server look alive.
    """
    proto = _TCP if service.protocol == "tcp" else _UDP
    program: list[Instruction | str] = []
    kind, parts = (_IPV4, _v4) if service.address.family == 4 else (_IPV6, _v6)
    for base, no in ((14, "next"), (18, "no")):  # without and with a VLAN tag
        if base == 18:
            program += ["next", (LDH, 0, 0, 12), (JEQ, 0, no, _VLAN)]
        program += [(LDH, 0, 0, base - 2), (JEQ, 0, no, kind)]
        for row in parts(service, proto, base, no, (sample, port)):
            program.append(row)
            if row == f"source{base}" and leaving:
                program += [(LDB, 0, 0, PACKET_TYPE), (JEQ, 0, no, _OUTGOING)]
    return assemble([*program, "no", (RET, 0, 0, 0)])


def _match(load: int, at: int, value: int, otherwise: str) -> list[Instruction | str]:
    """Load the field at ``at``; jump to ``otherwise`` if it is not ``value``."""
    return [(load, 0, 0, at), (JEQ, 0, otherwise, value)]


def _no_fragment(base: int, no: str) -> list[Instruction | str]:
    """Drop a later fragment of IPv4, which has no ports; X = the header's length."""
    return [(LDH, 0, 0, base + 6), (JSET, no, 0, 0x1FFF), (LDX_MSH, 0, 0, base)]


def _keep(sample: Sample, load: Instruction, *demand: Instruction | str) -> list[Instruction | str]:
    """Accept all, or one of 2**bits connections by the bits from 4 on of the client's port, which meet ``demand``."""
    bits, port = sample
    mask = (1 << bits) - 1
    one = [load, (RSH, 0, 0, 4), (AND, 0, 0, mask), (JEQ, 0, "no", port >> 4 & mask)] if bits else []
    return [*one, *demand, (RET, 0, 0, SNAPLEN)]


def _demand(proto: int, base: int, *no_options: Instruction) -> list[Instruction | str]:
    """A TCP segment at ``base`` + X with SYN, FIN or RST, or with data: at least a byte behind its header.

    A load behind the frame's end drops the frame. ``no_options`` drops what is padded to Ethernet's least size.
    """
    if proto != _TCP:
        return []
    yes = f"demand{base}"
    flags: list[Instruction | str] = [(LDXB, 0, 0, base + 13), (AND, 0, 0, 0x07), (JEQ, 0, yes, 0), *no_options]
    end = [(LDXB, 0, 0, base + 12), (RSH, 0, 0, 4), (LSH, 0, 0, 2), (ADD_X, 0, 0, 0), (ST, 0, 0, 0)]
    return [*flags, *end, (LDX_MEM, 0, 0, 0), (LDXB, 0, 0, base), yes]


def _answer(proto: int, base: int, no: str) -> list[Instruction | str]:
    """A server's packet at ``base`` + X, but no RST without ACK."""
    return [(LDXB, 0, 0, base + 13), (AND, 0, 0, 0x14), (JEQ, no, 0, 0x04)] if proto == _TCP else []


def _v4(service: Service, proto: int, base: int, no: str, sample: Sample) -> list[Instruction | str]:
    address = int.from_bytes(service.address.packed, "big")
    port, source = service.address.port, f"source{base}"
    return [
        *_match(LDB, base + 9, proto, no),
        *_no_fragment(base, no),
        *_match(LDW, base + 16, address, source),
        *_match(LDXH, base + 2, port, source),
        *_keep(sample, (LDXH, 0, 0, base), *_demand(proto, base, (LDH, 0, 0, base + 2), (JEQ, no, 0, 40))),
        source,
        *_match(LDW, base + 12, address, no),
        *_match(LDXH, base, port, no),
        *_keep(sample, (LDXH, 0, 0, base + 2), *_answer(proto, base, no)),
    ]


def _v6(service: Service, proto: int, base: int, no: str, sample: Sample) -> list[Instruction | str]:
    packed, port, source = service.address.packed, service.address.port, f"source{base}"
    words = [int.from_bytes(packed[i : i + 4], "big") for i in range(0, 16, 4)]
    rows = [*_extensions(proto, base, no), f"ports{base}"]
    for i, word in enumerate(words):
        rows += _match(LDW, base + 24 + 4 * i, word, source)
    rows += _match(LDXH, base + 42, port, source)
    rows += [*_keep(sample, (LDXH, 0, 0, base + 40), *_demand(proto, base + 40)), source]
    for i, word in enumerate(words):
        rows += _match(LDW, base + 8 + 4 * i, word, no)
    return [
        *rows,
        *_match(LDXH, base + 40, port, no),
        *_keep(sample, (LDXH, 0, 0, base + 42), *_answer(proto, base + 40, no)),
    ]


def _extensions(proto: int, base: int, no: str) -> list[Instruction | str]:
    """X = bytes of extension headers before ``proto``. Only the first fragment of a packet has ports."""
    rows: list[Instruction | str] = [(LDX_IMM, 0, 0, 0), (LDB, 0, 0, base + 6)]  # A: the next header's type
    for number in range(_EXTENSIONS):
        extension = f"extension{base}.{number}"
        rows += [
            (JEQ, f"ports{base}", 0, proto),
            *((JEQ, extension, 0, kind) for kind in (_HOP_BY_HOP, _ROUTING, _DESTINATION)),
            (JEQ, 0, no, _FRAGMENT),
            (LDXH, 0, 0, base + 42),
            (JSET, no, 0, 0xFFF8),
            extension,
            *((LDXB, 0, 0, base + 41), (LSH, 0, 0, 3), (ADD, 0, 0, 8), (ADD_X, 0, 0, 0), (ST, 0, 0, 0)),
            *((LDXB, 0, 0, base + 40), (LDX_MEM, 0, 0, 0)),
        ]
    return [*rows, (JEQ, 0, no, proto)]


def faults_filter(sample: int = 0, port: int = 0) -> bytes:
    """Incoming refusals and ICMP errors of any address: these are few, and the monitors match the addresses.

    A refusal answers a SYN: RST and ACK with the sequence number 0 (RFC 9293, 3.10.7.1). Other RSTs only end
    connections and are dropped. ``sample`` and ``port`` as in ``clients_filter``.
    """
    no, some = "no", (sample, port)
    flags: list[Instruction | str] = [(LDXB, 0, 0, 14 + 13), (AND, 0, 0, 0x17), (JEQ, 0, no, 0x14)]
    refusal = [*_match(LDXW, 14 + 4, 0, no), *flags, *_keep(some, (LDXH, 0, 0, 14 + 2))]  # behind an IP header
    return assemble(
        [
            (LDB, 0, 0, PACKET_TYPE),
            (JEQ, no, 0, _OUTGOING),
            *_match(LDH, 12, _IPV4, "six"),
            (LDB, 0, 0, 23),
            (JEQ, "tcp4", 0, _TCP),
            (JEQ, 0, no, _ICMP),
            (LDX_MSH, 0, 0, 14),
            *_match(LDXB, 14, 3, no),
            *_keep(some, (LDXH, 0, 0, 14 + 8 + 20)),
            "tcp4",
            *_no_fragment(14, no),
            *refusal,
            "six",
            (JEQ, 0, no, _IPV6),
            (LDX_IMM, 0, 0, 40),
            (LDB, 0, 0, 20),
            (JEQ, "tcp6", 0, _TCP),
            (JEQ, 0, no, _ICMP6),
            *_match(LDB, 54, 1, no),
            *_keep(some, (LDXH, 0, 0, 14 + 8 + 40)),
            "tcp6",
            *refusal,
            no,
            (RET, 0, 0, 0),
        ]
    )
