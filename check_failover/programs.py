"""Runs programs, without a shell: each one has a time limit, and what is read of its output has a size.

A program has its own process group, which is ended with it. Its children may keep its pipes open after it ended; they
are then read for ``grace`` seconds longer. A program that even SIGKILL does not end (it hangs in the kernel) is left.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from check_failover.model import TooMuchError, clean

MAX_OUTPUT = 1 << 20  # bytes
PATIENCE = 2.0  # seconds from SIGTERM to SIGKILL, and after it
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"}


class LateError(Exception):
    """The program did not end in time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """``code`` is negative for a signal."""

    code: int
    out: bytes
    err: bytes

    def said(self) -> str:
        """The last line of stderr, otherwise of stdout; ``exit code N`` without one. Cleaned."""
        return last_line(self.err) or last_line(self.out) or f"exit code {self.code}"


def last_line(text: bytes) -> str:
    """The last line that is not blank, cleaned."""
    lines = text.decode(errors="replace").split("\n")
    return next((said for line in reversed(lines) if (said := clean(line))), "")


def run(
    argv: Sequence[str],
    limit: float,
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] = ENVIRONMENT,
    size: int = MAX_OUTPUT,
    take: Callable[[bytes], None] | None = None,
    strict: bool = False,
    grace: float = 1.0,
    patience: float = 0.0,
) -> Ended:
    """Run a program to its end; ``take`` gets its stdout piece by piece, otherwise ``size`` bytes of it are kept.

    Further output is discarded; where ``strict``, it raises TooMuchError. Raises LateError after ``limit`` seconds,
    OSError and ValueError for a program that cannot be started. ``patience``: see ``kill``.
    """
    until = time.monotonic() + limit
    out, err, rest = bytearray(), bytearray(), memoryview(stdin)

    def keep(kept: bytearray, piece: bytes) -> None:
        if strict and len(kept) + len(piece) > size:
            raise TooMuchError(f"printed more than {size >> 20} MiB" + (" of errors" if kept is err else ""))
        kept += piece[: max(0, size - len(kept))]

    process = start(argv, env)
    with ended(process, patience), selectors.DefaultSelector() as selector:
        for end in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe(end).fileno(), False)
            selector.register(pipe(end), selectors.EVENT_WRITE if end is process.stdin else selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < until:
            if process.poll() is not None:
                until = min(until, time.monotonic() + grace)
            for key, _ in selector.select(max(0.0, min(0.2, grace, until - time.monotonic()))):
                if key.fileobj is process.stdin:
                    rest = _fed(key.fd, rest)
                    if rest:
                        continue
                elif piece := os.read(key.fd, 65536):
                    if key.fileobj is process.stderr:
                        keep(err, piece)
                    else:
                        take(piece) if take else keep(out, piece)
                    continue
                selector.unregister(key.fileobj)
                if key.fileobj is process.stdin:
                    pipe(process.stdin).close()
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise LateError(f"{argv[0]}: not done within {limit:g} s") from None
    return Ended(process.returncode, bytes(out), bytes(err))


def start(argv: Sequence[str], env: Mapping[str, str] = ENVIRONMENT) -> subprocess.Popen[bytes]:
    """Start a program in its own process group. Raises OSError, ValueError."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # closing a buffered pipe would wait for its reader
        env=env,
        cwd="/",
        start_new_session=True,
    )


def pipe(end: IO[bytes] | None) -> IO[bytes]:
    """One of the three pipes that ``start`` created."""
    if end is None:
        raise ValueError("no such pipe")
    return end


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> Iterator[None]:
    """End the process and its children when the block ends, also by an exception."""
    try:
        yield
    finally:
        if process.poll() is None or not patience:
            kill(process, patience)
        for end in (process.stdin, process.stdout, process.stderr):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()


def kill(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """End the process group: SIGTERM (rsync keeps its partial file then), after ``patience`` seconds SIGKILL."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if patience:
            os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)  # its children may outlive it
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)


def _fed(fd: int, data: memoryview) -> memoryview:
    """Write to a program's stdin what fits; returns what is left, nothing if the program does not read it."""
    try:
        return data[os.write(fd, data) :] if data else data
    except BrokenPipeError:
        return data[:0]
