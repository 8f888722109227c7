"""How a daemon talks to whoever runs it: systemd's readiness (sd_notify(3)) and its log on stderr."""

from __future__ import annotations

import logging
import os
import socket
import sys


def notify(state: str) -> None:
    """Send e.g. ``READY=1``; nothing happens where systemd does not ask."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(state.encode())


def log_to_stderr() -> None:
    """Log lines on stderr; with the time, except into the journal, which has its own (systemd.exec(5))."""
    time = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s.%(msecs)03d "
    form = f"{time}%(name)s: %(levelname)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)
