"""A TCP client by hand: it sends its SYN at the times that a test gives, and reports all answers.

    python -m tests.lab.handshake ADDRESS PORT SOURCE_PORT SECONDS[,SECONDS...]     each SYN so many seconds after start

Prints the answer to ``who`` (see ``echo``), or ``timeout``, and then ``servers=N resets=N``: how many different
SYN-ACKs came (one server is one initial sequence number) and how many RSTs. The kernel, which knows nothing of it,
would reset it: the namespace must drop outgoing RSTs from that port (``QUIET``).
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time

from check_failover.rawip import finish
from tests.lab.netns import CLIENT

QUIET = """
table inet quiet {
    chain out { type filter hook output priority 0; tcp sport 30000-30999 tcp flags & rst == rst drop; }
}
"""
SYN, RST, PSH, ACK, FIN = 2, 4, 8, 16, 1
PATIENCE = 4.0  # seconds for everything


class Client:
    """One connection."""

    def __init__(self, address: str, port: int, source_port: int) -> None:
        self._to, self._port, self._source_port = address, port, source_port
        self._send = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._receive = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self.isn = random.randrange(1 << 32)
        self.servers: set[int] = set()
        self.resets = 0

    def send(self, flags: int, seq: int, ack: int = 0, data: bytes = b"") -> None:
        ports = struct.pack("!HH", self._source_port, self._port)
        tcp = ports + struct.pack("!IIBBHHH", seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 5 << 4, flags, 64240, 0, 0) + data
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0)
        packet = finish(head + socket.inet_aton(CLIENT) + socket.inet_aton(self._to) + tcp)
        assert packet is not None
        self._send.sendto(packet, (self._to, 0))

    def receive(self, until: float) -> tuple[int, int, int, bytes] | None:
        """Flags, sequence number, acknowledgement and payload of the next packet; None: none came in time."""
        while (left := until - time.monotonic()) > 0:
            self._receive.settimeout(left)
            try:
                packet = self._receive.recv(2048)
            except TimeoutError:
                break
            tcp = packet[(packet[0] & 15) * 4 :]
            source_port, port, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", tcp)
            if (source_port, port) == (self._port, self._source_port):
                return flags, seq, ack, tcp[(offset >> 4) * 4 :]
        return None

    def talk(self, syns: list[float]) -> str:
        began = time.monotonic()
        answer, acknowledged = "", None
        while time.monotonic() < began + PATIENCE and not answer:
            if syns and time.monotonic() >= began + syns[0]:
                syns.pop(0)
                self.send(SYN, self.isn)
                continue
            got = self.receive(began + (syns[0] if syns else PATIENCE))
            if got is None:
                continue
            flags, seq, _, data = got
            self.resets += flags & RST > 0
            if flags & SYN:
                self.servers.add(seq)
                if acknowledged is None:
                    acknowledged = seq + 1
                    self.send(ACK, self.isn + 1, acknowledged)
                    self.send(ACK | PSH, self.isn + 1, acknowledged, b"who\n")
            elif data:
                answer = data.decode().strip()
                self.send(ACK | FIN, self.isn + 5, seq + len(data))
        end = time.monotonic() + 1.5  # what comes late
        while (got := self.receive(end)) is not None:
            self.resets += got[0] & RST > 0
            if got[0] & SYN:
                self.servers.add(got[1])
            if got[0] & FIN:
                self.send(ACK, self.isn + 6, got[1] + 1)
        return f"{answer or 'timeout'} servers={len(self.servers)} resets={self.resets}"


if __name__ == "__main__":
    moments = [float(moment) for moment in sys.argv[4].split(",")]
    print(Client(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).talk(moments))
