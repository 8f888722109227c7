"""Evidence of a verdict, for people: the headers of the last seconds as a pcap file, and the story as JSON.

A ring in memory is bounded by its count; the files are bounded by number and bytes, and the oldest are removed first.
Payload is left out, because it may hold secrets (a bind carries a password). A thread writes the files after the
verdict has been sent.

Source: pcap-savefile(5).
"""

import json
import logging
import struct
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from check_failover.sniffer.stage1.packet import Packet

SECONDS = 10.0  # of traffic in a file
FRAMES = 4096  # of one service, at most
FILES, BYTES = 100, 32 << 20  # in the whole directory, at most
HEADERS = 128  # bytes of a frame without a transport payload (ICMP quotes one)
_ETHERNET = 1

log = logging.getLogger("failover-sniffer")


class Evidence:
    """The rings of all services, and their directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._rings: dict[str, deque[tuple[float, bytes, int]]] = defaultdict(lambda: deque(maxlen=FRAMES))

    def frame(self, service: str, packet: Packet, frame: bytes) -> None:
        """Keep the headers of a captured frame."""
        end = min(len(frame) - len(packet.payload), HEADERS)
        self._rings[service].append((packet.now, frame[:end], len(frame) - len(packet.payload) + packet.length))

    def snapshot(self, service: str) -> list[tuple[float, bytes, int]]:
        """A copy of the ring, for the thread that saves it."""
        return list(self._rings[service])

    def save(self, name: str, frames: list[tuple[float, bytes, int]], story: Mapping[str, Any]) -> None:
        """Write ``name``.pcap and ``name``.json; a full disk is logged and costs only the evidence."""
        now, wall = time.monotonic(), time.time()
        recent = [(wall - now + at, data, size) for at, data, size in frames if now - at <= SECONDS]
        try:
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            (self.directory / f"{name}.pcap").write_bytes(pcap(recent))
            (self.directory / f"{name}.json").write_text(json.dumps(story, indent=1) + "\n")
            self._prune()
        except OSError as error:
            log.warning("evidence %s cannot be kept: %s", name, error.strerror)

    def _prune(self) -> None:
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self.directory.iterdir())
        total = sum(size for _, size, _ in files)
        while files and (len(files) > FILES or total > BYTES):
            _, size, path = files.pop(0)
            total -= size
            path.unlink(missing_ok=True)


def pcap(frames: list[tuple[float, bytes, int]]) -> bytes:
    """A pcap file of (Unix time, bytes, length on the wire)."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, _ETHERNET)]
    for at, data, size in frames:
        whole = int(at)
        parts.append(struct.pack("<IIII", whole, int((at - whole) * 1e6), len(data), max(size, len(data))))
        parts.append(data)
    return b"".join(parts)
