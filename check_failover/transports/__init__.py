"""The transports: ``send(results)`` for each way in which a passive result can reach Nagios or Icinga.

A transport is built from ``[monitoring]`` and has one method. It raises ``TransportError`` when the core did not take
the results, so that the caller (``outbox``) keeps them. A new way is one file, one line in ``TRANSPORTS`` and
its keys in ``config.schema.json`` (``monitoring``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from check_failover.model import PassiveResult, later


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
