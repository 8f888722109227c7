"""Random and mutated frames against the parser, the dialects and the watch: nothing may raise, nothing may grow.

``python -m tests.fuzz.packets N`` (``make fuzz``) runs N mutations, guided by coverage with atheris, which begins with
plausible frames; exit code 1 when one raised (it is printed as hex) or when memory grew by more than ``GROWTH``.
The unit tests run a bounded number of mutations without atheris.
"""

from __future__ import annotations

import gc
import os
import random
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NoReturn

from check_failover.sniffer.stage1.packet import ACK, ETHERNET, FIN, LINUX_SLL, PSH, RAW_IP, RST, SYN, parse
from check_failover.sniffer.stage1.traffic import TrafficMonitor
from tests.unit import packets as made

CLIENT = bytes([198, 51, 100, 7])
SEEDS = 500  # plausible frames to begin with
FRAME, PAYLOAD = b"\0", b"\1"  # an input's first byte
SETTLED = 0.3  # of all mutations: then the flow tables are full and the sketches have their size
GROWTH = 16 << 20  # bytes of RSS after that; the fuzzer's own corpus is in it
SERVER = made.packed(made.ADDRESS)
PAYLOADS = {
    "ldap": (
        *(made.bind(1), made.search(2), made.search(3, made.persistent_search()), made.abandon(4, 2), made.unbind(5)),
        *(made.result(2), made.entry(2, 900), made.result(2, 51, 0x65, 4), made.extended(6, made.START_TLS)),
    ),
    "dns": (made.dns(7), made.dns(7, response=True), made.dns(8, response=True, code=2), made.framed(made.dns(9))),
    "http": (
        *(made.get(), made.get("/", "POST", body="x" * 50), made.http(), made.http(503), b"5\r\nabcde\r\n0\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ),
    "generic": (b"hello", b"\x16\x03\x01\x00\x05abcde", b"x" * 1400),
}


def tcp(source: bytes, sport: int, to: bytes, dport: int, flags: int, seq: int, ack: int, payload: bytes) -> bytes:
    """A frame with IPv4 and TCP; checksums are not looked at."""
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 0x50, flags, 64240, 0, 0) + payload
    return _ethernet(_ipv4(6, source, to, segment))


def udp(source: bytes, sport: int, to: bytes, dport: int, payload: bytes) -> bytes:
    return _ethernet(_ipv4(17, source, to, struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload))


def icmp(about: bytes) -> bytes:
    """Destination unreachable about a frame's packet."""
    return _ethernet(_ipv4(1, SERVER, CLIENT, struct.pack("!BBHI", 3, 3, 0, 0) + about[14:42]))


def _ipv4(proto: int, source: bytes, to: bytes, body: bytes) -> bytes:
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, proto, 0) + source + to + body


def _ethernet(packet: bytes) -> bytes:
    return b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0" + packet


class Target:
    """Everything a frame meets, fed with one mutated frame after the other by one random generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.services = [
            made.service("ldap"),
            made.service("dns", port=53, protocol="udp"),
            made.service("dns", port=54),
            made.service("http", port=80),
            made.service("tcp", port=25, source_nat="10.0.0.1"),
            made.service("ldap", port=636, tls=True),
        ]
        self.monitors = [TrafficMonitor(service) for service in self.services]

    def frame(self, said: bytes | None = None) -> bytes:
        """A plausible frame of one of the services, in either direction, then perhaps mutilated. ``said``: payload."""
        pick = self.random
        service = pick.choice(self.services)
        port = service.address.port
        kind = service.check.type if service.check.type in PAYLOADS else "generic"
        payload = pick.choice(PAYLOADS[kind]) if pick.random() < 0.8 else b""
        payload = payload if said is None else said
        client = CLIENT[:3] + bytes([pick.randrange(4)])
        sport = 40000 + pick.randrange(200)
        up = pick.random() < 0.5
        ends = (client, sport, SERVER, port) if up else (SERVER, port, client, sport)
        if service.protocol == "udp":
            frame = udp(*ends, payload)
        else:
            flags = pick.choice((SYN, SYN | ACK, ACK, ACK | PSH, ACK | PSH, FIN | ACK, RST, RST | ACK))
            frame = tcp(*ends, flags, pick.choice((0, 1, 101, 0xFFFFFFFF, pick.getrandbits(32))), 1, payload)
        if pick.random() < 0.05:
            frame = icmp(frame)
        return self.mutilate(frame) if said is None and pick.random() < 0.7 else frame

    def mutilate(self, frame: bytes) -> bytes:
        pick = self.random
        data = bytearray(frame)
        for _ in range(pick.randrange(1, 5)):
            at = pick.randrange(len(data)) if data else 0
            action = pick.randrange(4)
            if action == 0 and data:
                data[at] = pick.randrange(256)
            elif action == 1 and data:
                data[at] ^= 1 << pick.randrange(8)
            elif action == 2:
                del data[at + pick.randrange(64) :]
            else:
                data[at:at] = pick.randbytes(pick.randrange(8))
        return bytes(data)

    def feed(self, frame: bytes) -> None:
        """One frame through everything."""
        self.now += 0.0005
        packet = parse(frame, self.now, self.random.choice((ETHERNET, ETHERNET, ETHERNET, RAW_IP, LINUX_SLL)))
        traffic = self.random.choice(self.monitors)
        if packet is not None:  # mostly where it belongs, sometimes elsewhere
            ports = (packet.sport, packet.dport)
            mine = [
                each
                for each, service in zip(self.monitors, self.services, strict=True)
                if service.address.port in ports
            ]
            traffic = mine[0] if mine else traffic
            traffic.packet(packet, frame)
        if self.random.random() < 0.05:
            self.clock(traffic)

    def clock(self, traffic: TrafficMonitor) -> None:
        """What the loop does besides: the moments, the rescue, faults of the capture, a flip."""
        traffic.tick(self.now)
        waiting = list(traffic.flows.unanswered(self.now))
        if waiting and self.random.random() < 0.3:
            traffic.flows.sent_to_standby(self.random.choice(waiting)[1])
        chance = self.random.random()
        if chance < 0.002:
            traffic.lost(self.now, 3)
        elif chance < 0.004:
            traffic.flipped(self.now)
        if chance < 0.1:
            asked, answered = traffic.detect.since(self.now - 5)
            assert 0 <= answered <= asked
            traffic.stats(self.now)


def run(count: int, seed: int, each: Callable[[int, Target], None] = lambda _number, _target: None) -> Target:
    """Mutate and feed ``count`` frames (0: for ever). Raises what breaks, with the frame in the message."""
    target = Target(seed)
    number = 0
    while number < count or not count:
        frame = target.frame()
        try:
            target.feed(frame)
        except Exception as error:
            raise AssertionError(f"seed {seed}, frame {number}: {frame.hex()}") from error
        each(number, target)
        number += 1
    return target


class Fuzzed:
    """What atheris calls. Memory is measured when everything has its size, and at the end.

    An input's first byte tells whether the others are a frame, or what is said in a whole one: most mutations of a
    frame hit its headers, and then it belongs to nobody.
    libFuzzer ends the process without returning, so the outcome is told, and the corpus removed, from here.
    """

    def __init__(self, count: int, corpus: tempfile.TemporaryDirectory[str]) -> None:
        self.count, self.number, self.corpus = count, 0, corpus
        self.target = Target(0)
        self.settled = 0

    def __call__(self, data: bytes) -> None:
        self.number += 1
        frame = self.target.frame(data[1:]) if data and data[0] & 1 else data[1:]
        try:
            self.target.feed(frame)
        except Exception:
            print(f"frame {self.number}: {frame.hex()}", file=sys.stderr)
            traceback.print_exc()
            self.end(1)
        if self.number == int(self.count * SETTLED):
            self.settled = resident()
        elif self.number == self.count:
            last = resident()
            print(
                f"{self.number:,} packets, no exception; RSS {self.settled / 2**20:.1f} MiB after "
                f"{int(self.count * SETTLED):,}, {last / 2**20:.1f} MiB at the end"
            )
            self.end(int(last - self.settled > GROWTH))

    def end(self, code: int) -> NoReturn:
        self.corpus.cleanup()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def resident() -> int:
    """Bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def main() -> None:
    import atheris  # the extra "fuzz"; the unit tests do without

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    atheris.instrument_all()
    corpus = tempfile.TemporaryDirectory(prefix="check_failover-fuzz-")
    seeds = Target(1)
    for number in range(SEEDS):
        Path(corpus.name, f"frame{number}").write_bytes(FRAME + seeds.frame())
    for number, payload in enumerate(chain(*PAYLOADS.values())):
        Path(corpus.name, f"payload{number}").write_bytes(PAYLOAD + payload)
    atheris.Setup([sys.argv[0], "-max_len=2048", "-verbosity=0", corpus.name], Fuzzed(count, corpus))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
