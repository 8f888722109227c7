"""Classic BPF programs for packet sockets: the kernel drops what stage 1 does not want to see. Pure.

A small assembler for the few questions asked: service address and port in either direction, IPv4 and IPv6, one
in-band VLAN tag (the kernel strips the outer one, ``vlan_tci`` travels beside the frame), RSTs and ICMP errors.
Sampling keeps whole connections by bits of the client's port; Linux's connect() favours even ports, so the
lowest bits are left out. scapy's compile_filter would do the same with libpcap, at 41 MiB and without sampling.

Source: Linux Documentation/networking/filter.rst; McCanne and Jacobson, "The BSD Packet Filter", 1993.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

from check_failover.model import Service

LDW, LDH, LDB = 0x20, 0x28, 0x30  # load absolute
LDXH, LDXB = 0x48, 0x50  # load relative to X
LDX_MSH = 0xB1  # X = 4 * (byte & 15): an IPv4 header's length
LDX_IMM, LDX_MEM = 0x01, 0x61
JEQ, JSET = 0x15, 0x45
AND, RSH = 0x54, 0x74
RET = 0x06
SNAPLEN = 512  # bytes of a frame that are looked at
_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, 0x8100
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58

Instruction = tuple[int, int | str, int | str, int]  # code, jump if true, jump if false, k; labels are names


def assemble(program: Sequence[Instruction | str]) -> bytes:
    """``struct sock_filter`` array from instructions and labels (a str stands for itself as a label)."""
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


def accept_nothing() -> bytes:
    """For the moment between opening a socket and binding it."""
    return assemble([(RET, 0, 0, 0)])


def clients_filter(service: Service, sample: int = 0) -> bytes:
    """Frames between clients and one service address. ``sample`` bits: one of 2**sample connections is kept."""
    proto = _TCP if service.protocol == "tcp" else _UDP
    program: list[Instruction | str] = []
    for base, vlan in ((14, False), (18, True)):
        program += _link(base, vlan, service.address.family, "next" if not vlan else "no")
        program += (
            _v4(service, proto, base, sample) if service.address.family == 4 else _v6(service, proto, base, sample)
        )
        if not vlan:
            program.append("next")
    return assemble([*program, "no", (RET, 0, 0, 0)])


def _link(base: int, vlan: bool, family: int, no: str) -> list[Instruction | str]:
    kind = _IPV4 if family == 4 else _IPV6
    rows: list[Instruction | str] = []
    if vlan:
        rows += [(LDH, 0, 0, 12), (JEQ, 0, no, _VLAN)]
    return [*rows, (LDH, 0, 0, base - 2), (JEQ, 0, no, kind)]


def _keep(sample: int, load: Instruction) -> list[Instruction | str]:
    """Accept, or accept one of 2**sample by bits 4.. of the client's port."""
    accept: Instruction = (RET, 0, 0, SNAPLEN)
    if not sample:
        return [accept]
    return [load, (RSH, 0, 0, 4), (AND, 0, 0, (1 << sample) - 1), (JEQ, 0, "no", 0), accept]


def _v4(service: Service, proto: int, base: int, sample: int) -> list[Instruction | str]:
    address = int.from_bytes(service.address.packed, "big")
    port, tag = service.address.port, str(base)
    no = "next" if base == 14 else "no"
    return [
        (LDB, 0, 0, base + 9),
        (JEQ, 0, no, proto),
        (LDH, 0, 0, base + 6),
        (JSET, no, 0, 0x1FFF),
        (LDX_MSH, 0, 0, base),
        (LDW, 0, 0, base + 16),
        (JEQ, 0, f"source{tag}", address),
        (LDXH, 0, 0, base + 2),
        (JEQ, 0, f"source{tag}", port),
        *_keep(sample, (LDXH, 0, 0, base)),
        f"source{tag}",
        (LDW, 0, 0, base + 12),
        (JEQ, 0, no, address),
        (LDXH, 0, 0, base),
        (JEQ, 0, no, port),
        *_keep(sample, (LDXH, 0, 0, base + 2)),
    ]


def _v6(service: Service, proto: int, base: int, sample: int) -> list[Instruction | str]:
    """Extension headers before TCP are passed over: such packets are rare and nothing relies on each one."""
    packed, port, tag = service.address.packed, service.address.port, str(base)
    no = "next" if base == 14 else "no"
    words = [int.from_bytes(packed[i : i + 4], "big") for i in range(0, 16, 4)]
    rows: list[Instruction | str] = [(LDB, 0, 0, base + 6), (JEQ, 0, no, proto)]
    for i, word in enumerate(words):
        rows += [(LDW, 0, 0, base + 24 + 4 * i), (JEQ, 0, f"source{tag}", word)]
    rows += [(LDH, 0, 0, base + 42), (JEQ, 0, f"source{tag}", port), *_keep(sample, (LDH, 0, 0, base + 40))]
    rows.append(f"source{tag}")
    for i, word in enumerate(words):
        rows += [(LDW, 0, 0, base + 8 + 4 * i), (JEQ, 0, no, word)]
    rows += [(LDH, 0, 0, base + 40), (JEQ, 0, no, port), *_keep(sample, (LDH, 0, 0, base + 42))]
    return rows


def faults_filter() -> bytes:
    """Incoming TCP packets with RST, and ICMP errors, of any address: few, and matched in Python."""
    return assemble(
        [
            (LDH, 0, 0, 12),
            (JEQ, 0, "six", _IPV4),
            (LDB, 0, 0, 23),
            (JEQ, "tcp4", 0, _TCP),
            (JEQ, 0, "no", _ICMP),
            (LDX_MSH, 0, 0, 14),
            (LDXB, 0, 0, 14),
            (JEQ, "yes", "no", 3),
            "tcp4",
            (LDH, 0, 0, 20),
            (JSET, "no", 0, 0x1FFF),
            (LDX_MSH, 0, 0, 14),
            (LDXB, 0, 0, 27),
            (JSET, "yes", "no", 0x04),
            "six",
            (JEQ, 0, "no", _IPV6),
            (LDB, 0, 0, 20),
            (JEQ, "tcp6", 0, _TCP),
            (JEQ, 0, "no", _ICMP6),
            (LDB, 0, 0, 54),
            (JEQ, "yes", "no", 1),
            "tcp6",
            (LDB, 0, 0, 67),
            (JSET, "yes", "no", 0x04),
            "yes",
            (RET, 0, 0, SNAPLEN),
            "no",
            (RET, 0, 0, 0),
        ]
    )
