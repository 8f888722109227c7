"""Any Monitoring Plugin as a probe (check type "plugin"): an argument list, run without a shell.

The server's address and port replace ``{address}`` and ``{port}`` in its arguments. Exit codes 0 and 1 pass (a WARNING
server is slow or full and still serves), 2 is a failure. 3, any other code, death by a signal and a plugin that cannot
be run raise ``ProbeError``, because UNKNOWN never moves traffic. A plugin that does not end in time is a failure, since
it waits for the server; it gets ``STARTING`` seconds more, because a program needs time to start. Then the probe kills
its process group. The plugin does not inherit failover-sniffer's capability.

There is no check_failover program for this type: Nagios runs the plugin itself (``admin.objects``).
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, cast

from check_failover import capabilities
from check_failover.checks import ProbeError
from check_failover.checks.plugin import clean
from check_failover.checks.talk import MAX_TEXT, failed
from check_failover.model import Endpoint, Probe, State

STARTING = 0.5  # seconds
MAX_OUTPUT = 8192  # bytes kept; further output is read and discarded
LOOK_EVERY = 0.05  # seconds between two checks whether the plugin ended while a child keeps its output open
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def arguments(options: Mapping[str, object], server: Endpoint) -> list[str]:
    """The plugin's argument list for a server."""
    command = cast("Sequence[str]", options["command"])
    return [part.replace("{address}", server.address).replace("{port}", str(server.port)) for part in command]


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: command (list of strings, the first an absolute path)."""
    began = time.monotonic()
    argv = arguments(options, server)
    capabilities.drop_ambient()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProbeError(f"{argv[0]}: cannot run: {reason}") from None
    output = bytearray()
    try:
        code = _run(process, output, began + timeout + STARTING)
    finally:
        _end(process)
    if code is None:
        return failed(began, TimeoutError())
    return _judge(argv[0], code, bytes(output), time.monotonic() - began)


def _run(process: subprocess.Popen[bytes], output: bytearray, end: float) -> int | None:
    """Read its output and wait for its exit code; None when the time is over."""
    reader = threading.Thread(target=_read, args=(process.stdout, output), name="plugin", daemon=True)
    reader.start()
    while process.poll() is None:
        remaining = end - time.monotonic()
        if remaining <= 0:
            return None
        reader.join(min(LOOK_EVERY, remaining))
        if not reader.is_alive():  # the output is closed, so the plugin is about to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(max(0.0, end - time.monotonic()))
    reader.join(LOOK_EVERY)
    return process.returncode


def _read(stream: IO[bytes] | None, output: bytearray) -> None:
    if stream is None:
        return
    with stream, contextlib.suppress(OSError):
        while chunk := os.read(stream.fileno(), 4096):
            output += chunk[: MAX_OUTPUT - len(output)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the rest of its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _judge(program: str, code: int, output: bytes, took: float) -> Probe:
    line = output.decode("utf-8", "replace").lstrip().partition("\n")[0].partition("|")[0]
    text = clean(line)[:MAX_TEXT]
    if code in (State.OK, State.WARNING, State.CRITICAL):
        return Probe(code != State.CRITICAL, took, text or f"{State(code).name} without a word")
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    raise ProbeError(f"{program}: {how}" + (f": {text}" if text else ""))
