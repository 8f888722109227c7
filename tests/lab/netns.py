"""Network namespaces for tests, demo and benchmarks: made and removed here, never touching the host's own network.

The house every test lives in::

    client 192.0.2.7 ──cl0── controller 192.0.2.1 ──sv0 (bridge)──┬── primary 10.0.0.11
       (and fd00:c::7)       owns 192.0.2.10, fd00:c::10          └── standby 10.0.0.12   (and fd00:5::11, ::12)

Each test run has its own prefix, so runs side by side do not meet, and ``House.close`` ends what was started inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SERVICE_ADDRESS, SERVICE_ADDRESS6 = "192.0.2.10", "fd00:c::10"
CLIENT, CLIENT6 = "192.0.2.7", "fd00:c::7"
CONTROLLER, CONTROLLER6 = "10.0.0.1", "fd00:5::1"
PRIMARY, PRIMARY6 = "10.0.0.11", "fd00:5::11"
STANDBY, STANDBY6 = "10.0.0.12", "fd00:5::12"
ROOT = Path(__file__).resolve().parents[2]  # the tree, where ``python -m tests.lab.…`` works
CLONE_NEWNET = 0x40000000
NAMES = ("client", "controller", "primary", "standby")
MANAGEMENT = "198.51.100.1"  # the controller's address in the management network, where there is one (``House.join``)


def poll(condition: Callable[[], T], deadline: float, what: str, every: float = 0.02) -> T:
    """Call ``condition`` until it returns something true; fails after ``deadline`` seconds, naming ``what``."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline} s")
        time.sleep(every)


_HOUSES = itertools.count(1)


class House:
    """Four namespaces wired as above. A context manager; everything started through it ends with it."""

    names: tuple[str, ...] = NAMES

    def __init__(self, prefix: str | None = None) -> None:
        # A number for each house too: the kernel may still hold a name while the next house is built.
        self.prefix = prefix or f"cfo{os.getpid() % 100000}x{next(_HOUSES)}"
        self._names = list(self.names)
        self._joined = 0
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> House:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def name(self, who: str) -> str:
        """The namespace's name on this machine."""
        return f"{self.prefix}-{who}"

    def argv(self, who: str, *argv: str) -> list[str]:
        """``argv`` wrapped so that it runs in that namespace."""
        return ["/usr/sbin/ip", "netns", "exec", self.name(who), *argv]

    def run(self, who: str, *argv: str, check: bool = True, input: str | None = None, timeout: float = 30) -> str:
        """Run a command to its end; returns its stdout. A failure shows its stderr."""
        done = subprocess.run(
            self.argv(who, *argv), input=input, text=True, capture_output=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{who}: {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, who: str, *argv: str, log: Path | None = None, **popen: Any) -> subprocess.Popen[Any]:
        """Start a program that stays; its output goes to ``log``. Ended by ``close`` at the latest."""
        process = spawn(self.argv(who, *argv), log, **popen)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what was started and remove the namespaces (their links go with them)."""
        for process in self._processes:
            end(process)
        self._processes.clear()
        for who in self._names:
            for pid in self.pids(who):  # daemons that forked away from us, e.g. slapd and nagios workers
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "del", self.name(who), check=False)

    def add(self, who: str, link: str, near: str, far: str) -> None:
        """One more namespace, wired to the controller's new ``link`` (``near`` there, ``far`` at its own eth0)."""
        self._names.append(who)
        _ip("netns", "add", self.name(who))
        peer = ("type", "veth", "peer", "name", "eth0", "netns", self.name(who))
        _ip("link", "add", link, "netns", self.name("controller"), *peer)
        for where, port, address in (("controller", link, near), (who, "eth0", far)):
            self._address(where, port, address)
            self._ip(where, "link", "set", port, "up")
        self._ip(who, "link", "set", "lo", "up")

    def pids(self, who: str) -> list[int]:
        done = subprocess.run(
            ["/usr/sbin/ip", "netns", "pids", self.name(who)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in done.stdout.split()]

    def _build(self) -> None:
        self._namespaces()
        controller = self.name("controller")
        for who, port in (("client", "cl0"), ("primary", "pr0"), ("standby", "sb0")):
            _ip(
                "link",
                "add",
                port,
                "netns",
                controller,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                self.name(who),
            )
        self._ip("controller", "link", "add", "sv0", "type", "bridge")
        for port in ("pr0", "sb0"):
            self._ip("controller", "link", "set", port, "master", "sv0")
        for port in ("pr0", "sb0", "sv0", "cl0"):
            self._ip("controller", "link", "set", port, "up")
        self._address(
            "controller", "cl0", "192.0.2.1/24", f"{SERVICE_ADDRESS}/24", "fd00:c::1/64", f"{SERVICE_ADDRESS6}/64"
        )
        self._address("controller", "sv0", f"{CONTROLLER}/24", f"{CONTROLLER6}/64")
        self.run("controller", "/usr/sbin/sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for who, addresses, gateways in (
            ("client", (f"{CLIENT}/24", f"{CLIENT6}/64"), ("192.0.2.1", "fd00:c::1")),
            ("primary", (f"{PRIMARY}/24", f"{PRIMARY6}/64"), (CONTROLLER, CONTROLLER6)),
            ("standby", (f"{STANDBY}/24", f"{STANDBY6}/64"), (CONTROLLER, CONTROLLER6)),
        ):
            self._ip(who, "link", "set", "eth0", "up")
            self._address(who, "eth0", *addresses)
            for gateway in gateways:
                self._ip(who, "route", "add", "default", "via", gateway)

    def _namespaces(self) -> None:
        for who in self._names:
            _ip("netns", "add", self.name(who))
            self.run(
                who, "/usr/sbin/sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"
            )
            self.run(who, "/usr/sbin/ip", "link", "set", "lo", "up")

    def join(self, who: str, address: str) -> None:
        """One more namespace, in the management network 198.51.100.0/24 that the first one makes on the controller."""
        if not self._joined:
            self._ip("controller", "link", "add", "ad0", "type", "bridge")
            self._ip("controller", "link", "set", "ad0", "up")
            self._address("controller", "ad0", f"{MANAGEMENT}/24")
        _ip("netns", "add", self.name(who))
        self._names.append(who)
        self._joined += 1
        port = f"ad{self._joined}"
        peer = ("type", "veth", "peer", "name", "eth0", "netns", self.name(who))
        _ip("link", "add", port, "netns", self.name("controller"), *peer)
        self._ip("controller", "link", "set", port, "master", "ad0", "up")
        for link in ("lo", "eth0"):
            self._ip(who, "link", "set", link, "up")
        self._address(who, "eth0", f"{address}/24")

    def _ip(self, who: str, *argv: str) -> None:
        self.run(who, "/usr/sbin/ip", *argv)

    def _address(self, who: str, link: str, *addresses: str) -> None:
        for address in addresses:
            self._ip(who, "addr", "add", address, "dev", link, *(("nodad",) if ":" in address else ()))


def inside(namespace: str, act: Callable[[], T]) -> T:
    """Call ``act`` in a child process inside a network namespace: returns its value, or raises its exception here.

    For many short steps with the product's own modules, where a start of Python for each would take minutes.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        try:
            enter(namespace)
            outcome: tuple[str, Any] = ("value", act())
        except BaseException:
            outcome = ("failure", traceback.format_exc())
        os.write(writer, pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        kind, value = pickle.load(pipe)  # its own children may still hold the other end
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if kind == "failure":
        raise AssertionError(value)
    result: T = value
    return result


def enter(namespace: str) -> None:
    """This process into a network namespace, for good (setns(2); Python has it from 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def spawn(argv: Sequence[str], log: Path | None, **popen: Any) -> subprocess.Popen[Any]:
    """Start a program that stays, in a session of its own; its output goes to ``log``."""
    with (log or Path(os.devnull)).open("ab") as out:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **popen)


def end(process: subprocess.Popen[Any], patience: float = 5.0) -> None:
    """SIGCONT and SIGTERM, then SIGKILL after ``patience`` seconds; only ever a process that we started."""
    if process.poll() is not None:
        return
    for number in (signal.SIGCONT, signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill(pid: int) -> None:
    """SIGKILL, and wait until its last thread is gone: until then its sockets accept connections."""
    os.kill(pid, signal.SIGKILL)
    threads = Path(f"/proc/{pid}/task")

    def dead() -> bool:
        try:
            states = [t.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] for t in threads.iterdir()]
        except (FileNotFoundError, ProcessLookupError):  # one went while we looked, or all are gone
            return not threads.exists()
        return len(states) <= 1 and set(states) <= {"Z", "X"}

    poll(dead, 5.0, f"process {pid} is dead", every=0.002)


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until every thread of it has stopped, which takes a moment on a busy machine."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")

    def stopped() -> bool:
        return all(t.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] == "T" for t in threads.iterdir())

    poll(stopped, 5.0, f"process {pid} has stopped", every=0.005)


def _ip(*argv: str, check: bool = True) -> None:
    done = subprocess.run(["/usr/sbin/ip", *argv], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"ip {' '.join(argv)}: {done.stderr.strip()}")


def python_argv(module: str, *argv: str) -> Sequence[str]:
    """How to run one of the package's programs with this interpreter: ``python -m module``."""
    return (sys.executable, "-m", module, *argv)
