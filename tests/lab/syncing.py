"""A service whose data failover-sync keeps in step, for tests: two servers behind ssh and a redirector's socket.

The socket is the real ``Server``; what it answers is set by the test (``target``, ``since``, ``verdict``, ``reached``;
without ``reached`` the target serves since ``since``, and the other server did so before).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import syncstate
from check_failover.listening import Server
from check_failover.syncstate import Refusal, SyncState
from tests.lab.sshd import Servers

CONFIG = """
[controller]
run_dir = "{run}"
state_dir = "{state}"
[monitoring]
transport = "command_file"
command_file = "{run}/nagios.cmd"
[[service]]
name = "web"
host = "www.example.org"
protocol = "tcp"
address = "192.0.2.10"
port = 80
primary = "127.0.0.1:{port}"
standby = "127.0.0.2:{port}"
[service.check]
{check}
[service.policy]
max_sync_age = 1800
[service.sync]
primary = "{primary}"
standby = "{standby}"
ssh_config = "{ssh}"
from = "{source}"
{more}
"""


class Syncing:
    """One service "web". ``primary`` and ``standby`` are its data directories as the test sees them."""

    def __init__(self, place: Path, servers: Servers, more: str = "", local: str | None = None) -> None:
        self.place, self.servers = place, servers
        self.run_dir, self.state_dir = place / "run", place / "state"
        self.primary, self.standby = servers.place / "primary" / "data", servers.place / "standby" / "data"
        self.config = place / "config.toml"
        self.target, self.since = "primary", None
        self.verdict, self.pending = "ok", None
        self.reached: list[dict[str, Any]] | None = None
        self.unsure = False
        self.decided: list[dict[str, Any]] = []
        for path in (self.run_dir, self.state_dir):
            path.mkdir()
        self.configure(more)
        self._sockets = [
            Server(self.run_dir / f"{name}.sock", frozenset({"status", "decided"}), answer, lambda *_: None)
            for name, answer in (("redirector", self._redirector), ("sniffer", self._sniffer))
        ]
        for server in self._sockets:
            server.start()

    def configure(self, more: str = "", **changes: str) -> None:
        """Write the config anew, with more keys for ``[service.sync]``."""
        values = {
            "run": str(self.run_dir),
            "state": str(self.state_dir),
            "port": "9",
            "check": 'type = "tcp"',
            "source": f"{self.servers.srv}/data",
            "ssh": str(self.servers.ssh_config),
            **self.servers.targets,
            "more": more,
        }
        self.config.write_text(CONFIG.format(**(values | changes)))

    def close(self) -> None:
        """End the sockets."""
        for server in self._sockets:
            server.close()

    def _redirector(self, message: Any, _peer: Any) -> dict[str, Any]:
        if message["verb"] == "decided":
            self.decided.append(message)
            return {"id": "1"}
        web: dict[str, Any] = {
            "target": self.target,
            "kernel": self.target,
            "since": self.since,
            "pending": self.pending,
            "peer_unsure": self.unsure,
        }
        web |= {} if self.reached is None else {"reached": self.reached}
        return {"services": {"web": web}}

    def redirector_away(self) -> None:
        """Nothing answers at the redirector's socket any more."""
        self._sockets[0].close()

    def _sniffer(self, _message: Any, _peer: Any) -> dict[str, Any]:
        return {"services": {"web": {"target": self.target, "verdict": self.verdict, "primary": {"text": "no reply"}}}}

    def argv(self, *options: str) -> list[str]:
        """The command line of a run."""
        return [sys.executable, "-m", "check_failover.sync.run", "--config", str(self.config), *options, "web"]

    def sync(self, *options: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run failover-sync to its end."""
        return subprocess.run(self.argv(*options), text=True, capture_output=True, timeout=timeout, check=False)

    def check(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run check_failover_sync as Nagios does."""
        program = [sys.executable, "-m", "check_failover.checks.entry", "sync"]
        argv = [*program, "--config", str(self.config), "--service", "web"]
        return subprocess.run([*argv, *options], text=True, capture_output=True, timeout=60, check=False)

    def state(self) -> SyncState:
        """The record."""
        return syncstate.read(self.state_dir, "web")

    def versions(self, who: str) -> list[str]:
        """The copies and leftovers on a server."""
        return sorted(p.name for p in (self.servers.place / who / "data.sync").glob("*"))


def fill(directory: Path, files: dict[str, str]) -> None:
    """Write files, making directories as needed."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(directory: Path) -> dict[str, str]:
    """Every file's relative path with its digest, read through one directory handle, as one reader would."""
    found: dict[str, str] = {}
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for at, _, files, fd in os.fwalk(".", dir_fd=root):
            for name in files:
                handle = os.open(name, os.O_RDONLY, dir_fd=fd)
                with os.fdopen(handle, "rb") as file:
                    found[os.path.normpath(f"{at}/{name}")] = hashlib.sha256(file.read()).hexdigest()
    finally:
        os.close(root)
    return found


def as_json(text: str) -> Any:
    """Parsed, with the text in the error when it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        raise AssertionError(f"not JSON: {text!r}") from None


# In memory: each run flushes the file system that it switches on, and others may be writing to the disk.
SHM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FILES = {f"d{i % 3}/f{i}": f"file {i}\n" * i for i in range(30)}


@pytest.fixture(scope="module", name="servers")
def servers_fixture() -> Iterator[Servers]:
    """Both servers' sshd, for all tests of a file. Tests import the fixtures from here."""
    with tempfile.TemporaryDirectory(dir=SHM, prefix="cfs") as place, Servers(Path(place)) as made:
        yield made


@pytest.fixture(name="syncing")
def syncing_fixture(servers: Servers, tmp_path: Path) -> Iterator[Syncing]:
    """A service whose primary has ``FILES`` and whose standby has nothing."""
    for who in ("primary", "standby"):
        subprocess.run(["/bin/rm", "-rf", *map(str, (servers.place / who).glob("*"))], check=True)
    made = Syncing(tmp_path, servers)
    fill(made.primary, FILES)
    yield made
    made.close()


def ok(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a run that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("OK: "), done.stdout
    assert done.stdout.count("\n") == 1, done.stdout
    return done.stdout


def refused(syncing: Syncing, done: subprocess.CompletedProcess[str], reason: Refusal, text: str) -> None:
    """That run did nothing, for that reason, and the record says so."""
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert text in done.stdout, done.stdout
    assert done.stdout.count("\n") == 1, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    problem = syncing.state().problem
    assert problem is not None, done.stdout
    assert problem.reason is reason, problem


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
