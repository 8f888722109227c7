"""Evidence and replay: what is kept of a verdict, and the same detection over a capture file."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import RawPcapReader, wrpcap

from check_failover.config import Config, load
from check_failover.sniffer import evidence, replay
from check_failover.sniffer.capture import CaptureError
from check_failover.sniffer.evidence import Evidence
from check_failover.sniffer.stage1.packet import parse
from tests.unit import packets as made

LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # without addresses scapy would ask the network

CONFIG = """
[[service]]
name = "ldap"
host = "h"
protocol = "tcp"
address = "192.0.2.10"
port = 389
primary = "10.0.0.11"
standby = "10.0.0.12"
[service.check]
type = "ldap"
base = "dc=example,dc=org"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return load(path)


def conversation(port: int, at: float, *, answered: bool = True, link: object = None) -> list[object]:
    """A login as seen at the client interface: handshake, bind, and its answer or none."""

    def packet(back: bool, flags: str, seq: int, ack: int, when: float, payload: bytes = b"") -> object:
        ends = {"src": "192.0.2.10", "dst": "198.51.100.7"} if back else {"src": "198.51.100.7", "dst": "192.0.2.10"}
        ports = {"sport": 389, "dport": port} if back else {"sport": port, "dport": 389}
        frame = (link or LINK) / IP(**ends) / TCP(**ports, flags=flags, seq=seq, ack=ack) / payload
        frame.time = when
        return frame

    found = [
        packet(False, "S", 100, 0, at),
        packet(True, "SA", 500, 101, at + 0.001),
        packet(False, "A", 101, 501, at + 0.002),
        packet(False, "PA", 101, 501, at + 0.003, made.bind(1)),
    ]
    if answered:
        found.append(packet(True, "PA", 501, 101 + len(made.bind(1)), at + 0.005, made.result(1, tag=0x61)))
    return found


def story(config: Config, path: Path, *, passes: bool = False) -> list[str]:
    """What the replay printed."""
    lines: list[str] = []
    player: replay.Replay | None = None
    for frame, _size, at, linktype in replay._frames(path):
        player = player or replay.Replay(config, lines.append, primary_passes=passes, begin=at)
        player.frame(frame, at, linktype)
    assert player is not None
    player.run_to(player.now + replay.TAIL)
    return [*lines, *player.summary()]


def test_a_file_of_headers_says_that_nothing_can_be_read_in_it(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evidence keeps headers only: "0 requests" would be taken for a finding."""
    path = tmp_path / "headers.pcap"
    whole = [bytes(packet) for packet in conversation(4000, 0.0)]  # type: ignore[call-overload]
    for keep, told in ((54, "2 of 5 packets are cut, their payload is not in the file"), (1000, None)):
        path.write_bytes(evidence.pcap([(1.0 + n / 1000, data[:keep], len(data)) for n, data in enumerate(whole)]))
        replay.run(config, path, None, primary_passes=False)
        said = capsys.readouterr().out
        assert (told in said) if told else (" are cut" not in said and "ldap: 1 requests, 1 replies" in said), said


def capture(path: Path, *, dead_after: float, link: object = None) -> Path:
    """Ten seconds at 20 logins/s; from ``dead_after`` on nobody answers."""
    base = 1_790_000_000.0
    frames = [
        frame
        for number in range(200)
        for frame in conversation(20000 + number, base + number / 20, answered=number / 20 < dead_after, link=link)
    ]
    wrpcap(str(path), sorted(frames, key=lambda frame: frame.time))
    return path


@pytest.mark.parametrize("link", [None, LINK / Dot1Q(vlan=7)], ids=["plain", "vlan"])
def test_replay_of_a_hang(config: Config, tmp_path: Path, link: object) -> None:
    """The detector fires as long after the first victim as live, and the decision with its reason is printed."""
    lines = story(config, capture(tmp_path / "a.pcap", dead_after=8.0, link=link))
    suspicion = next(line for line in lines if "suspicion, unanswered-request" in line)
    assert 8.0 < float(suspicion.split()[0]) < 8.5
    assert any("would fail over: no useful reply" in line for line in lines)
    assert lines[-2].startswith("ldap: 200 requests, 160 replies")
    assert lines[-2].endswith("failed at the end")


def test_replay_of_a_good_day(config: Config, tmp_path: Path) -> None:
    """All answered: no suspicion, no probe."""
    lines = story(config, capture(tmp_path / "a.pcap", dead_after=100.0))
    assert not any("suspicion" in line for line in lines[:-2])
    assert lines[-1].endswith("made: 0")


def test_replay_with_a_server_that_passes(config: Config, tmp_path: Path) -> None:
    """With ``--assume-primary passes`` a suspicion is refuted, and the probes are counted."""
    lines = story(config, capture(tmp_path / "a.pcap", dead_after=8.0), passes=True)
    assert any("refuted" in line for line in lines)
    assert not any("would fail over" in line for line in lines)
    assert int(lines[-1].split()[-1]) > 0


@pytest.mark.parametrize("content", [b"", b"no capture file at all", b"\xd4\xc3\xb2\xa1\x02\x00"])
def test_what_is_no_capture_file(config: Config, tmp_path: Path, content: bytes) -> None:
    """One line says so."""
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=r"x\.pcap: "):
        replay.run(config, path, None, primary_passes=False)
    with pytest.raises(CaptureError, match="cannot read"):
        replay.run(config, tmp_path / "none", None, primary_passes=False)


def test_evidence_is_headers_only(tmp_path: Path) -> None:
    """What is kept can be read by any tool, has the length of the wire, and not one byte of what was asked."""
    kept = Evidence(tmp_path / "evidence")
    secret = b"uid=joe,userPassword=verysecret"
    for frame in (
        LINK / IP(src="198.51.100.7", dst="192.0.2.10") / TCP(sport=1, dport=389, flags="PA") / secret,
        LINK / IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(sport=1, dport=389, flags="PA") / secret,
    ):
        data = bytes(frame)
        packet = parse(data, time.monotonic())
        assert packet is not None
        kept.frame("ldap", packet, data)
    kept.save("ldap-1", kept.snapshot("ldap"), {"a": 1})
    content = (tmp_path / "evidence" / "ldap-1.pcap").read_bytes()
    assert b"secret" not in content
    with RawPcapReader(io.BytesIO(content)) as reader:
        rows = list(reader)
    assert [meta.wirelen - meta.caplen for _, meta in rows] == [len(secret)] * 2
    assert abs(rows[0][1].sec - time.time()) < 5
    assert json.loads((tmp_path / "evidence" / "ldap-1.json").read_text()) == {"a": 1}


def test_evidence_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory by frames, disk by files and bytes; the newest stay."""
    monkeypatch.setattr(evidence, "FILES", 6)
    kept = Evidence(tmp_path)
    packet = parse(bytes(LINK / IP(src="1.1.1.1", dst="2.2.2.2") / TCP()), time.monotonic())
    assert packet is not None
    for _ in range(evidence.FRAMES + 10):
        kept.frame("ldap", packet, b"x" * 54)
    assert len(kept.snapshot("ldap")) == evidence.FRAMES
    for number in range(10):
        kept.save(f"ldap-{number}", [], {})
    assert len(list(tmp_path.iterdir())) == 6
    assert (tmp_path / "ldap-9.json").exists()
    monkeypatch.setattr(evidence, "BYTES", 100)
    kept.save("ldap-10", kept.snapshot("ldap"), {})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100


def test_a_full_disk_costs_the_evidence_only(tmp_path: Path) -> None:
    """Nothing is raised; the verdict goes on."""
    (tmp_path / "file").touch()
    Evidence(tmp_path / "file").save("ldap-1", [], {})
