"""Any Monitoring Plugin as a probe (check type "plugin"): an argument list, run without a shell.

The server's address and port replace ``{address}`` and ``{port}`` in its arguments. Exit codes 0 and 1 pass (a WARNING
server is slow or full and still serves), 2 is a failure. 3, any other code, death by a signal and a plugin that cannot
be run raise ``ProbeError``, because UNKNOWN never moves traffic. A plugin that does not end in time is a failure, since
it waits for the server; it gets ``STARTING`` seconds more, because a program needs time to start. Then the probe kills
its process group. The plugin does not inherit failover-sniffer's capability.

There is no check_failover program for this type: Nagios runs the plugin itself (``admin.objects``).
"""

import time
from collections.abc import Mapping, Sequence
from typing import cast

from check_failover import capabilities, programs
from check_failover.checks import ProbeError
from check_failover.checks.talk import MAX_TEXT, failed
from check_failover.model import Endpoint, Probe, State, clean

STARTING = 0.5  # seconds
MAX_OUTPUT = 8192  # bytes kept; further output is read and discarded
GRACE = 0.05  # seconds in which the output is read that a child of the ended plugin keeps open


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
        done = programs.run(argv, timeout + STARTING, size=MAX_OUTPUT, grace=GRACE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProbeError(f"{argv[0]}: cannot run: {reason}") from None
    except programs.LateError:
        return failed(began, TimeoutError())
    return _judge(argv[0], done.code, done.out, time.monotonic() - began)


def _judge(program: str, code: int, output: bytes, took: float) -> Probe:
    line = output.decode("utf-8", "replace").lstrip().partition("\n")[0].partition("|")[0]
    text = clean(line)[:MAX_TEXT]
    if code in (State.OK, State.WARNING, State.CRITICAL):
        return Probe(code != State.CRITICAL, took, text or f"{State(code).name} without a word")
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    raise ProbeError(f"{program}: {how}" + (f": {text}" if text else ""))
