"""Runs a step on this machine or over ssh, with a time limit; a failure is one line of text.

Each step ends on both machines: here its process group is ended, there ``timeout`` ends it, because a shared
connection (ssh_config(5): ControlMaster) and its pipes stay open when our ssh is gone. What a step prints has a limit.

ssh always passes one string to a shell on the remote host. ``shlex`` quotes each argument for that shell, so a command
is the same argument list on both machines. Keys, ports and known hosts belong into ``ssh_config``. ssh refuses unknown
hosts and never prompts (ssh_config(5): StrictHostKeyChecking, BatchMode).
"""

import contextlib
import math
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

from check_failover.model import SyncSpec, Target

SSH = "/usr/bin/ssh"
_SSH_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    "StrictHostKeyChecking=yes",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "LogLevel=ERROR",
)
_SETPRIV = "/usr/bin/setpriv"  # util-linux: the child gets SIGTERM when this process dies, even by SIGKILL
# Seconds for a step of remote.sh: for those that remove or copy data; at the end of a run that was stopped
_LIMITS = {"prepare": 3600.0, "prune": 3600.0, "discard": 3600.0, "keep": 3600.0, "release": 5.0}
_OUTPUT = 1 << 20  # bytes of stdout, of stderr, or of one line, that are read
_GRACE = 1.0  # seconds in which the pipes of a program that ended are read; a shared connection keeps them open


class SyncStepError(Exception):
    """A step failed: one line that says what, where and what to do."""


class StoppedError(Exception):
    """SIGTERM or SIGINT came. It is no failure of a step: no step follows that would repair something."""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that a step runs on. ``target`` is ``user@host`` for ssh, ``None`` for this machine."""

    role: str  # primary | standby | controller | relay, for messages
    target: str | None = None
    ssh: tuple[str, ...] = (SSH,)

    def __str__(self) -> str:
        return f"{self.role} ({self.target or 'local'})"

    def argv(self, argv: Sequence[str], limit: float) -> list[str]:
        """The local command that runs ``argv`` on this host; a remote host ends it after ``limit`` seconds."""
        if self.target is None:
            return list(argv)
        return [*self.ssh, self.target, shlex.join([*far_end(limit), *argv])]


def host(spec: SyncSpec, role: str) -> Host:
    """The primary, the standby or the controller of a service."""
    target: str = getattr(spec, role)
    return Host(role, None if target == "local" else target, ssh_argv(spec))


def server(spec: SyncSpec, target: Target) -> Host:
    """The host of one of the two servers."""
    return host(spec, target.value)


def ssh_argv(spec: SyncSpec) -> tuple[str, ...]:
    """The ssh command with the options of all steps. No argument has a space, because rsync's ``-e`` splits there."""
    options = [part for option in _SSH_OPTIONS for part in ("-o", option)]
    return (SSH, "-a", "-x", *options, *(("-F", spec.ssh_config) if spec.ssh_config else ()))


def far_end(limit: float) -> list[str]:
    """The command that ends another one on its machine after ``limit`` seconds (timeout(1): 0 would mean never)."""
    return ["timeout", "-k", "10", str(max(1, math.ceil(limit)))]


def run(on: Host, argv: Sequence[str], limit: float, stdin: str = "") -> str:
    """Run a command to its end and return its stdout. Raises SyncStepError."""
    what = f"{on}: {os.path.basename(argv[0])}"  # noqa: PTH119, a name, not a path of this machine
    out = bytearray()

    def take(piece: bytes) -> None:
        out.extend(piece)
        if len(out) > _OUTPUT:
            raise SyncStepError(f"{what}: printed more than {_OUTPUT >> 20} MiB")

    try:
        code, err = follow(what, on.argv(argv, limit), limit + (15 if on.target else 0), take, stdin.encode())
    except _LateError:
        raise SyncStepError(f"{what}: not done within {limit:.0f} s") from None
    if code == 255 and on.target:
        raise SyncStepError(f"{on}: cannot reach it: {last_line(err) or 'ssh: exit 255'}")
    if code == 124 and on.target:
        raise SyncStepError(f"{what}: not done within {limit:.0f} s")
    if code:
        raise SyncStepError(f"{what}: exit {code}: {last_line(err) or last_line(bytes(out)) or 'no message'}")
    return out.decode(errors="replace")


def remote(on: Host, verb: str, path: str, *arguments: str) -> dict[str, str]:
    """Run one verb of remote.sh on the receiving server; its output as key and value. Raises SyncStepError."""
    script = resources.files("check_failover.sync").joinpath("remote.sh").read_text("utf-8")
    try:
        limit = _LIMITS.get(verb, 60.0)  # most only rename
        out = run(on, ["/bin/sh", "-s", "--", verb, path, *arguments], limit, script)
    except SyncStepError as error:
        raise SyncStepError(str(error).replace(": sh: exit 1:", f": {verb} {path}:")) from None
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in out.splitlines() if " " in line}


def start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a program in its own process group; it ends when this process ends. Raises SyncStepError."""
    if Path(_SETPRIV).exists():
        argv = [_SETPRIV, "--pdeathsig", "TERM", "--", *argv]
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # closing a buffered pipe would wait for its reader
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise SyncStepError(f"{argv[0]}: {error.strerror}: is it installed?") from None


def pipe(end: IO[bytes] | None) -> IO[bytes]:
    """One of the three pipes that ``start`` created."""
    if end is None:
        raise ValueError("no such pipe")
    return end


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process and its children when the block ends, also by an exception."""
    try:
        yield
    finally:
        if process.poll() is None:
            kill(process)
        for end in (process.stdin, process.stdout, process.stderr):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the process group (rsync keeps its partial file then), SIGKILL after two seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        end = time.monotonic() + 2.0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)  # its children may outlive it
                time.sleep(0.02)
            continue
        process.poll()
        return


class _LateError(SyncStepError):
    """A program did not end in time."""


def follow(
    what: str, argv: Sequence[str], limit: float, take: Callable[[bytes], None], stdin: bytes = b""
) -> tuple[int, str]:
    """Run a program to its end; ``take`` gets its stdout piece by piece. Returns exit code and stderr.

    Raises SyncStepError when it takes longer than ``limit`` seconds or prints too much to stderr.
    """
    process = start(argv)
    errors = bytearray()
    until = time.monotonic() + limit
    with ended(process), selectors.DefaultSelector() as selector:
        for end in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe(end).fileno(), False)
            selector.register(pipe(end), selectors.EVENT_WRITE if end is process.stdin else selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < until:
            if process.poll() is not None:
                until = min(until, time.monotonic() + _GRACE)
            for key, _ in selector.select(0.2):
                if key.fileobj is process.stdin:
                    stdin = _fed(key.fd, stdin)
                    if stdin:
                        continue
                elif piece := os.read(key.fd, 65536):
                    (take if key.fileobj is process.stdout else errors.extend)(piece)
                    if len(errors) > _OUTPUT:
                        raise SyncStepError(f"{what}: printed more than {_OUTPUT >> 20} MiB of errors")
                    continue
                selector.unregister(key.fileobj)
                if key.fileobj is process.stdin:
                    pipe(process.stdin).close()
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _LateError(f"{what}: not done within {limit:.0f} s") from None
    return process.returncode, errors.decode(errors="replace")


def _fed(fd: int, data: bytes) -> bytes:
    """Write to a program's stdin what fits; returns what is left, nothing if the program does not read it."""
    try:
        return data[os.write(fd, data) :] if data else b""
    except BrokenPipeError:
        return b""


def stream(what: str, argv: Sequence[str], limit: float, line: Callable[[str], None]) -> tuple[int, str]:
    """Run a program and call ``line`` for each line of its stdout (``\\r`` ends a line too).

    Returns exit code and stderr. Raises SyncStepError as ``follow`` does, and for a line without an end.
    """
    buffer = b""

    def take(piece: bytes) -> None:
        nonlocal buffer
        *lines, buffer = (buffer + piece).replace(b"\r", b"\n").split(b"\n")
        if len(buffer) > _OUTPUT:
            raise SyncStepError(f"{what}: printed a line of more than {_OUTPUT >> 20} MiB")
        for item in lines:
            line(item.decode(errors="replace"))

    return follow(what, argv, limit, take)


def exchange(process: subprocess.Popen[bytes], request: bytes, limit: float) -> bytes:
    """Send a line to a program and return the line that it answers; empty if none came within ``limit`` seconds."""
    out, answer, until = pipe(process.stdout).fileno(), b"", time.monotonic() + limit
    with contextlib.suppress(OSError), selectors.DefaultSelector() as selector:
        os.set_blocking(out, False)
        selector.register(out, selectors.EVENT_READ)
        while request:
            request = request[os.write(pipe(process.stdin).fileno(), request) :]
        while not answer.endswith(b"\n") and len(answer) <= _OUTPUT:
            if not selector.select(max(0.0, until - time.monotonic())) or not (piece := os.read(out, 65536)):
                return b""
            answer += piece
        return answer
    return b""


def complaint(process: subprocess.Popen[bytes]) -> str:
    """The last line that a program wrote to stderr so far."""
    fd = pipe(process.stderr).fileno()
    os.set_blocking(fd, False)
    with contextlib.suppress(OSError):
        return last_line(os.read(fd, 65536))
    return ""


def last_line(text: bytes | str) -> str:
    """The last line that is not blank, cleaned for a result's text."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
    lines = [line.strip() for line in decoded.splitlines() if line.strip()]
    return clean(lines[-1]) if lines else ""


def clean(text: str) -> str:
    """The text without control characters and ``|``, at most 200 characters."""
    return "".join(c if c.isprintable() and c != "|" else " " for c in text)[:200]
