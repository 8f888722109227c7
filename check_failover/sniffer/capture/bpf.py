"""Classic BPF programs for packet sockets: the kernel drops what stage 1 does not need. Pure.

One program for all services, one for refusals and ICMP errors; the fixed parts are in ``clients.bpf`` and
``faults.bpf``. The first finds the ports behind one in-band VLAN tag (the kernel moves the outer tag to the frame's
metadata), IPv4 or IPv6 with extension headers, and sums up protocol, address and port of the packet's destination, then
of its source, to the number that ``number`` gives a service. A search tree over these numbers costs one or two
instructions per service and a packet some 50 of them. The reader compares addresses and ports itself, so a foreign
packet with the same number costs only its copy. Sampling keeps whole connections by bits of the client's port. Linux's
connect() prefers even ports, so the lowest bits do not count. scapy's compile_filter would need libpcap, costs 41 MiB,
and cannot sample.

Source: Linux Documentation/networking/filter.rst; McCanne and Jacobson, "The BSD Packet Filter", 1993; RFC 8200, 4.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from struct import pack, unpack

from check_failover.model import Endpoint

# mnemonic and form of the operand -> code
CODES = {
    "ld [": 0x20, "ldh [": 0x28, "ldb [": 0x30, "ld [x + ": 0x40, "ldh [x + ": 0x48, "ldb [x + ": 0x50,
    "ldxb 4*([": 0xB1, "ld #": 0x00, "ldx #": 0x01, "ld M[": 0x60, "ldx M[": 0x61, "st M[": 0x02, "stx M[": 0x03,
    "add #": 0x04, "add x": 0x0C, "mul #": 0x24, "and #": 0x54, "lsh #": 0x64, "rsh #": 0x74, "tax": 0x07,
    "jmp ": 0x05, "jeq #": 0x15, "jeq x": 0x1D, "jgt #": 0x25, "jset #": 0x45, "ret #": 0x06,
}  # fmt: skip
PACKET_TYPE = 0xFFFFF004  # metadata, no offset in the frame: SKF_AD_OFF + SKF_AD_PKTTYPE
SNAPLEN = 512  # bytes captured of a frame
LONGEST = 4096 if sys.platform == "linux" else 512  # instructions: BPF_MAXINSNS
PROTOCOLS = {"tcp": 6, "udp": 17}
_FACTOR = 0x9E3779B1  # an odd number with well mixed bits
_EXTENSIONS = 4  # headers between IPv6 and TCP that the filter skips, at most
_BUCKET = 32  # numbers compared one after the other
_JUMP, _EQUAL, _ABOVE = CODES["jmp "], CODES["jeq #"], CODES["jgt #"]
_CLIENT, _AND, _DROP = (CODES["ld M["], 0, 0, 7), CODES["and #"], (CODES["ret #"], 0, 0, 0)
_LINE = re.compile(r"(\w+(?: (?:#|M\[|\[x \+ |\[|x|4\*\(\[|(?=\w+$)))?)(\w*)\S*(?: (\w+))?")

Sample = tuple[int, int]  # bits, a port that is kept
Instruction = tuple[int, int | str, int | str, int | str]  # code, jump if true, jump if false, k; labels are names
Rows = list[Instruction | str]  # a str is a label


def parse(text: str) -> Rows:
    """The program that a text in the words of bpf_asm says."""
    rows: Rows = []
    for line in text.splitlines():
        words = line.partition(";")[0].strip()
        found = _LINE.fullmatch(words)
        if words.endswith(":"):
            rows.append(words[:-1])
        elif found is not None:
            form, k, label = found.groups()
            if form == "jmp ":
                rows.append((_JUMP, 0, 0, k))
            else:
                jumps = (0, label or 0) if form.startswith("jneq") else (label or 0, 0)
                rows.append((CODES[form.replace("jneq", "jeq")], *jumps, int(k or "0", 0)))
        elif words:
            raise ValueError(f"not understood: {words}")
    return rows


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
    for at, (operation, *operands) in enumerate(instructions, 1):
        true, false, k = (labels[to] - at if isinstance(to, str) else to for to in operands)
        if not (0 <= true < 256 and 0 <= false < 256 and k >= 0):
            raise ValueError(f"jump too far at instruction {at - 1}")
        code.append(pack("HBBI", operation, true, false, k))
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
    whole = assemble(_clients(dict.fromkeys(samples, (0, 0)), leaving=leaving))
    room = (LONGEST - len(whole) // 8) // 8  # a sampled service takes four more instructions in each direction
    if room < 0 and not leaving:
        return assemble([*_BEFORE, (CODES["ret #"], 0, 0, SNAPLEN)])
    sampled = sorted((sample, key) for key, sample in samples.items() if sample[0])[-room:] if room > 0 else []
    samples = dict.fromkeys(samples, (0, 0)) | {key: sample for sample, key in sampled}
    return assemble(_clients(samples, leaving=leaving))


def _clients(samples: Mapping[int, Sample], *, leaving: bool) -> Rows:
    keys = sorted(samples)
    return [
        *_BEFORE,
        *_search(keys, samples, "demand", "from"),
        *(_BETWEEN if leaving else _BETWEEN_ON_BSD),
        *_search(keys, samples, "answer", "drop"),
        *_BEHIND,
    ]


def _search(keys: Sequence[int], samples: Mapping[int, Sample], hit: str, miss: str) -> Rows:
    """Goes to ``hit`` if A is one of these numbers and the sample keeps the client's port."""
    here = f"{hit} {keys[0] if keys else ''}"
    if len(keys) > _BUCKET:
        half = (len(keys) + _BUCKET) // (2 * _BUCKET) * _BUCKET  # whole buckets
        upper = f"{hit} from {keys[half]}"
        left, right = _search(keys[:half], samples, hit, miss), _search(keys[half:], samples, hit, miss)
        return [(_ABOVE, 0, 1, keys[half - 1]), (_JUMP, 0, 0, upper), *left, upper, *right]
    rows: Rows = [(_EQUAL, f"{here} {key}" if samples[key][0] else here, 0, key) for key in keys]
    rows.append((_JUMP, 0, 0, miss))
    for key in keys:
        bits, port = samples[key]
        if bits:
            mask = (1 << bits) - 1
            rows += [f"{here} {key}", _CLIENT, (_AND, 0, 0, mask), (_EQUAL, here, 0, port >> 4 & mask), _DROP]
    return [*rows, here, (_JUMP, 0, 0, hit)]


def faults_filter(sample: int = 0, port: int = 0) -> bytes:
    """Incoming refusals and ICMP errors of any address: these are few, and the reader compares the addresses.

    A refusal answers a SYN: RST and ACK with the sequence number 0 (RFC 9293, 3.10.7.1). Other RSTs only end
    connections and are dropped. ``sample`` and ``port``: as in ``clients_filter``.
    """
    mask = (1 << sample) - 1
    return assemble(parse(_text("faults.bpf", MASK=mask, PATTERN=port >> 4 & mask)))


def _text(name: str, **numbers: int) -> str:
    text = Path(__file__).with_name(name).read_text("utf-8")
    return Template(text).safe_substitute(numbers, FACTOR=_FACTOR, SNAPLEN=SNAPLEN)


_, _WORD, _EXTENSION, *_PARTS = map(Template, re.split("; ----.*\n", _text("clients.bpf")))
_BEFORE = parse(
    _PARTS[0].substitute(
        WORDS="".join(_WORD.substitute(V=v, AT=at + n) for v, at in ((0, 38), (1, 22)) for n in (0, 4, 8, 12)),
        EXTENSIONS="".join(_EXTENSION.substitute(V=n) for n in range(_EXTENSIONS)),
    )
)
_BETWEEN, _BEHIND = (parse(part.template) for part in _PARTS[1:])
_BETWEEN_ON_BSD = parse(re.sub(r".*; Linux.*", "", _PARTS[1].template))
