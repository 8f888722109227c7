"""Tests whether a text could be sent: the spool is writable and each gateway answers. Sends nothing."""

from __future__ import annotations

from check_failover.config import Config
from check_failover.sms import GatewayError
from check_failover.sms.flush import sender
from check_failover.sms.spool import SpoolError


def reach(config: Config) -> None:
    """Test spool and gateways with the rights of the calling user. Raises GatewayError."""
    one = sender(config)
    try:
        one.spool.try_writing()
    except SpoolError as error:
        raise GatewayError(f"cannot write into the spool: {error}: is this user in its group?") from None
    for name, gateway in one.ways:
        try:
            gateway.answers()
        except GatewayError as error:
            raise GatewayError(f"{name}: {error}") from None
