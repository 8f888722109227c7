"""SMS gateways: each one sends a text to a number.

A new gateway is one file, one line in ``GATEWAYS`` and its keys in ``config.schema.json`` (``gateway`` in ``$defs``).
A gateway is built from ``[sms]`` or ``[sms.second]`` of the config. ``send`` either hands one text to the gateway or
raises ``GatewayError``; the sender (``flush``) keeps that text in the ``spool`` and tries again.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any, Protocol, cast


class GatewayError(Exception):
    """The gateway refused the text: one line. ``permanent``: retrying is useless (for example an invalid number)."""

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


class Gateway(Protocol):
    @property
    def receipts(self) -> bool:
        """Whether this gateway supports delivery receipts."""

    def send(self, text: str, number: str, receipt_url: str) -> None:
        """Hand one text for one number to the gateway. Raises GatewayError.

        The gateway requests ``receipt_url`` on delivery or final failure (``receipts``); empty: no receipt is wanted.
        """

    def answers(self) -> str:
        """Test the gateway without sending a text; returns one line for a person. Raises GatewayError."""


def _made(name: str, options: Mapping[str, Any]) -> Gateway:
    """Imports the module when a gateway is made: requests weighs 20 MiB."""
    return cast("Gateway", resolve_name(f"{__name__}.{name}")(options))


GATEWAYS: dict[str, Callable[[Mapping[str, Any]], Gateway]] = {
    "kannel": partial(_made, "kannel:Kannel"),
    "smstools": partial(_made, "smstools:Smstools"),
    "gammu": partial(_made, "gammu:Gammu"),
}
