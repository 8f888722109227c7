"""Classic BPF programs for packet sockets: the kernel drops what stage 1 does not need. Pure.

A small assembler, one program for all services, and one for refusals and ICMP errors. The first finds the ports behind
one in-band VLAN tag (the kernel moves the outer tag to the frame's metadata), IPv4 or IPv6 with extension headers, and
sums up protocol, address and port of the packet's destination, then of its source, to the number that ``number`` gives
a service. A search tree over these numbers costs one or two instructions per service and a packet some 50 of them. The
reader compares addresses and ports itself, so a foreign packet with the same number costs only its copy. Sampling keeps
whole connections by bits of the client's port. Linux's connect() prefers even ports, so the lowest bits do not count.
scapy's compile_filter would need libpcap, costs 41 MiB, and cannot sample.

Source: Linux Documentation/networking/filter.rst; McCanne and Jacobson, "The BSD Packet Filter", 1993; RFC 8200, 4.
"""

import sys
from collections.abc import Mapping, Sequence
from struct import pack, unpack

from check_failover.model import Endpoint

LDW, LDH, LDB = 0x20, 0x28, 0x30  # load absolute
LDXW, LDXH, LDXB = 0x40, 0x48, 0x50  # load relative to X
LDX_MSH = 0xB1  # X = 4 * (byte & 15): an IPv4 header's length
LD_IMM, LDX_IMM, LD_MEM, LDX_MEM, ST, STX, TAX = 0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x07
JA, JEQ, JEQ_X, JGT, JSET = 0x05, 0x15, 0x1D, 0x25, 0x45
AND, LSH, RSH, ADD, ADD_X, MUL = 0x54, 0x64, 0x74, 0x04, 0x0C, 0x24
RET = 0x06
PACKET_TYPE = 0xFFFFF004  # metadata, no offset in the frame: SKF_AD_OFF + SKF_AD_PKTTYPE
SNAPLEN = 512  # bytes captured of a frame
LONGEST = 4096 if sys.platform == "linux" else 512  # instructions: BPF_MAXINSNS
_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, 0x8100
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
PROTOCOLS = {"tcp": _TCP, "udp": _UDP}
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = 4  # headers between IPv6 and TCP that the filter skips, at most
_OUTGOING = 4
_FACTOR = 0x9E3779B1  # an odd number with well mixed bits
_BUCKET = 32  # numbers compared one after the other
_TO, _FROM, _PROTO, _LINK, _PORTS, _END, _WORD, _CLIENT = range(8)  # the program's variables

Sample = tuple[int, int]  # bits, a port that is kept
Instruction = tuple[int, int | str] | tuple[int, int | str, int | str, int]  # code, (jump if true, if false,) k
Rows = list[Instruction | str]  # a str is a label, also in place of a jump


def assemble(program: Sequence[Instruction | str]) -> bytes:
    """The ``struct sock_filter`` array of a program. Raises ValueError."""
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for item in program:
        if isinstance(item, str):
            labels[item] = len(instructions)
        else:
            instructions.append(item)
    code = []
    for at, (operation, *jumps, k) in enumerate(instructions, 1):
        true, false, number = (labels[to] - at if isinstance(to, str) else to for to in (*(jumps or (0, 0)), k))
        if not (0 <= true < 256 and 0 <= false < 256 and number >= 0):
            raise ValueError(f"jump too far at instruction {at - 1}")
        code.append(pack("HBBI", operation, true, false, number))
    return b"".join(code)


def number(protocol: str, endpoint: Endpoint) -> int:
    """Protocol, address and port in 32 bits; two endpoints have the same number by chance only."""
    found = 0
    for word in unpack(f"!{len(endpoint.packed) // 4}I", endpoint.packed):
        found = (found + word) * _FACTOR & 0xFFFFFFFF
    return found + endpoint.port + (PROTOCOLS[protocol] << 16) & 0xFFFFFFFF


def clients_filter(samples: Mapping[int, Sample], *, leaving: bool = False) -> bytes:
    """Frames between clients and the services with these numbers.

    Keeps one of 2**bits connections of each, the one from client port ``port`` among them. A client's ACK without data
    demands nothing and is dropped, and so is a server's RST without ACK: it says that the server knows no such
    connection (RFC 9293, 3.10.7.1). A flood of these must not narrow the sample. ``leaving`` (Linux): keep answers only
    when this machine sends them, as a router does. An incoming packet from a service address is forged: with it a
    client could make a dead server look alive.

    Where the program gets too long, the services with the widest samples are not sampled. If that is not enough (some
    150 services on a BSD), it keeps the packets of all addresses and ports. The reader drops what is too much.
    """
    out: Rows = [(LDB, PACKET_TYPE), (JEQ, 1, 0, _OUTGOING), (RET, 0)] if leaving else []
    whole = assemble(_clients(dict.fromkeys(samples, (0, 0)), out))
    room = (LONGEST - len(whole) // 8) // 8  # a sampled service takes four more instructions in each direction
    if room < 0 and not leaving:
        return assemble([*_ports(), (RET, SNAPLEN)])
    sampled = sorted((sample, key) for key, sample in samples.items() if sample[0])[-room:] if room > 0 else []
    return assemble(_clients(dict.fromkeys(samples, (0, 0)) | {key: sample for sample, key in sampled}, out))


def _clients(samples: Mapping[int, Sample], out: Rows) -> Rows:
    keys = sorted(samples)
    return [
        *_ports(),
        *_sum(_TO, client=14, service=16),
        *_search(keys, samples, "demand", "from"),
        "demand",
        *_demand(),
        "from",
        *out,
        *_sum(_FROM, client=16, service=14),
        *_search(keys, samples, "answer", "drop"),
        "answer",
        *((LD_MEM, _PROTO), (JEQ, "keep", 0, _UDP << 16), (LDX_MEM, _PORTS)),
        *((LDXB, 27), (AND, 0x14), (JEQ, "drop", 0, 0x04)),
        *("keep", (RET, SNAPLEN), "drop", (RET, 0)),
    ]


def _ports() -> Rows:
    """Finds the ports of a TCP or UDP packet, and drops any other. X, as ``_PORTS``: their place behind byte 14."""
    return [
        *((LDX_IMM, 0), (LDH, 12), (JEQ, 0, 1, _VLAN), (LDX_IMM, 4), (STX, _LINK)),
        *_match(LDXH, 12, _IPV4, "six"),
        *((LDXB, 23), (JEQ, 1, 0, _TCP), (JEQ, 0, "other", _UDP), (LSH, 16), (ST, _PROTO)),
        *((LDXH, 20), (JSET, "other", 0, 0x1FFF)),  # a later fragment has no ports
        *((LDXW, 30), (MUL, _FACTOR), (ST, _TO)),
        *((LDXW, 26), (MUL, _FACTOR), (ST, _FROM)),
        *((LDXH, 16), (ADD_X, 0), (ST, _END)),
        *((LDXB, 14), (AND, 15), (LSH, 2), (ADD_X, 0), (TAX, 0), (JA, "ports")),
        *("other", (RET, 0)),  # here, because to the kernel a variable has a value if it has one on all ways to a line
        *("six", (JEQ, 1, 0, _IPV6), (RET, 0)),
        *_address6(_TO, 38),
        *_address6(_FROM, 22),
        *((LDX_MEM, _LINK), (LDXH, 18), (ADD, 40), (ADD_X, 0), (ST, _END)),
        *_extensions(),
        *("no ports", (RET, 0)),
        *("six ports", (LSH, 16), (ST, _PROTO), (LD_IMM, 40), (ADD_X, 0), (TAX, 0)),
        *("ports", (STX, _PORTS)),
    ]


def _address6(variable: int, at: int) -> Rows:
    """The part of ``number`` that comes from the IPv6 address at ``at``."""
    rows: Rows = [(LD_IMM, 0), (ST, variable)]
    for word in range(at, at + 16, 4):
        rows += [(LDX_MEM, _LINK), (LDXW, word), (ST, _WORD), (LDX_MEM, _WORD)]
        rows += [(LD_MEM, variable), (ADD_X, 0), (MUL, _FACTOR), (ST, variable)]
    return rows


def _extensions() -> Rows:
    """Skips the extension headers of IPv6: X grows by their bytes. Only the first fragment of a packet has ports."""
    rows: Rows = [(LDXB, 20)]  # A: the next header's type
    for number in range(_EXTENSIONS + 1):
        rows += [(JEQ, "six ports", 0, _TCP), (JEQ, "six ports", 0, _UDP)]
        if number < _EXTENSIONS:
            extension = f"extension{number}"
            rows += [
                *((JEQ, extension, 0, kind) for kind in (_HOP_BY_HOP, _ROUTING, _DESTINATION)),
                *((JEQ, 0, "no ports", _FRAGMENT), (LDXH, 56), (JSET, "no ports", 0, 0xFFF8)),
                *(extension, (LDXB, 55), (LSH, 3), (ADD, 8), (ADD_X, 0), (ST, _WORD)),
                *((LDXB, 54), (LDX_MEM, _WORD)),
            ]
    return rows


def _sum(variable: int, client: int, service: int) -> Rows:
    """A: the ``number`` of one end of the packet; ``client`` and ``service``: where the ports of the two ends are."""
    return [
        *((LDX_MEM, _PORTS), (LDXH, client), (RSH, 4), (ST, _CLIENT), (LDXH, service)),
        *((LDX_MEM, _PROTO), (ADD_X, 0), (LDX_MEM, variable), (ADD_X, 0)),
    ]


def _search(keys: Sequence[int], samples: Mapping[int, Sample], hit: str, miss: str) -> Rows:
    """Goes to ``hit`` if A is one of these numbers and the sample keeps the client's port."""
    here = f"{hit} {keys[0] if keys else ''}"
    if len(keys) > _BUCKET:
        half = (len(keys) + _BUCKET) // (2 * _BUCKET) * _BUCKET  # whole buckets
        upper = f"{hit} from {keys[half]}"
        left, right = _search(keys[:half], samples, hit, miss), _search(keys[half:], samples, hit, miss)
        return [(JGT, 0, 1, keys[half - 1]), (JA, upper), *left, upper, *right]
    rows: Rows = [(JEQ, f"{here} {key}" if samples[key][0] else here, 0, key) for key in keys]
    rows.append((JA, miss))
    for key in keys:
        bits, port = samples[key]
        if bits:
            mask = (1 << bits) - 1
            rows += [f"{here} {key}", (LD_MEM, _CLIENT), (AND, mask), (JEQ, here, 0, port >> 4 & mask)]
            rows.append((RET, 0))
    return [*rows, here, (JA, hit)]


def _demand() -> Rows:
    """Keeps a datagram, and a TCP segment with SYN, FIN or RST, or with data: its header ends before the IP packet."""
    return [
        *((LD_MEM, _PROTO), (JEQ, "demanded", 0, _UDP << 16), (LDX_MEM, _PORTS)),
        *((LDXB, 27), (AND, 0x07), (JEQ, 0, "demanded", 0)),
        *((LDXB, 26), (RSH, 4), (LSH, 2), (ADD_X, 0), (LDX_MEM, _END)),
        *((JEQ_X, 0, "demanded", 0), (RET, 0), "demanded", (RET, SNAPLEN)),
    ]


def _match(load: int, at: int, value: int, otherwise: str) -> Rows:
    """Load the field at ``at``; jump to ``otherwise`` if it is not ``value``."""
    return [(load, at), (JEQ, 0, otherwise, value)]


def faults_filter(sample: int = 0, port: int = 0) -> bytes:
    """Incoming refusals and ICMP errors of any address: these are few, and the reader compares the addresses.

    A refusal answers a SYN: RST and ACK with the sequence number 0 (RFC 9293, 3.10.7.1). Other RSTs only end
    connections and are dropped. ``sample`` and ``port``: as in ``clients_filter``.
    """
    no = "no"

    def keep(client: int) -> Rows:
        mask = (1 << sample) - 1
        one: Rows = [(LDXH, client), (RSH, 4), (AND, mask), (JEQ, 0, no, port >> 4 & mask)]
        return [*(one if sample else []), (RET, SNAPLEN)]

    flags: Rows = [(LDXB, 14 + 13), (AND, 0x17), (JEQ, 0, no, 0x14)]
    refusal: Rows = [*_match(LDXW, 14 + 4, 0, no), *flags, *keep(14 + 2)]  # behind an IP header
    return assemble(
        [
            *((LDB, PACKET_TYPE), (JEQ, no, 0, _OUTGOING)),
            *_match(LDH, 12, _IPV4, "six"),
            *((LDB, 23), (JEQ, "tcp4", 0, _TCP), (JEQ, 0, no, _ICMP), (LDX_MSH, 14)),
            *_match(LDXB, 14, 3, no),
            *keep(14 + 8 + 20),
            *("tcp4", (LDH, 20), (JSET, no, 0, 0x1FFF), (LDX_MSH, 14)),
            *refusal,
            *("six", (JEQ, 0, no, _IPV6), (LDX_IMM, 40)),
            *((LDB, 20), (JEQ, "tcp6", 0, _TCP), (JEQ, 0, no, _ICMP6)),
            *_match(LDB, 54, 1, no),
            *keep(14 + 8 + 40),
            *("tcp6", *refusal),
            *(no, (RET, 0)),
        ]
    )
