"""Who tells people: ``send(text, number)`` for each SMS gateway. A new one is one file and one line in ``GATEWAYS``.

A gateway is built from ``[sms]`` of the config, or ``[sms.second]``. It takes one text for one number and either has it
afterwards or raises ``GatewayError``; whatever it did not take stays in the spool (``spool``) and is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class GatewayError(Exception):
    """The gateway did not take the text: one line. ``permanent``: it never will (a number that is none)."""

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


class Gateway(Protocol):
    @property
    def receipts(self) -> bool:
        """Whether it can tell that a phone got a text."""

    def send(self, text: str, number: str, receipt_url: str) -> None:
        """Hand one text for one number to the gateway. Raises GatewayError.

        ``receipt_url`` is fetched when the phone has it or never will (``receipts``); empty: nobody wants to know.
        """

    def answers(self) -> str:
        """Whether it would take a text now, as far as that can be known without sending one: one line for a person.

        Raises GatewayError.
        """


def _kannel(options: Mapping[str, Any]) -> Gateway:
    from check_failover.sms.kannel import Kannel

    return Kannel(options)


def _smstools(options: Mapping[str, Any]) -> Gateway:
    from check_failover.sms.smstools import Smstools

    return Smstools(options)


def _gammu(options: Mapping[str, Any]) -> Gateway:
    from check_failover.sms.gammu import Gammu

    return Gammu(options)


GATEWAYS: dict[str, Callable[[Mapping[str, Any]], Gateway]] = {
    "kannel": _kannel,
    "smstools": _smstools,
    "gammu": _gammu,
}
