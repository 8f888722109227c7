"""The capture of the BSDs, as far as its kernel is not needed: what a read of /dev/bpf holds, and who opens what."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from check_failover.sniffer.capture_bsd import split

ROOT = Path(__file__).resolve().parents[2]


def record(at: float, frame: bytes) -> bytes:
    """A frame as FreeBSD's bpf(4) hands it out with BPF_T_NANOTIME: bpf_xhdr, the frame, alignment to a long."""
    head = struct.pack("=qQIIH", int(at), int(at % 1 * 1e9), len(frame), len(frame), 26)
    return (head + frame).ljust((26 + len(frame) + 7) & -8, b"\0")


@given(st.lists(st.binary(min_size=14, max_size=300), max_size=2000 // 8))
def test_every_frame_of_a_read(frames: list[bytes]) -> None:
    buffer = b"".join(record(1000.5 + number, frame) for number, frame in enumerate(frames))
    found = list(split(buffer))
    assert [frame for _, frame in found] == frames
    assert [when for when, _ in found] == [1000.5 + number for number in range(len(frames))]


@given(st.binary(max_size=400))
def test_garbage_ends(buffer: bytes) -> None:
    assert all(len(frame) <= len(buffer) for _, frame in split(buffer))


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
    linux = {f"check_failover.redirector.{name}" for name in ("nft", "nftables", "conntrack", "ruleset", "poke")}
    for name in found:
        if name not in linux and not name.endswith("__main__"):
            importlib.import_module(name)
    assert not linux & set(sys.modules), linux & set(sys.modules)
    from check_failover.sniffer import eyes
    print(eyes.Tap.__module__, len(found) > 60)
"""


def test_nothing_of_linux_is_needed() -> None:
    """Every module but those of the nftables redirect can be imported with Linux's names taken away."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BSD)],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "check_failover.sniffer.capture_bsd True\n", done.stderr
