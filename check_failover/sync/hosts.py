"""Runs a step on this machine or over ssh, with a time limit; a failure is one line of text.

ssh always passes one string to a shell on the remote host. ``shlex`` quotes each argument for that shell, so a command
is the same argument list on both machines. Keys, ports and known hosts belong into ``ssh_config``. ssh refuses unknown
hosts and never prompts (ssh_config(5): StrictHostKeyChecking, BatchMode).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
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
_SHORT = 60.0  # seconds for a step of remote.sh that only renames
_LONG = 3600.0  # seconds for a step that removes old copies


class SyncStepError(Exception):
    """A step failed: one line that says what, where and what to do."""


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
        far = ["timeout", "-k", "10", f"{limit:.0f}", *argv]  # without our ssh nothing else would end it
        return [*self.ssh, self.target, shlex.join(far)]


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


def run(on: Host, argv: Sequence[str], limit: float, stdin: str = "") -> str:
    """Run a command to its end and return its stdout. Raises SyncStepError."""
    process = start(on.argv(argv, limit))
    what = f"{on}: {os.path.basename(argv[0])}"  # noqa: PTH119, a name, not a path of this machine
    with ended(process):
        try:
            out, err = process.communicate(stdin.encode(), timeout=limit + (15 if on.target else 0))
        except subprocess.TimeoutExpired:
            raise SyncStepError(f"{what}: not done within {limit:.0f} s") from None
    if process.returncode == 255 and on.target:
        raise SyncStepError(f"{on}: cannot reach it: {last_line(err) or 'ssh: exit 255'}")
    if process.returncode == 124 and on.target:
        raise SyncStepError(f"{what}: not done within {limit:.0f} s")
    if process.returncode:
        raise SyncStepError(f"{what}: exit {process.returncode}: {last_line(err) or last_line(out) or 'no message'}")
    return out.decode(errors="replace")


def remote(on: Host, verb: str, path: str, *arguments: str) -> dict[str, str]:
    """Run one verb of remote.sh on the receiving server; its output as key and value. Raises SyncStepError."""
    script = resources.files("check_failover.sync").joinpath("remote.sh").read_text("utf-8")
    try:
        limit = _LONG if verb in ("prepare", "prune", "discard") else _SHORT
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
            return


def stream(argv: Sequence[str], limit: float, line: Callable[[str], None]) -> tuple[int, str]:
    """Run a program and call ``line`` for each line of its stdout (``\\r`` ends a line too).

    Returns exit code and stderr. Raises SyncStepError when the program takes longer than ``limit`` seconds.
    """
    process = start(argv)
    errors: list[bytes] = []
    late = threading.Event()

    def stop() -> None:
        late.set()
        kill(process)

    timer = threading.Timer(limit, stop)
    with ended(process):
        pipe(process.stdin).close()
        out, err = pipe(process.stdout).fileno(), pipe(process.stderr)
        reader = threading.Thread(target=lambda: errors.append(err.read()), daemon=True)
        reader.start()
        timer.start()
        try:
            buffer = b""
            while chunk := os.read(out, 65536):
                *lines, buffer = (buffer + chunk).replace(b"\r", b"\n").split(b"\n")
                for item in lines:
                    line(item.decode(errors="replace"))
            process.wait()
            reader.join(5.0)
        finally:
            timer.cancel()
    if late.is_set():
        raise SyncStepError(f"{argv[0]}: not done within {limit:.0f} s")
    return process.returncode, b"".join(errors).decode(errors="replace")


def last_line(text: bytes | str) -> str:
    """The last line that is not blank, cleaned for a result's text."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
    lines = [line.strip() for line in decoded.splitlines() if line.strip()]
    return clean(lines[-1]) if lines else ""


def clean(text: str) -> str:
    """The text without control characters and ``|``, at most 200 characters."""
    return "".join(c if c.isprintable() and c != "|" else " " for c in text)[:200]
