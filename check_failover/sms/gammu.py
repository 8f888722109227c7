"""Gammu's SMS daemon, through gammu-smsd-inject(1), which works with every storage that smsd supports.

The text is passed by stdin, so that no process list shows it. smsd keeps its receipts in its own storage: no receipts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from check_failover import programs
from check_failover.sms import GatewayError
from check_failover.sms.text import is_gsm

PROGRAM, CONFIG = "/usr/bin/gammu-smsd-inject", "/etc/gammu-smsdrc"
TIMEOUT = 20.0  # seconds


class Gammu:
    """Options: ``config``, a gammu-smsdrc(5) that this user may read; ``program``."""

    receipts = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._program, self._config = str(options.get("program", PROGRAM)), str(options.get("config", CONFIG))

    def send(self, text: str, number: str, receipt_url: str) -> None:
        """Run the program once. Raises GatewayError."""
        argv = [self._program, "--config", self._config, "TEXT", number]
        if not is_gsm(text):
            argv.append("-unicode")
        self._run(argv, text.encode())

    def _run(self, argv: list[str], stdin: bytes = b"") -> None:
        try:
            done = programs.run(argv, TIMEOUT, stdin=stdin, env=programs.ENVIRONMENT | {"LC_ALL": "C.UTF-8"})
        except programs.LateError:
            raise GatewayError(f"{self._program}: not done within {TIMEOUT:.0f} s") from None
        except OSError as error:
            raise GatewayError(f"{self._program}: cannot run: {error.strerror}") from None
        if done.code:
            raise GatewayError(f"{self._program}: exit code {done.code}: {done.said()}")

    def answers(self) -> str:
        """Check that the program runs and the config is readable. Raises GatewayError."""
        try:
            Path(self._config).read_bytes()
        except OSError as error:
            raise GatewayError(f"{error.filename}: {error.strerror}") from None
        self._run([self._program, "--version"])
        return f"{self._program} runs"
