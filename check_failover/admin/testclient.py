"""A test client on this machine: a network namespace behind a pair of virtual interfaces, gone with its one process.

Its packets arrive from outside; the kernel translates, forwards and routes them like any client's, only through another
interface (``LINK``). The namespace belongs to a ``cat`` that ends when our end of its pipe closes. So the namespace,
its interfaces and routes vanish with this program, even after SIGKILL.

Linux, as root. Source: network_namespaces(7), veth(4), setns(2), unshare(1).
"""

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from check_failover import programs
from check_failover.admin import FailedError
from check_failover.model import Endpoint

T = TypeVar("T")
LINK = "failover-drill"  # the controller's end
IP, UNSHARE = "/usr/sbin/ip", "/usr/bin/unshare"
_OURS, _THEIRS = "02:cf:0d:00:00:01", "02:cf:0d:00:00:02"  # locally administered; fixed, so that no ARP is needed
_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def client_at(address: str, service: Endpoint) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Yields ``run``, which calls a function as that client. Raises FailedError."""
    try:
        keeper = programs.start([UNSHARE, "--net", "/bin/cat"])
    except OSError as error:
        raise FailedError(f"{UNSHARE}: {error.strerror}: install util-linux") from None
    try:
        with programs.ended(keeper, patience=0.0):
            _wire(keeper, address, service)
            yield lambda act: _inside(keeper.pid, act)
    finally:
        with contextlib.suppress(FailedError):
            _ip("link", "delete", LINK)  # the kernel does it later


def _wire(keeper: subprocess.Popen[bytes], address: str, service: Endpoint) -> None:
    _wait_for_namespace(keeper)
    bits, lines = (32, "-4") if service.family == 4 else (128, "-6")
    _ip("link", "add", LINK, "address", _OURS, "type", "veth", "peer", "name", "eth0", "address", _THEIRS,
        "netns", str(keeper.pid))  # fmt: skip
    _ip("link", "set", LINK, "up")

    def inside() -> None:
        _ip("link", "set", "eth0", "up")
        _ip("address", "add", f"{address}/{bits}", "dev", "eth0", *(("nodad",) if bits == 128 else ()))
        _ip(lines, "route", "add", service.address, "dev", "eth0")
        _ip(lines, "neighbour", "add", service.address, "lladdr", _OURS, "dev", "eth0", "nud", "permanent")

    _inside(keeper.pid, inside)
    _ip(lines, "route", "add", f"{address}/{bits}", "dev", LINK)
    _ip(lines, "neighbour", "add", address, "lladdr", _THEIRS, "dev", LINK, "nud", "permanent")


def _wait_for_namespace(keeper: subprocess.Popen[bytes]) -> None:
    ours, end = Path("/proc/self/ns/net").readlink(), time.monotonic() + 5.0
    while time.monotonic() < end and keeper.poll() is None:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{keeper.pid}/ns/net").readlink() != ours:
                return
        time.sleep(0.005)
    raise FailedError(f"{UNSHARE} --net made no network namespace: does this kernel (or container) allow it?")


def _inside(pid: int, act: Callable[[], T]) -> T:
    """Call ``act`` in the network namespace of that process. setns(2) moves one thread, so it runs in a new thread."""

    def run() -> T:
        handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
                raise FailedError(f"setns: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(handle)
        return act()

    with ThreadPoolExecutor(1, "test client") as threads:
        return threads.submit(run).result()


def _ip(*argv: str) -> None:
    try:
        done = programs.run([IP, *argv], 5.0)
    except (OSError, programs.LateError) as error:
        raise FailedError(f"ip {' '.join(argv)}: {error}") from None
    if done.code:
        raise FailedError(f"ip {' '.join(argv)}: {done.said()}: does another drill go on?")
