"""A private Kannel: bearerbox, smsbox and the phone network (fakesmsc) on loopback ports of their own.

    with Kannel(directory) as kannel:
        ... kannel.url, kannel.username, kannel.password_file go into [sms] of a config ...
        kannel.received()  # [("+491701234567", "ldap: primary -> standby ...")]

``argv_prefix`` puts the three programs into a network namespace (``House.argv("controller")``); whether they are ready
is then read from /proc/PID/net/tcp, which shows the namespace of that process. Ends only what it started.
"""

from __future__ import annotations

import re
import socket
import subprocess
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.daemon import Daemon
from tests.lab.netns import end, poll, spawn

BEARERBOX, SMSBOX, FAKESMSC = "/usr/sbin/bearerbox", "/usr/sbin/smsbox", "/usr/lib/kannel/test/fakesmsc"
LISTEN, ESTABLISHED = "0A", "01"  # states in proc(5) net/tcp

CONFIG = """\
group = core
admin-port = {admin}
admin-interface = 127.0.0.1
admin-password = {password}
smsbox-port = {box}
smsbox-interface = 127.0.0.1
log-file = {directory}/bearerbox.log
log-level = 1
box-deny-ip = "*.*.*.*"
box-allow-ip = "127.0.0.1"
dlr-storage = internal
store-type = file
store-location = {directory}/store

group = smsc
smsc = fake
smsc-id = fake
port = {phones}
connect-allow-ip = 127.0.0.1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}
sendsms-interface = {listen}
log-file = {directory}/smsbox.log
log-level = 1
http-request-retry = 3
http-queue-delay = 1

group = sendsms-user
username = {username}
password = {password}
max-messages = {parts}
concatenation = true

group = sms-service
keyword = default
max-messages = 0
text = ""
"""


class Kannel(Daemon):
    """bearerbox + smsbox + fakesmsc. ``stop`` and ``start`` may alternate; what phones received stays known."""

    def __init__(
        self, directory: Path, argv_prefix: Sequence[str] = (), parts: int = 1, listen: str = "127.0.0.1"
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.username = directory, "nagios"
        self._prefix, self._processes = tuple(argv_prefix), dict[str, subprocess.Popen[Any]]()
        self._ports = dict(zip(("admin", "box", "phones", "sendsms"), _free_ports(4), strict=True))
        self.url = f"http://{listen}:{self._ports['sendsms']}/cgi-bin/sendsms"
        self.status_url = f"http://127.0.0.1:{self._ports['admin']}/status.xml?password=s3cret"
        self.password_file = directory / "kannel.password"
        self.password_file.write_text("s3cret\n")
        self._config = directory / "kannel.conf"
        self._config.write_text(
            CONFIG.format(
                **self._ports,
                directory=directory,
                username=self.username,
                password="s3cret",
                parts=parts,
                listen=listen,
            )
        )

    def start(self) -> None:
        """Start all three and wait until a text would reach a phone."""
        self._run("bearerbox", BEARERBOX, str(self._config))
        self._wait("bearerbox", LISTEN, "box")
        self._wait("bearerbox", LISTEN, "phones")
        self._run("smsbox", SMSBOX, str(self._config))
        self._wait("smsbox", LISTEN, "sendsms")
        self.network_up()

    def stop(self) -> None:
        """End all three: the gateway is gone, connections to its port are refused."""
        for process in reversed(self._processes.values()):
            end(process)
        self._processes.clear()

    def network_up(self) -> None:
        """Connect the phone network."""
        port = str(self._ports["phones"])
        self._run("fakesmsc", FAKESMSC, "-H", "127.0.0.1", "-r", port, "-m", "0", "1 2 text unused")
        self._wait("fakesmsc", ESTABLISHED, "phones")

    def network_down(self) -> None:
        """Cut the phone network off: Kannel goes on accepting texts (HTTP 202) but delivers none."""
        end(self._processes.pop("fakesmsc"))

    def received(self) -> list[tuple[str, str]]:
        """(number, text) of all that phones received, in order; parts of a long text come one by one."""
        log = self.directory / "fakesmsc.out"
        lines = log.read_text("utf-8", "replace") if log.exists() else ""
        got = re.findall(r"Got message \d+: <\S+ (\S+) (text|ucs-2|udh) (.*)>$", lines, re.MULTILINE)
        return [(number, _text(kind, data)) for number, kind, data in got]

    def wait_received(self, count: int, deadline: float = 10.0) -> list[tuple[str, str]]:
        """What phones received, as soon as there are ``count`` texts."""
        return poll(lambda: len(got := self.received()) >= count and got, deadline, f"{count} texts received")

    def _run(self, name: str, *argv: str) -> None:
        log = self.directory / f"{name}.out"
        self._processes[name] = spawn([*self._prefix, *argv], log, cwd=self.directory)

    def _wait(self, name: str, state: str, port: str) -> None:
        process = self._processes[name]

        def there() -> bool:
            if process.poll() is not None:
                tail = (self.directory / f"{name}.out").read_text("utf-8", "replace")[-2000:]
                raise AssertionError(f"{name} ended at its start, exit {process.returncode}:\n{tail}")
            return _has_socket(process.pid, state, self._ports[port])

        poll(there, 10.0, f"{name} has its {port} port")


def _text(kind: str, data: str) -> str:
    if kind == "text":
        return data
    if kind == "ucs-2":
        return urllib.parse.unquote_to_bytes(data.replace("+", " ")).decode("utf-16-be")
    return data  # a part of a long text: header and text, URL-encoded


def _has_socket(pid: int, state: str, port: int) -> bool:
    """Whether that process's network namespace has a TCP socket in ``state`` with ``port`` on either end."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    ends = [(fields[3], fields[1 if state == LISTEN else 2].rpartition(":")[2]) for fields in map(str.split, lines)]
    return (state, f"{port:04X}") in ends


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
