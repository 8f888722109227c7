"""Texts for the transports to a remote core: a result's output in the form of a plugin's output.

The transports escape newlines. NSCA and NRDP have no field for the time, so a delayed result gives its time in a
further line.
"""

import time

from check_failover.model import PassiveResult, printable

LATE = 10.0  # seconds of delay from which a result gives its time
SIZE = 3000  # bytes; with escapes it still fits one write to the core's command file (4096)


def output(result: PassiveResult, now: float) -> str:
    """``text|perfdata`` and the further lines, at most ``SIZE`` bytes, no control characters. ``now`` is Unix time."""
    lines = [printable(result.text) + (f"|{printable(result.perfdata)}" if result.perfdata else "")]
    if now - result.at >= LATE:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(result.at))
        lines.append(f"of {at}, kept while the core was away")
    lines += [printable(line) for line in result.details.splitlines()]
    return "\n".join(lines).encode()[:SIZE].decode(errors="ignore")


def name(text: str) -> str:
    """An object name without ``;`` and control characters, which would shift the core's fields."""
    return printable(text).replace(";", ":")
