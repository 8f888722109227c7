"""Words for the ways to a core on another machine: a result's output as a plugin would have printed it, and faults.

These escape newlines themselves. NSCA and NRDP have no field for the time, so a result that had to wait says in its
further lines when it was made.
"""

from __future__ import annotations

import time

from check_failover.model import PassiveResult

LATE = 10.0  # seconds after which a result tells its own time
SIZE = 3000  # bytes; with escapes still one write to the core's command file (4096)


def output(result: PassiveResult, now: float) -> str:
    """``text|perfdata`` and the further lines, at most ``SIZE`` bytes, no control characters. ``now`` is Unix time."""
    lines = [_clean(result.text) + (f"|{_clean(result.perfdata)}" if result.perfdata else "")]
    if now - result.at >= LATE:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(result.at))
        lines.append(f"of {at}, kept while the core was away")
    lines += [_clean(line) for line in result.details.splitlines()]
    return "\n".join(lines).encode()[:SIZE].decode(errors="ignore")


def name(text: str) -> str:
    """Fit for an object's name: ``;`` and control characters would shift the fields on the core's side."""
    return _clean(text).replace(";", ":")


def reason(error: Exception) -> str:
    """The innermost reason, in one line: requests wraps it three times."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
