"""Many services on one controller: their config, and the daemons that a test or a benchmark starts with it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from check_failover import control
from tests.lab.netns import PRIMARY, ROOT, SERVICE_ADDRESS, STANDBY, House, end, poll, python_argv

PORT = 7001  # of the first service
SERVICE = """
[[service]]
name = "s{number}"
host = "h"
protocol = "tcp"
address = "{address}"
port = {port}
primary = "{primary}"
standby = "{standby}"
[service.check]
type = "tcp"
[service.policy]
hold_down = 0
"""


def blocks(number: int, *, primary: str = PRIMARY, standby: str = STANDBY, first: int = 1) -> str:
    """``number`` services s1, s2 and so on, each with its own port of the service address."""
    return "".join(
        SERVICE.format(number=n, address=SERVICE_ADDRESS, port=PORT + n - 1, primary=primary, standby=standby)
        for n in range(first, first + number)
    )


class Many:
    """A controller with these services; the servers are the caller's."""

    def __init__(self, directory: Path, house: House, services: str, more: str = "") -> None:
        self.directory, self.house, self.config = directory, house, directory / "config.toml"
        for name in ("run", "state"):
            (directory / name).mkdir()
        self.config.write_text(
            f'[controller]\nclient_interface = "cl0"\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
            f'core_user = "nobody"\n[monitoring]\ncommand_file = "{directory}/nagios.cmd"\n{more}{services}'
        )
        self.daemons: dict[str, subprocess.Popen[Any]] = {}

    def socket(self, daemon: str) -> Path:
        return self.directory / "run" / f"{daemon}.sock"

    def start(self, daemon: str) -> float:
        """Start ``redirector`` or ``sniffer`` and wait until it answers; returns the seconds."""
        began, log = time.monotonic(), self.directory / f"{daemon}.log"
        argv = python_argv(f"check_failover.{daemon}.daemon", "--config", str(self.config))
        process = self.daemons[daemon] = self.house.start("controller", *argv, log=log, cwd=ROOT)

        def there() -> bool:
            if process.poll() is not None:
                raise AssertionError(log.read_text())
            try:
                return bool(self.status(daemon))
            except control.ControlError:
                return False

        poll(there, 60.0, f"the {daemon} answers")
        return time.monotonic() - began

    def stop(self) -> None:
        for process in self.daemons.values():
            end(process)

    def status(self, daemon: str = "redirector") -> dict[str, Any]:
        """Each service's status."""
        services: dict[str, Any] = control.ask(self.socket(daemon), {"verb": "status"}, timeout=20.0)["services"]
        return services

    def ctl(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """``failoverctl`` in the controller's namespace."""
        argv = python_argv("check_failover.admin.ctl", *words, "--config", str(self.config))
        return subprocess.run(
            self.house.argv("controller", *argv), capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT
        )
