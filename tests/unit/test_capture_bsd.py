"""The capture of the BSDs, as far as its kernel is not needed: what a read of /dev/bpf holds, and who opens what."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover.sniffer.capture import bsd
from check_failover.sniffer.capture.bsd import split

ROOT = Path(__file__).resolve().parents[2]


# How each kernel's bpf(4) hands out an Ethernet frame on a 64-bit machine: its header, then room so that what follows
# the Ethernet header is aligned to a long.
# FreeBSD with BPF_T_NANOTIME: bpf_xhdr, 26 bytes of its own. NetBSD: bpf_hdr, which the compiler fills up to 32.
FORMS = {"freebsd14": ("=qQIIH", 1_000_000_000, 26), "netbsd10": ("=qqIIH", 1_000_000, 34)}
PLATFORMS = pytest.mark.parametrize("platform", FORMS)


def record(at: float, frame: bytes, platform: str = "freebsd14") -> bytes:
    """The header, the frame, alignment to a long."""
    form, parts, length = FORMS[platform]
    head = struct.pack(form, int(at), int(at % 1 * parts), len(frame), len(frame) + 1000, length).ljust(length, b"\xff")
    return (head + frame).ljust((length + len(frame) + 7) & -8, b"\0")


@PLATFORMS
@given(frames=st.lists(st.binary(min_size=14, max_size=300), max_size=2000 // 8))
def test_every_frame_of_a_read(platform: str, frames: list[bytes]) -> None:
    """Whole, in their order, with the kernel's time."""
    buffer = b"".join(record(1000.5 + number, frame, platform) for number, frame in enumerate(frames))
    found = list(split(buffer, platform))
    assert [frame for _, frame in found] == frames
    assert [when for when, _ in found] == [1000.5 + number for number in range(len(frames))]


@PLATFORMS
@given(buffer=st.binary(max_size=400))
def test_garbage_ends(platform: str, buffer: bytes) -> None:
    assert all(len(frame) <= len(buffer) for _, frame in split(buffer, platform))


class Kernel:
    """A bpf descriptor: what is in its two buffers, and how long they are. Reading knows that length only."""

    LENGTH = 4096

    def __init__(self, *buffers: bytes) -> None:
        self.buffers = list(buffers)

    def read(self, _descriptor: int, length: int) -> bytes:
        if length != self.LENGTH:
            raise OSError(errno.EINVAL, "Invalid argument")
        if not self.buffers:
            raise BlockingIOError
        return self.buffers.pop(0)


def test_a_read_asks_for_what_the_kernel_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """bpf(4) answers a read of any other length than its buffers' with EINVAL; one look empties both of them."""
    kernel = Kernel(record(1.0, b"first"), record(2.0, b"second"))
    opened = SimpleNamespace(set_nonblock=lambda: None, get_blen=lambda: kernel.LENGTH, fileno=lambda: 7)
    supersocket = ModuleType("scapy.arch.bpf.supersocket")  # the real one cannot be imported on Linux
    supersocket.L2bpfSocket = lambda **_: opened  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, supersocket.__name__, supersocket)
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: None)
    monkeypatch.setattr(os, "read", kernel.read)
    tap = bsd.BsdTap("lo", bytes(8))
    assert [frame for _, frame in tap.frames(until=9.0)] == [b"first", b"second"]
    assert list(tap.frames(until=9.0)) == []


def test_more_frames_than_python_recurses() -> None:
    """A full buffer holds thousands."""
    assert len(list(split(record(1.0, b"x" * 60) * 8000))) == 8000


BSD = """
    import importlib, os, pkgutil, socket, sys

    for module, names in (
        (socket, ("AF_NETLINK", "AF_PACKET", "SO_MARK", "SO_PEERCRED", "PACKET_OUTGOING", "SO_BINDTODEVICE")),
        (os, ("eventfd", "memfd_create", "sched_getaffinity", "getrandom", "setns", "unshare")),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = "freebsd14"
    import check_failover

    found = [m.name for m in pkgutil.walk_packages(check_failover.__path__, "check_failover.")]
    parts = (".nft", ".redirect", ".conntrack", ".ruleset", ".poke")
    linux = {f"check_failover.redirector.nftables{part}" for part in parts} | {"check_failover.sniffer.capture.linux"}
    for name in found:
        if name not in linux and not name.endswith("__main__"):
            importlib.import_module(name)
    assert not linux & set(sys.modules), linux & set(sys.modules)
    from check_failover.sniffer.capture import taps
    print(taps.Tap.__module__, len(found) > 60)
"""


def test_nothing_of_linux_is_needed() -> None:
    """Every module but those of the nftables redirect can be imported with Linux's names taken away."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BSD)],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "check_failover.sniffer.capture.bsd True\n", done.stderr
