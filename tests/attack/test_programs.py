"""Programs that print without an end, or run out of time while they print."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from check_failover import programs
from check_failover.model import TooMuchError
from tests.attack import rounds
from tests.attack.servers import peak, reset_peak
from tests.attack.table import measured

MIB = 1 << 20
ENDS = """
import sys, time
from check_failover.checks.plugin import Outcome, deadline, run
from check_failover.model import State
def check(argv):
    deadline(0.05, "server")
    time.sleep(0.05 - 0.002 * (int(sys.argv[1]) % 5))
    return Outcome(State.OK, "x" * 60, (), "y\\n" * 20000)
run(check, [])
"""


@pytest.mark.parametrize("strict", [False, True], ids=["cut", "refused"])
def test_a_program_that_prints_without_an_end(strict: bool) -> None:
    """What failover-sync runs is ended at its limit; of a plugin's output the rest is discarded."""
    before, began = reset_peak(), time.monotonic()
    with pytest.raises(TooMuchError if strict else programs.LateError):
        programs.run(["/usr/bin/yes"], 2.0, strict=strict)
    assert time.monotonic() - began < 5.0
    measured("output", "with", (peak() - before) / MIB, "{:.0f} MiB")
    assert peak() - before < 32 * MIB


def test_the_time_limit_does_not_hit_the_output() -> None:
    """A check ends by its exit code, whether it is late or just in time."""
    ends: dict[int, int] = {}
    for number in range(min(225, rounds(10))):
        argv = [sys.executable, "-c", ENDS, str(number)]
        done = subprocess.run(argv, stdout=subprocess.DEVNULL, check=False)
        ends[done.returncode] = ends.get(done.returncode, 0) + 1
    measured("alarm", "by a signal: 0 of", sum(ends.values()), "{}")
    assert set(ends) <= {0, 2}, ends
