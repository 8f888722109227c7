"""Whole LDAP conversations at any rate, sent out of the controller's own client interface: for what watching costs.

    python -m tests.bench.mirror INTERFACE ADDRESS RATE SECONDS      RATE in connections/s, 0: as fast as it goes

Prints a line when it begins and ``{"frames", "seconds"}`` at its end. Each connection is ``len(STEPS)`` frames:
connect, bind, one search, unbind, close, both directions (answers count only where they leave, see ``bpf``). Their
destination is a MAC address that nobody has, so only packet sockets see them: what servers and NAT can carry sets no
limit here. Sixteen connections are in progress at a time. sendmmsg(2), so that Python is not in the way of the rate.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time

from check_failover.sniffer.stage1.packet import ACK, FIN, PSH, SYN
from tests.fuzz.packets import tcp
from tests.unit import packets as made

PORTS = range(32768, 32768 + 16384)
AT_ONCE = 16
CLIENT = bytes([192, 0, 2, 7])
BATCH = 512
# from the client?, flags, payload
STEPS = (
    (True, SYN, b""),
    (False, SYN | ACK, b""),
    (True, ACK, b""),
    (True, ACK | PSH, made.bind(1)),
    (False, ACK | PSH, made.result(1, tag=0x61)),
    (True, ACK | PSH, made.search(2)),
    (False, ACK | PSH, made.entry(2) + made.result(2)),
    (True, ACK, b""),
    (True, ACK | PSH, made.unbind(3)),
    (True, ACK | FIN, b""),
    (False, ACK | FIN, b""),
    (True, ACK, b""),
)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_size", ctypes.c_uint32), ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("sent", ctypes.c_uint32),
    )  # fmt: skip


def conversation(server: bytes, port: int) -> list[bytes]:
    """The frames of one connection."""
    frames, position = [], {True: 1000, False: 5000}
    for up, flags, payload in STEPS:
        ends = (CLIENT, port, server, 389) if up else (server, 389, CLIENT, port)
        frames.append(tcp(*ends, flags, position[up], position[not up] if flags & ACK else 0, payload))
        position[up] += len(payload) + bool(flags & (SYN | FIN))
    return frames


def frames(server: bytes) -> list[bytes]:
    """Of a connection from each port, sixteen in progress at a time."""
    found: list[bytes] = []
    for first in range(0, len(PORTS), AT_ONCE):
        talks = [conversation(server, port) for port in PORTS[first : first + AT_ONCE]]
        found += [frame for step in zip(*talks, strict=True) for frame in step]
    return found


def main(interface: str, address: str, rate: float, seconds: float) -> None:
    found = frames(socket.inet_aton(address))
    store = [ctypes.create_string_buffer(frame, len(frame)) for frame in found]
    vectors = (_Vector * len(found))(*((ctypes.addressof(b), len(b)) for b in store))
    size = ctypes.sizeof(_Vector)
    messages = (_Message * len(found))()
    for at in range(len(found)):
        messages[at].vectors = ctypes.cast(ctypes.addressof(vectors) + at * size, ctypes.POINTER(_Vector))
        messages[at].vector_count = 1
    send = ctypes.CDLL(None, use_errno=True).sendmmsg
    send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        print("begun", flush=True)
        begin, sent, per_second = time.monotonic(), 0, rate * len(STEPS)
        while (passed := time.monotonic() - begin) < seconds:
            due = int(passed * per_second) - sent if rate else BATCH
            if due <= 0:
                time.sleep(0.0005)
                continue
            at = sent % len(found)
            where = ctypes.addressof(messages) + at * ctypes.sizeof(_Message)
            done = send(sock.fileno(), where, min(due, BATCH, len(found) - at), 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            sent += done
    print(json.dumps({"frames": sent, "seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
