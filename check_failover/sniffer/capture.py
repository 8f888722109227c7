"""Frames from the kernel: AF_PACKET sockets with a classic BPF filter. Linux only; ``CAPTURES`` in ``daemon`` chooses.

Each socket is opened with protocol 0, gets its filter, then its buffer, and is bound last: no unfiltered packet slips
in. ETH_P_ALL, because a socket bound to one protocol never sees what this machine sends, and then answered requests
look unanswered. scapy is not used here: its sniff() saturates a core at 5,000 packets/s.

Source: packet(7), Linux Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import select
import socket
import struct
from collections.abc import Iterator

from check_failover.sniffer import bpf

ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_BUFFER = 4 << 20  # bytes
BATCH = 256  # frames read before the loop looks at its clocks again


class CaptureError(Exception):
    """No frames from there: one line."""


class Tap:
    """One packet socket. ``interface`` None: all interfaces, incoming frames only."""

    def __init__(self, interface: str | None, program: bytes) -> None:
        self.interface = interface
        self._socket = _open(interface, program)

    def fileno(self) -> int:
        return self._socket.fileno()

    def frames(self) -> Iterator[bytes]:
        """What is waiting, at most BATCH frames. Raises CaptureError when the interface is gone."""
        receive = self._socket.recvfrom
        outgoing = socket.PACKET_OUTGOING
        for _ in range(BATCH):
            try:
                frame, address = receive(bpf.SNAPLEN, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                raise CaptureError(f"{self.interface}: {error.strerror}") from None
            if self.interface is not None or address[2] != outgoing:
                yield frame

    def refilter(self, program: bytes) -> None:
        """Replace the filter, e.g. to sample."""
        _attach(self._socket, program)

    def drops(self) -> tuple[int, int]:
        """(frames, drops) since the last call (packet(7), PACKET_STATISTICS)."""
        packets, drops = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        return packets, drops

    def close(self) -> None:
        self._socket.close()


def down(interface: str) -> str | None:
    """Why an interface sees nothing now: gone, switched off, no carrier; None when it is up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", interface.encode(), 0)
        try:
            flags = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
        except OSError:
            return f"{interface} is gone"
    if not flags & _IFF_UP:
        return f"{interface} is down"
    return None if flags & _IFF_RUNNING else f"{interface} has no carrier"


def _open(interface: str | None, program: bytes) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0 if interface else socket.htons(ETH_P_ALL))
    except PermissionError:
        raise CaptureError("no permission for packet sockets: CAP_NET_RAW is missing") from None
    try:
        if interface is None:  # bound to all from its birth: what slipped in is thrown away
            _attach(sock, bpf.accept_nothing())
            while select.select([sock], [], [], 0)[0]:
                sock.recv(1)
        _attach(sock, program)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # needs CAP_NET_ADMIN; without it the system's maximum must do
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        if interface is not None:
            sock.bind((interface, ETH_P_ALL))
    except OSError as error:
        sock.close()
        raise CaptureError(f"{interface or 'all interfaces'}: {error.strerror}") from None
    return sock


def _attach(sock: socket.socket, program: bytes) -> None:
    code = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code)))
