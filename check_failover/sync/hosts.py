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
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from check_failover import programs
from check_failover.model import SyncSpec, TooMuchError, clean

SSH = "/usr/bin/ssh"
_SSH_OPTIONS = ["BatchMode=yes", "ConnectTimeout=10", "StrictHostKeyChecking=yes", "ServerAliveInterval=15"]
_SSH_OPTIONS += ["ServerAliveCountMax=4", "ClearAllForwardings=yes", "ForwardAgent=no", "LogLevel=ERROR"]
_SETPRIV = "/usr/bin/setpriv"  # util-linux: the child gets SIGTERM when this process dies, even by SIGKILL
# Seconds for a step of remote.sh: for those that remove or copy data; at the end of a run that was stopped
_LIMITS = {"prepare": 3600.0, "prune": 3600.0, "discard": 3600.0, "keep": 3600.0, "release": 5.0}


class SyncStepError(Exception):
    """A step failed: one line that says what, where and what to do."""


class StoppedError(Exception):
    """SIGTERM or SIGINT came. It is no failure of a step: no step follows that would repair something."""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that a step runs on. ``target`` is ``user@host`` for ssh, ``None`` for this machine."""

    role: str  # primary | standby | controller | relay, for messages
    target: str | None = None
    ssh: tuple[str, ...] = (SSH,)  # no argument has a space, because rsync's ``-e`` splits there

    def __str__(self) -> str:
        return f"{self.role} ({self.target or 'local'})"

    def argv(self, argv: Sequence[str], limit: float) -> list[str]:
        """The local command that runs ``argv`` on this host; a remote host ends it after ``limit`` seconds."""
        if self.target is None:
            return list(argv)
        return [*self.ssh, self.target, shlex.join([*far_end(limit), *argv])]


def host(spec: SyncSpec, role: str) -> Host:
    """The primary, the standby or the controller of a service, and how ssh reaches it."""
    target: str = getattr(spec, role)
    options = [part for option in _SSH_OPTIONS for part in ("-o", option)]
    options += ["-F", spec.ssh_config] if spec.ssh_config else []
    return Host(role, None if target == "local" else target, (SSH, "-a", "-x", *options))


def far_end(limit: float) -> list[str]:
    """The command that ends another one on its machine after ``limit`` seconds (timeout(1): 0 would mean never)."""
    return ["timeout", "-k", "10", str(max(1, math.ceil(limit)))]


def run(on: Host, argv: Sequence[str], limit: float, stdin: str = "") -> str:
    """Run a command to its end and return its stdout. Raises SyncStepError."""
    what = f"{on}: {os.path.basename(argv[0])}"  # noqa: PTH119, a name, not a path of this machine
    done = follow(what, on.argv(argv, limit), limit, stdin=stdin.encode(), more=15 if on.target else 0)
    if done.code == 255 and on.target:
        raise SyncStepError(f"{on}: cannot reach it: {programs.last_line(done.err) or 'ssh: exit 255'}")
    if done.code == 124 and on.target:
        raise SyncStepError(f"{what}: not done within {limit:.0f} s")
    if done.code:
        why = programs.last_line(done.err) or programs.last_line(done.out) or "no message"
        raise SyncStepError(f"{what}: exit {done.code}: {clean(why)}")
    return done.out.decode(errors="replace")


def remote(on: Host, verb: str, path: str, *arguments: str) -> dict[str, str]:
    """Run one verb of remote.sh on the receiving server; its output as key and value. Raises SyncStepError."""
    script = resources.files("check_failover.sync").joinpath("remote.sh").read_text("utf-8")
    try:
        limit = _LIMITS.get(verb, 60.0)  # most only rename
        out = run(on, ["/bin/sh", "-s", "--", verb, path, *arguments], limit, script)
    except SyncStepError as error:
        raise SyncStepError(str(error).replace(": sh: exit 1:", f": {verb} {path}:")) from None
    return dict(line.split(" ", 1) for line in out.splitlines() if " " in line)


def start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a program that ends when this process ends. Raises SyncStepError."""
    try:
        return programs.start(_bound(argv), os.environ | {"LC_ALL": "C"})
    except OSError as error:
        raise SyncStepError(f"{argv[0]}: {error.strerror}: is it installed?") from None


def _bound(argv: Sequence[str]) -> Sequence[str]:
    return [_SETPRIV, "--pdeathsig", "TERM", "--", *argv] if Path(_SETPRIV).exists() else argv


def follow(
    what: str,
    argv: Sequence[str],
    limit: float,
    take: Callable[[bytes], None] | None = None,
    stdin: bytes = b"",
    more: float = 0.0,
) -> programs.Ended:
    """Run a program to its end; ``take`` gets its stdout piece by piece.

    Raises SyncStepError when it takes longer than ``limit`` seconds (and ``more`` for the way) or prints too much.
    """
    end, env, patience = limit + more, os.environ | {"LC_ALL": "C"}, programs.PATIENCE
    try:
        return programs.run(_bound(argv), end, stdin=stdin, env=env, take=take, strict=True, patience=patience)
    except programs.LateError:
        raise SyncStepError(f"{what}: not done within {limit:.0f} s") from None
    except TooMuchError as error:
        raise SyncStepError(f"{what}: {error}") from None
    except OSError as error:
        raise SyncStepError(f"{argv[0]}: {error.strerror}: is it installed?") from None


def stream(what: str, argv: Sequence[str], limit: float, line: Callable[[str], None]) -> programs.Ended:
    """Run a program and call ``line`` for each line of its stdout (``\\r`` ends a line too).

    Raises SyncStepError as ``follow`` does, and for a line without an end.
    """
    buffer = b""

    def take(piece: bytes) -> None:
        nonlocal buffer
        *lines, buffer = (buffer + piece).replace(b"\r", b"\n").split(b"\n")
        if len(buffer) > programs.MAX_OUTPUT:
            raise SyncStepError(f"{what}: printed a line of more than {programs.MAX_OUTPUT >> 20} MiB")
        for item in lines:
            line(item.decode(errors="replace"))

    return follow(what, argv, limit, take)


def exchange(process: subprocess.Popen[bytes], request: bytes, limit: float) -> bytes:
    """Send a line to a program and return the line that it answers; empty if none came within ``limit`` seconds."""
    out, answer, until = programs.pipe(process.stdout).fileno(), b"", time.monotonic() + limit
    with contextlib.suppress(OSError), selectors.DefaultSelector() as selector:
        os.set_blocking(out, False)
        selector.register(out, selectors.EVENT_READ)
        while request:
            request = request[os.write(programs.pipe(process.stdin).fileno(), request) :]
        while not answer.endswith(b"\n") and len(answer) <= programs.MAX_OUTPUT:
            if not selector.select(max(0.0, until - time.monotonic())) or not (piece := os.read(out, 65536)):
                return b""
            answer += piece
        return answer
    return b""
