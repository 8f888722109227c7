"""The transports: ``send(results)`` for each way in which a passive result can reach Nagios or Icinga.

A transport is built from ``[monitoring]`` and has one method. It raises ``TransportError`` when the core did not take
the results, so that the caller (``outbox``) keeps them. A new way is one file, one line in ``TRANSPORTS`` and
its keys in ``config.schema.json`` (``monitoring``).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import Any, Protocol, cast

from check_failover.model import PassiveResult


class TransportError(Exception):
    """The core did not accept a result: one line with the reason. The caller must send it again."""


class Transport(Protocol):
    """One way to the core."""

    def send(self, results: Sequence[PassiveResult]) -> None:
        """Deliver results to the core, in order, at most one for each service.

        Raises TransportError; some results may have arrived nevertheless. Two results of one service would then reach
        the core in the wrong order when they are sent again.
        """


def _made(name: str, options: Mapping[str, Any]) -> Transport:
    """Imports the module when a transport is made: requests weighs 20 MiB."""
    return cast("Transport", resolve_name(f"{__name__}.{name}")(options))


TRANSPORTS: dict[str, Callable[[Mapping[str, Any]], Transport]] = {
    "command_file": partial(_made, "command_file:CommandFile"),
    "nrdp": partial(_made, "nrdp:Nrdp"),
    "nsca": partial(_made, "nsca:Nsca"),
    "icinga2": partial(_made, "icinga2:Icinga2"),
}
