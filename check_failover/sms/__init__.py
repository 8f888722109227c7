"""SMS gateways: each one sends a text to a number.

A new gateway is one file, one line in ``GATEWAYS`` and its keys in ``config.schema.json`` (``gateway`` in ``$defs``).
A gateway is built from ``[sms]`` or ``[sms.second]`` of the config. ``send`` either hands one text to the gateway or
raises ``GatewayError``; the sender (``flush``) keeps that text in the ``spool`` and tries again.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from check_failover.model import later


class GatewayError(Exception):
    """The gateway refused the text: one line. ``permanent``: retrying is useless (for example an invalid number)."""

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


class Gateway(Protocol):
    receipts: bool  # whether this gateway supports delivery receipts

    def send(self, text: str, number: str, receipt_url: str) -> None:
        """Hand one text for one number to the gateway. Raises GatewayError.

        The gateway requests ``receipt_url`` on delivery or final failure (``receipts``); empty: no receipt is wanted.
        """

    def answers(self) -> str:
        """Test the gateway without sending a text; returns one line for a person. Raises GatewayError."""


GATEWAYS: dict[str, Callable[[Mapping[str, Any]], Gateway]] = {
    "kannel": later("check_failover.sms.kannel:Kannel"),
    "smstools": later("check_failover.sms.smstools:Smstools"),
    "gammu": later("check_failover.sms.gammu:Gammu"),
}
