"""Frames from the wire. ``taps`` opens the taps, samples, and sorts by time; ``linux`` and ``bsd`` are the two taps.

This package knows no monitor: ``taps.Taps.read`` returns (service name or None, packet, frame).
"""

import fcntl
import os
import socket
import struct
import sys

# netdevice(7); netintro(4) of the BSDs: in it is the size of struct ifreq, 32 bytes on FreeBSD, 144 on NetBSD
_SIOCGIFFLAGS = {"linux": 0x8913, "netbsd": 0xC0906911}.get(sys.platform.rstrip("0123456789."), 0xC0206911)
_IFF_UP, _IFF_RUNNING = 0x1, 0x40


class CaptureError(Exception):
    """An interface cannot be captured: one line."""


def down(interface: str, index: int = 0) -> str | None:
    """Why an interface receives nothing: gone, down, no carrier; None when it is up.

    With ``index``, an interface of the same name and another index counts as gone.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", os.fsencode(interface)[:15], 0)
        try:
            flags = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
            if index not in (0, socket.if_nametoindex(interface)):
                return f"{interface} is gone"
        except OSError:
            return f"{interface} is gone"
    if not flags & _IFF_UP:
        return f"{interface} is down"
    return None if flags & _IFF_RUNNING else f"{interface} has no carrier"
