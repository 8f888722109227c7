"""A daemon's messages to the service manager: readiness (sd_notify(3)) and the log on stderr.

In systemd's journal each line carries its priority (sd-daemon(3)), so that ``journalctl -p warning`` shows refusals and
failures; the journal adds time and program. Elsewhere each line has time, program and level.
"""

import logging
import os
import socket
import sys
import time
from typing import NoReturn

# sd-daemon(3)
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def notify(state: str) -> None:
    """Send e.g. ``READY=1``; does nothing if systemd does not expect it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(state.encode())


def alive(status: str) -> None:
    """Tell systemd's watchdog that the caller's loop turned, and ``systemctl status`` how things stand."""
    notify(f"WATCHDOG=1\nSTATUS={' '.join(status.split())[:200]}")


def reloading(ready: str) -> None:
    """A reload began (sd_notify(3)); ``ready`` is the status when it is over: call ``notify`` with READY=1 then."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS={ready}")


def log_to_stderr(program: str, *, debug: bool = False) -> None:
    """Log to stderr from now on. ``debug`` includes our own debug messages, not those of the libraries."""
    handler = logging.StreamHandler(sys.stderr)
    form = f"%(asctime)s.%(msecs)03d {program}: %(levelname)s: %(message)s"
    handler.setFormatter(_Journal() if _in_journal() else logging.Formatter(form, datefmt="%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if debug:
        for name in (program, "check_failover"):
            logging.getLogger(name).setLevel(logging.DEBUG)


def fail(program: str, error: Exception) -> NoReturn:
    """End with exit code 1 and one line on stderr."""
    sys.exit(f"<{_PRIORITIES[logging.ERROR]}>{error}" if _in_journal() else f"{program}: {error}")


class _Journal(logging.Formatter):
    """The journal makes an entry of each line, even within a traceback, so each line gets a priority."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, _PRIORITIES[logging.INFO])
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _in_journal() -> bool:
    """Whether stderr is connected to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
