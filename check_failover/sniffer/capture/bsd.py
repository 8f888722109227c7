"""Frames from the kernel on FreeBSD and NetBSD: ``/dev/bpf``, opened by scapy, with our own filter program.

The same ``BsdTap`` as ``capture`` has on Linux; classic BPF programs are the same bytes everywhere. There is no tap for
all interfaces: refusals are not withheld by ipfilter, so they pass the client interface. What was read is taken apart
here: scapy's own reading calls itself for each frame of a buffer, which ends at the thousandth.

Source: bpf(4), netintro(4) and <net/bpf.h> of FreeBSD 14 and NetBSD 10. Not yet run on a real kernel; the suite feeds
it such buffers.
"""

from __future__ import annotations

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

# how sys.platform begins -> what stands before each frame (seconds, their parts, caplen, datalen, hdrlen), the part
HEADERS = {
    "freebsd": (struct.Struct("=qQIIH"), 1e-9),  # bpf_xhdr, of which scapy asks for BPF_T_NANOTIME
    "netbsd": (struct.Struct("@llIIH"), 1e-6),  # bpf_hdr with a bpf_timeval of two longs
}
_ALIGN = struct.calcsize("l")  # BPF_ALIGNMENT
_BUFFERS = 2  # the kernel's: one that is full or was rotated away, one that is being filled


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
            self._length: int = self._socket.get_blen() or 0  # a read must ask for exactly that, or it gets EINVAL
            if not self._length:
                raise OSError("it does not tell how long its buffer is (BIOCGBLEN)")
            self.refilter(program)
        except (OSError, Scapy_Exception) as error:
            why = "no permission for /dev/bpf" if _denied() else str(error)
            raise CaptureError(f"{interface}: {why}") from None
        self._kept: deque[tuple[float, bytes]] = deque()
        self._dropped = 0

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def frames(self, until: float) -> Iterator[tuple[float, bytes]]:
        """What was captured before ``until`` (seconds since 1970), oldest first; what is later stays."""
        with contextlib.suppress(OSError):  # nothing there (EAGAIN), or the interface went (ENXIO): ``down`` tells
            for _ in range(_BUFFERS):
                self._kept.extend(split(os.read(self.fileno(), self._length)))
        while self._kept and self._kept[0][0] < until:
            yield self._kept.popleft()

    def failed(self) -> bool:
        """bpf(4) reports no trouble of its own; ``down`` is asked twice a second."""
        return False

    def refilter(self, program: bytes) -> None:
        """Replace the filter, e.g. to sample."""
        from ctypes import POINTER, cast, create_string_buffer

        from scapy.arch.bpf.consts import BIOCSETF
        from scapy.libs.structures import bpf_insn, bpf_program

        code = create_string_buffer(program)
        fcntl.ioctl(self.fileno(), BIOCSETF, bpf_program(len(program) // 8, cast(code, POINTER(bpf_insn))))

    def drops(self) -> int:
        """Frames that found the buffer full, since the last call (bpf(4), BIOCGSTATS)."""
        _, dropped = self._socket.get_stats()
        before, self._dropped = self._dropped, dropped or self._dropped
        return int(self._dropped - before)

    def close(self) -> None:
        self._socket.close()


def split(buffer: bytes, platform: str = sys.platform) -> Iterator[tuple[float, bytes]]:
    """The frames of one read, each with its time; a header that does not fit ends it."""
    form, part = row_of(HEADERS, platform, "freebsd")
    at = 0
    while at + form.size <= len(buffer):
        seconds, parts, captured, _, header = form.unpack_from(buffer, at)
        start, end = at + header, at + header + captured
        if header < form.size or end > len(buffer):
            return
        yield seconds + parts * part, buffer[start:end]
        at += (header + captured + _ALIGN - 1) & -_ALIGN


def _denied() -> bool:
    return not os.access("/dev/bpf", os.R_OK | os.W_OK)  # scapy opens it for both
