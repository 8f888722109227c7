"""Gammu's SMS daemon, through gammu-smsd-inject(1): whatever storage smsd uses, the program knows where it is.

The text goes in by stdin, so that it stands in no process list. smsd keeps its receipts in its own storage: none here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from check_failover.sms import GatewayError
from check_failover.sms.text import is_gsm

PROGRAM, CONFIG = "/usr/bin/gammu-smsd-inject", "/etc/gammu-smsdrc"
TIMEOUT = 20.0  # seconds


class Gammu:
    """Options: ``config``, gammu-smsdrc(5), which we must be allowed to read; ``program``."""

    receipts = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._program, self._config = str(options.get("program", PROGRAM)), str(options.get("config", CONFIG))

    def send(self, text: str, number: str, receipt_url: str) -> None:
        """One run of the program. Raises GatewayError."""
        argv = [self._program, "--config", self._config, "TEXT", number]
        if not is_gsm(text):
            argv.append("-unicode")
        try:
            done = subprocess.run(
                argv,
                input=text.encode(),
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
                env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
            )
        except subprocess.TimeoutExpired:
            raise GatewayError(f"{self._program}: not done within {TIMEOUT:.0f} s") from None
        except OSError as error:
            raise GatewayError(f"{self._program}: cannot run: {error.strerror}") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "no reason given")
            raise GatewayError(f"{self._program}: exit code {done.returncode}: {last[:200]}")

    def answers(self) -> str:
        """Whether program and config are there. Raises GatewayError."""
        try:
            Path(self._config).read_bytes()
            subprocess.run([self._program, "--version"], capture_output=True, timeout=TIMEOUT, check=True)
        except OSError as error:
            raise GatewayError(f"{error.filename}: {error.strerror}") from None
        except subprocess.SubprocessError as error:
            raise GatewayError(f"{self._program}: {error}") from None
        return f"{self._program} runs"
