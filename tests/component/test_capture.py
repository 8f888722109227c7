"""The capture on real interfaces: what a sentry gets of frames on a veth, and an interface that goes and comes back."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet as Layer

from check_failover.config import Config, load
from check_failover.model import Target
from check_failover.sniffer.capture.taps import Taps
from check_failover.sniffer.monitor import ServiceMonitor
from check_failover.sniffer.stage1.packet import Packet
from tests.lab.netns import poll

pytestmark = pytest.mark.component

LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
CONFIG = """
[controller]
client_interface = ["{0}", "{1}"]
[[service]]
name = "four"
host = "h"
protocol = "tcp"
address = "192.0.2.10"
port = 389
primary = "10.0.0.11"
standby = "10.0.0.12"
[service.check]
type = "tcp"
[[service]]
name = "six"
host = "h"
protocol = "udp"
address = "2001:db8::10"
port = 53
primary = "2001:db8::11"
standby = "2001:db8::12"
[service.check]
type = "dns"
name = "example.org"
"""


class Silent:
    """An outlet of sentries that do nothing."""

    def __getattr__(self, _name: str) -> object:
        return lambda *_: None


class Wire:
    """Two veth pairs, the eyes on one end of each, the other ends to send from."""

    def __init__(self, directory: Path, more: str = "") -> None:
        number = time.monotonic_ns() % 10**6
        self.near, self.far = [f"ca{number}", f"cb{number}"], [f"cc{number}", f"cd{number}"]
        for pair in range(2):
            self.plug(pair)
        path = directory / "config.toml"
        path.write_text(CONFIG.format(*self.near) + more)
        self.config: Config = load(path)
        self.monitors = {s.name: ServiceMonitor(s, Silent(), time.monotonic()) for s in self.config.services}  # type: ignore[arg-type]
        self.taps = Taps(self.config, selectors.DefaultSelector())
        self.taps.open()

    def plug(self, pair: int) -> None:
        near, far = self.near[pair], self.far[pair]
        ip("link", "add", near, "type", "veth", "peer", "name", far)
        for name in (near, far):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            ip("link", "set", name, "up")

    def send(self, *frames: Layer, pair: int = 0, out: bool = False) -> None:
        """From the other side; ``out``: as this machine sends them."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(((self.near if out else self.far)[pair], 0))
            for frame in frames:
                sock.send(bytes(frame))

    def seen(self) -> list[tuple[str, Packet, bytes]]:
        """Of our frames: the tap for refusals hears those of the whole machine, also of what else runs here."""
        found, _ = self.taps.read()
        return [
            (name, packet, frame) for names, packet, frame in found if frame[:12] == bytes(LINK)[:12] for name in names
        ]

    def see_all(self) -> None:
        """Until the taps are not blind: the kernel may need a second to report a new link's carrier."""
        poll(lambda: self.blind() is None, 5.0, "an interface is seen")

    def arrives(self) -> list[tuple[str, Packet, bytes]]:
        """What is seen of one more frame on the first link, after a look at the interfaces."""
        self.blind()
        self.send(ask())
        return self.seen()

    def blind(self) -> str | None:
        return self.taps.check_taps()[0]

    def close(self) -> None:
        self.taps.close()
        for name in self.near:
            subprocess.run(["/usr/sbin/ip", "link", "del", name], capture_output=True, check=False)


def ip(*argv: str) -> None:
    subprocess.run(["/usr/sbin/ip", *argv], check=True, capture_output=True)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    yield made
    made.close()


def ask(port: int = 40000, link: Layer = LINK, flags: str = "S", seq: int = 7) -> Layer:
    return link / IP(src="198.51.100.7", dst="192.0.2.10") / TCP(sport=port, dport=389, flags=flags, seq=seq)


FRAMES = {
    "plain": ("four", ask()),
    "vlan": ("four", ask(link=LINK / Dot1Q(vlan=5))),
    "stacked vlan": ("four", ask(link=LINK / Dot1AD(vlan=6) / Dot1Q(vlan=5))),
    "v6": ("six", LINK / IPv6(src="2001:db8::7", dst="2001:db8::10") / UDP(sport=40000, dport=53) / b"question"),
    "v6 in a vlan, hop by hop and fragmented": (
        "six",
        LINK
        / Dot1Q(vlan=5)
        / IPv6(src="2001:db8::7", dst="2001:db8::10")
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrFragment(m=1)
        / UDP(sport=40000, dport=53)
        / b"question",
    ),
}


BACK = {
    "four": LINK / IP(src="192.0.2.10", dst="198.51.100.7") / TCP(sport=389, dport=40000, flags="SA", seq=1, ack=8),
    "six": LINK / IPv6(src="2001:db8::10", dst="2001:db8::7") / UDP(sport=53, dport=40000) / b"answer",
}


@pytest.mark.parametrize("link", [LINK, LINK / Dot1Q(vlan=5)], ids=["plain", "vlan"])
@pytest.mark.parametrize("name", BACK)
def test_answers_that_come_in_are_forged(wire: Wire, name: str, link: Layer) -> None:
    """A client that speaks under the service's address must not pass for a sign of life of a dead server."""
    answer = link / BACK[name].payload
    wire.send(answer)
    wire.send(answer, out=True)
    wire.send(ask())
    found: list[tuple[str, Packet, bytes]] = []
    poll(lambda: found.extend(wire.seen()) or any(p.dport == 389 for _, p, _ in found), 5.0, "the last frame")
    assert [(who, data) for who, p, data in found if p.dport == 40000] == [(name, bytes(answer))]


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("pair", [0, 1])
def test_frames_of_every_kind_on_every_interface(wire: Wire, name: str, pair: int) -> None:
    """Each reaches its sentry once, as it was on the wire (the kernel takes VLAN tags out), with the time it came."""
    service, frame = FRAMES[name]
    begin = time.monotonic()
    wire.send(frame, pair=pair)
    found = poll(wire.seen, 5.0, "the frame")
    assert [(who, data) for who, _, data in found] == [(service, bytes(frame))]
    assert begin - 0.001 <= found[0][1].now <= time.monotonic()


def test_two_interfaces_are_one_conversation(wire: Wire) -> None:
    """Where the way there and the way back differ, what came first is told first."""
    for number in range(20):
        wire.send(ask(seq=number), pair=1)
        wire.send(BACK["four"], pair=0, out=True)
    found: list[Packet] = []
    poll(lambda: found.extend(p for _, p, _ in wire.seen()) or len(found) >= 40, 5.0, "forty frames")
    assert [p.dport for p in found] == [389, 40000] * 20


def test_an_interface_that_goes_and_comes_back(wire: Wire) -> None:
    """Blind only when none is left, with the reason; the same name anew is taken up by itself."""
    wire.see_all()
    ip("link", "del", wire.near[0])
    wire.see_all()
    ip("link", "set", wire.far[1], "down")
    gone = f"{wire.near[0]} is gone, {wire.near[1]} has no carrier"
    poll(lambda: wire.blind() == gone, 5.0, "blind, with the reason")
    ip("link", "set", wire.far[1], "up")
    poll(lambda: wire.blind() is None, 5.0, "the carrier is back")
    wire.plug(0)
    assert poll(wire.arrives, 5.0, "a frame on the new interface")


def test_an_interface_made_anew_between_two_looks(wire: Wire) -> None:
    """The socket of the old one would never see anything again."""
    ip("link", "del", wire.near[0])
    wire.plug(0)
    assert poll(wire.arrives, 5.0, "a frame on the new interface")


@contextlib.contextmanager
def flood(wire: Wire) -> Iterator[None]:
    """Requests from 2,048 ports, as fast as they can be sent, during the block."""
    stop = threading.Event()
    frames = [bytes(ask(port)) for port in range(32768, 36864, 2)]

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((wire.far[0], 0))
            while not stop.is_set():
                for frame in frames:
                    sock.send(frame)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_flood_is_sampled_by_whole_connections(wire: Wire) -> None:
    """Under more than the budget some connections are watched, all of their packets, and the sentry knows which."""
    with flood(wire):
        poll(lambda: wire.seen() and wire.taps.sampling("four").share >= 4, 10.0, "sampling")
        ports = {p.sport for _ in range(20) for _, p, _ in wire.seen()}
    assert (
        len({(port >> 4) % wire.taps.sampling("four").share for port in ports}) <= wire.taps.sampling("four").share // 2
    )
    assert wire.monitors["four"].traffic.stats(time.monotonic()).drops == 0
    assert wire.monitors["four"].target is Target.PRIMARY


def test_one_tap_for_two_hundred_services(tmp_path: Path) -> None:
    """One socket on each interface. During a flood of one service each frame of the others is seen."""
    block = CONFIG[CONFIG.index("[[service]]") :].split("[[service]]")[1]
    more = "".join(
        f"[[service]]{block}".replace("four", f"s{n}").replace("389", str(1000 + n)).replace(".11", f".{n + 20}")
        for n in range(200)
    )
    wire = Wire(tmp_path, more)
    others = [LINK / IP(src="198.51.100.7", dst="192.0.2.10") / TCP(sport=40000, dport=1000 + n) for n in range(200)]

    with contextlib.closing(wire), flood(wire):
        assert len(list(wire.taps._all)) == 3
        poll(lambda: wire.seen() is not None and wire.taps.sampling("four").share >= 4, 10.0, "the flood is sampled")
        wire.taps.check_taps()
        wire.send(*others)
        found: set[str] = set()
        poll(lambda: found.update(name for name, _, _ in wire.seen()) or len(found) > 200, 5.0, "each service's frame")
        assert found >= {f"s{n}" for n in range(200)}
        assert {wire.taps.sampling(f"s{n}").share for n in range(200)} == {1}
        assert wire.taps.check_taps()[1] == 0
