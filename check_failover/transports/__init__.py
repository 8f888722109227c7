"""The transports: ``send(results)`` for each way in which a passive result can reach Nagios or Icinga.

A transport is built from ``[monitoring]`` and has one method. It raises ``TransportError`` when the core did not take
the results, so that the caller (``outbox``) keeps them. A new way is one file, one line in ``TRANSPORTS`` and
its keys in ``config.schema.json`` (``monitoring``).

The transports to a remote core escape newlines. NSCA and NRDP have no field for the time, so ``output`` gives a delayed
result's time in a further line.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from check_failover.model import PassiveResult, later, printable

LATE = 10.0  # seconds of delay from which a result gives its time
SIZE = 3000  # bytes; with escapes it still fits one write to the core's command file (4096)


class TransportError(Exception):
    """The core did not accept a result: one line with the reason. The caller must send it again."""


class Transport(Protocol):
    """One way to the core."""

    def send(self, results: Sequence[PassiveResult]) -> None:
        """Deliver results to the core, in order, at most one for each service.

        Raises TransportError; some results may have arrived nevertheless. Two results of one service would then reach
        the core in the wrong order when they are sent again.
        """


TRANSPORTS: dict[str, Callable[[Mapping[str, Any]], Transport]] = {
    "command_file": later("check_failover.transports.command_file:CommandFile"),
    "nrdp": later("check_failover.transports.nrdp:Nrdp"),
    "nsca": later("check_failover.transports.nsca:Nsca"),
    "icinga2": later("check_failover.transports.icinga2:Icinga2"),
}


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
