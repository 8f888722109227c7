"""The transports: ``send(results)`` for each way in which a passive result can reach Nagios or Icinga.

A transport is built from ``[monitoring]`` and has one method. It raises ``TransportError`` when the core did not take
the results, so that the caller (``outbox``) keeps them. A new way is one file, one line in ``TRANSPORTS`` and
its keys in ``config.schema.json`` (``monitoring``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

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


def _command_file(options: Mapping[str, Any]) -> Transport:
    from check_failover.transports.command_file import CommandFile

    return CommandFile(options["command_file"])


def _nrdp(options: Mapping[str, Any]) -> Transport:
    from check_failover.transports.nrdp import Nrdp

    return Nrdp(options)


def _nsca(options: Mapping[str, Any]) -> Transport:
    from check_failover.transports.nsca import Nsca

    return Nsca(options)


def _icinga2(options: Mapping[str, Any]) -> Transport:
    from check_failover.transports.icinga2 import Icinga2

    return Icinga2(options)


TRANSPORTS: dict[str, Callable[[Mapping[str, Any]], Transport]] = {
    "command_file": _command_file,
    "nrdp": _nrdp,
    "nsca": _nsca,
    "icinga2": _icinga2,
}
