"""SMS Server Tools 3: a file in smsd's outgoing directory ("SMS file format", smstools3 3.1.16 or later).

A file is written under a name that smsd ignores (a leading dot) and then renamed, so smsd never reads half a text. The
file ends without a newline, because smsd would send it. smsd passes status reports to the site's scripts: no receipts.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from check_failover.sms import GatewayError
from check_failover.sms.text import is_gsm

OUTGOING = "/var/spool/sms/outgoing"
PREFIX = "failover-"
STUCK = 120.0  # seconds a text may stay there before smsd counts as dead


class Smstools:
    """Options: ``outgoing``, smsd's directory of that name, writable for this user."""

    receipts = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._outgoing = Path(options.get("outgoing", OUTGOING))

    def send(self, text: str, number: str, receipt_url: str) -> None:
        """Write one file. Raises GatewayError."""
        alphabet, body = ("UTF-8", text.encode()) if is_gsm(text) else ("UCS", text.encode("utf-16-be"))
        data = f"To: {number.lstrip('+')}\nAlphabet: {alphabet}\n\n".encode() + body
        name = f"{PREFIX}{time.time_ns():x}-{os.urandom(4).hex()}"
        half = self._outgoing / f".{name}"
        try:
            with half.open("xb") as file:
                os.fchmod(file.fileno(), 0o660)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            half.rename(self._outgoing / name)
        except OSError as error:
            with contextlib.suppress(OSError):  # where we may not write, we may not even look
                half.unlink()
            raise GatewayError(f"{self._outgoing}: {error.strerror}: smsd's outgoing directory?") from None

    def answers(self) -> str:
        """Check that the directory is writable and smsd empties it. Raises GatewayError."""
        if not os.access(self._outgoing, os.W_OK | os.X_OK):
            raise GatewayError(f"{self._outgoing}: no write permission: check the path and the group")
        try:
            oldest = min((path.stat().st_mtime for path in self._outgoing.glob(f"{PREFIX}*")), default=None)
        except FileNotFoundError:  # smsd took it meanwhile
            oldest = None
        except OSError as error:
            raise GatewayError(f"{self._outgoing}: {error.strerror}") from None
        if oldest is not None and time.time() - oldest > STUCK:
            text = f"{self._outgoing}: a text has waited there for {time.time() - oldest:.0f} s: is smsd running?"
            raise GatewayError(text)
        return f"{self._outgoing} is writable"
