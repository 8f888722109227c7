"""Frames from the kernel: AF_PACKET sockets with a classic BPF filter and a ring that both sides map.

Each socket is opened with protocol 0, gets its filter, then its ring, and is bound last: no unfiltered packet enters.
It is bound to ETH_P_ALL, because a socket bound to one protocol does not see outgoing packets, and answered requests
would look unanswered. A ring (TPACKET_V2) needs no system call per frame, is not limited by ``net.core.rmem_max`` (a
socket buffer is, without CAP_NET_ADMIN), carries the kernel's time of each frame, and shows a frame at once. TPACKET_V3
holds back a block until it is full, so a refusal could appear before its SYN. scapy's sniff() saturates a core at
5,000 packets/s and is not used.

Source: packet(7); Linux Documentation/networking/packet_mmap.rst, filter.rst, <linux/if_packet.h>.
"""

import ctypes
import mmap
import socket
import struct
from collections.abc import Iterator

from check_failover.sniffer.capture import CaptureError

ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V2 = 1
_HEADER = struct.Struct("=IIIHHIIHH")  # tpacket2_hdr: status, len, snaplen, mac, net, sec, nsec, vlan_tci, vlan_tpid
_WORD = struct.Struct("=I")
_USER, _VLAN_VALID, _TPID_VALID = 0x1, 0x10, 0x40
_SLOT = 640  # bytes: header, sockaddr_ll and alignment take 66, the frame bpf.SNAPLEN
_BLOCK = 64 << 10  # bytes
_BLOCKS = 32  # 2 MiB, 3,264 frames: 30 ms of 100,000 packets/s, until the sampling reacts
_CLOCK_STEP = 0.05  # seconds: a frame that lies further in the future was captured before the clock was set back


class LinuxTap:
    """One packet socket. ``interface`` None: all interfaces."""

    def __init__(self, interface: str | None, program: bytes) -> None:
        self.interface = interface
        self.index = 0  # of the interface: after it is removed and made again, the name is the same, the index is not
        self._socket = _open(interface, program)
        try:
            if interface is not None:
                self.index = socket.if_nametoindex(interface)
            self._ring = mmap.mmap(self._socket.fileno(), _BLOCK * _BLOCKS)
        except OSError as error:
            self._socket.close()
            raise CaptureError(f"{interface or 'all interfaces'}: {error.strerror}") from None
        slots = range(0, _BLOCK - _SLOT + 1, _SLOT)
        self._slots = [block * _BLOCK + slot for block in range(_BLOCKS) for slot in slots]
        self._next = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def frames(self, until: float) -> Iterator[tuple[float, bytes]]:
        """The frames captured before ``until``, oldest first, at most one full ring. Times are Unix times.

        Later frames stay for the next call: otherwise a reader of several taps could see an answer in one tap before
        it sees the request in another.
        """
        ring, header, latest = self._ring, _HEADER.unpack_from, until + _CLOCK_STEP
        for _ in range(len(self._slots)):
            at = self._slots[self._next]
            status, _, size, mac, _, seconds, nanoseconds, tag, tag_kind = header(ring, at)
            when = seconds + nanoseconds * 1e-9
            if not status & _USER or until < when < latest:
                return
            frame = ring[at + mac : at + mac + size]
            if status & _VLAN_VALID:  # the kernel removed the tag: restore the frame as it was on the wire
                kind = tag_kind if status & _TPID_VALID else 0x8100
                frame = frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]
            _WORD.pack_into(ring, at, 0)
            self._next = (self._next + 1) % len(self._slots)
            yield when, frame

    def failed(self) -> bool:
        """Whether the kernel reported an error since the last call: the interface went down or is gone."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def refilter(self, program: bytes) -> None:
        """Replace the filter, for example to sample."""
        _attach(self._socket, program)

    def drops(self) -> int:
        """Frames dropped since the last call because the ring was full (packet(7), PACKET_STATISTICS)."""
        _, drops = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        return int(drops)

    def close(self) -> None:
        self._ring.close()
        self._socket.close()


def _open(interface: str | None, program: bytes) -> socket.socket:
    try:
        # Python cannot bind to all interfaces: this socket is bound when it is created, and setting up the ring
        # discards what arrived before the filter.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0 if interface else socket.htons(ETH_P_ALL))
    except PermissionError:
        raise CaptureError("no permission for packet sockets: CAP_NET_RAW is missing") from None
    try:
        _attach(sock, program)
        sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        slots = _BLOCK // _SLOT * _BLOCKS
        sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("4I", _BLOCK, _BLOCKS, _SLOT, slots))
        if interface is not None:
            sock.bind((interface, ETH_P_ALL))
    except OSError as error:
        sock.close()
        raise CaptureError(f"{interface or 'all interfaces'}: {error.strerror}") from None
    return sock


def _attach(sock: socket.socket, program: bytes) -> None:
    code = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code)))
