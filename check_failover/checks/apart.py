"""Probes in a process of their own: for a caller with capabilities, which it keeps from code that reads a peer's data.

``python -m check_failover.checks.apart`` reads what ``ask`` writes and prints a list: whether each server passed.
"""

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from check_failover import capabilities, programs
from check_failover.checks import ProbeError, probe_function
from check_failover.model import CheckSpec, Endpoint

STARTING = 5.0  # seconds more than the probe's own timeout: a plugin's time to start, and ours on a busy machine
AGAIN = 0.15  # seconds between two probes of one server: a process that restarts refuses for a moment


def ask(spec: CheckSpec, servers: Sequence[Endpoint]) -> list[bool]:
    """Probe all servers at once; one that is named again, a moment later. Raises ProbeError.

    The calling thread loses its ambient capabilities.
    """
    capabilities.drop_ambient()
    job = json.dumps([asdict(spec), [(each.address, each.port) for each in servers]]).encode()
    env = programs.ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = programs.run([sys.executable, "-P", "-m", __name__], spec.timeout + STARTING, stdin=job, env=env)
        if done.code == 0:
            return [bool(passed) for passed in json.loads(done.out)]
        raise ProbeError(done.said())
    except (OSError, ValueError, programs.LateError) as error:
        raise ProbeError(str(error)) from None


def main() -> None:
    options, asked = json.load(sys.stdin)
    spec, servers = CheckSpec(**options), [Endpoint(*each) for each in asked]

    def one(number: int) -> bool:
        time.sleep(AGAIN * servers[:number].count(servers[number]))
        return probe_function(spec)(servers[number], spec.options, spec.timeout).passed

    try:
        with ThreadPoolExecutor(len(servers)) as threads:
            print(json.dumps(list(threads.map(one, range(len(servers))))))
    except ProbeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
