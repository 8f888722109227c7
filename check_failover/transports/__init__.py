"""Who tells the core: ``send(results)`` for each way a passive result can reach Nagios or Icinga.

A transport is built from ``[monitoring]`` and has one method. It raises ``TransportError`` when the core did not take
the results, so that the caller (``outbox``) keeps them. A new way is one file, one line in ``TRANSPORTS`` and
its keys in ``config.schema.json`` (``monitoring``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from check_failover.model import PassiveResult


class TransportError(Exception):
    """The core did not take the result: one line that says why. Whatever was not taken must be sent again."""


class Transport(Protocol):
    def send(self, results: Sequence[PassiveResult]) -> None:
        """Hand results to the core, in order. Raises TransportError; some of them may have arrived all the same, so no
        two may be of one service: sent again, they would tell its states in a wrong order."""


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
