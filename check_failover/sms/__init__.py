"""Who tells people: ``send(text, number)`` for each SMS gateway. A new one is one file and one line in ``GATEWAYS``.

A gateway is built from ``[sms]`` of the config. It takes one text for one number and either has it afterwards or raises
``GatewayError``; whatever it did not take stays in the spool (``spool``) and is tried again.
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
    def send(self, text: str, number: str, reference: str) -> None:
        """Hand one text for one number to the gateway; ``reference`` names it in a delivery receipt.

        Raises GatewayError.
        """


def _kannel(options: Mapping[str, Any]) -> Gateway:
    from check_failover.sms.kannel import Kannel

    return Kannel(options)


GATEWAYS: dict[str, Callable[[Mapping[str, Any]], Gateway]] = {
    "kannel": _kannel,
}
