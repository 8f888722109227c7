"""Frames from the kernel on FreeBSD and NetBSD: ``/dev/bpf``, opened by scapy, with our own filter program.

``BsdTap`` has the interface of ``LinuxTap``; classic BPF programs are the same everywhere. There is no tap for all
interfaces: ipfilter does not withhold refusals, so they pass the client interface. This module splits the buffers
itself, because scapy's reader recurses once per frame and fails at the thousandth.

Source: bpf(4), netintro(4) and <net/bpf.h> of FreeBSD 14 and NetBSD 10. Tested with such buffers, not yet on a real
kernel.
"""

import contextlib
import fcntl
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator

from check_failover.places import row_of
from check_failover.sniffer.capture import CaptureError

# prefix of sys.platform -> header of each frame (seconds, fraction, caplen, datalen, hdrlen), unit of the fraction
HEADERS = {
    "freebsd": (struct.Struct("=qQIIH"), 1e-9),  # bpf_xhdr, of which scapy asks for BPF_T_NANOTIME
    "netbsd": (struct.Struct("@llIIH"), 1e-6),  # bpf_hdr with a bpf_timeval of two longs
}
_ALIGN = struct.calcsize("l")  # BPF_ALIGNMENT
_BUFFERS = 2  # the kernel's: the full (or rotated) one and the one being filled


class BsdTap:
    """One bpf descriptor on ``interface``. Raises CaptureError."""

    def __init__(self, interface: str | None, program: bytes) -> None:
        if interface is None:
            raise CaptureError("bpf(4) captures on one interface, not on all")
        from scapy.arch.bpf.supersocket import L2bpfSocket
        from scapy.error import Scapy_Exception

        try:
            self._socket = L2bpfSocket(iface=interface, nofilter=1, promisc=False)
            self._socket.set_nonblock()
            self.index = socket.if_nametoindex(interface)
            self._length: int = self._socket.get_blen() or 0  # a read of another size fails with EINVAL
            if not self._length:
                raise OSError("the kernel gives no buffer length (BIOCGBLEN)")
            self.refilter(program)
        except (OSError, Scapy_Exception) as error:
            allowed = os.access("/dev/bpf", os.R_OK | os.W_OK)  # scapy opens it for both
            why = str(error) if allowed else "no permission for /dev/bpf"
            raise CaptureError(f"{interface}: {why}") from None
        self._kept: deque[tuple[float, bytes]] = deque()
        self._dropped = 0

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def frames(self, until: float) -> Iterator[tuple[float, bytes]]:
        """The frames captured before ``until`` (Unix time), oldest first; later frames stay for the next call."""
        with contextlib.suppress(OSError):  # no frame (EAGAIN), or the interface is gone (ENXIO): ``down`` reports it
            for _ in range(_BUFFERS):
                self._kept.extend(split(os.read(self.fileno(), self._length)))
        while self._kept and self._kept[0][0] < until:
            yield self._kept.popleft()

    def failed(self) -> bool:
        """Always False: bpf(4) reports no errors; the loop calls ``down`` twice a second."""
        return False

    def refilter(self, program: bytes) -> None:
        """Replace the filter, for example to sample."""
        from ctypes import POINTER, cast, create_string_buffer

        from scapy.arch.bpf.consts import BIOCSETF
        from scapy.libs.structures import bpf_insn, bpf_program

        code = create_string_buffer(program)
        fcntl.ioctl(self.fileno(), BIOCSETF, bpf_program(len(program) // 8, cast(code, POINTER(bpf_insn))))

    def drops(self) -> int:
        """Frames dropped since the last call because the buffer was full (bpf(4), BIOCGSTATS)."""
        _, dropped = self._socket.get_stats()
        before, self._dropped = self._dropped, dropped or self._dropped
        return int(self._dropped - before)

    def close(self) -> None:
        self._socket.close()


def split(buffer: bytes, platform: str = sys.platform) -> Iterator[tuple[float, bytes]]:
    """Yields the frames of one read with their times; stops at a header that does not fit."""
    form, part = row_of(HEADERS, platform, "freebsd")
    at = 0
    while at + form.size <= len(buffer):
        seconds, parts, captured, _, header = form.unpack_from(buffer, at)
        start, end = at + header, at + header + captured
        if header < form.size or end > len(buffer):
            return
        yield seconds + parts * part, buffer[start:end]
        at += (header + captured + _ALIGN - 1) & -_ALIGN
