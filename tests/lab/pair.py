"""Two controllers that share the service address, with real keepalived, sshd and our three daemons on each::

    client 192.0.2.7 ──┐            ┌── left  192.0.2.2, 10.0.0.2 ──┐            ┌── primary 10.0.0.11
                       ├── switch ──┤                               ├── switch ──┤
                       ┘            └── right 192.0.2.3, 10.0.0.3 ──┘            └── standby 10.0.0.12

The active controller has 192.0.2.10 towards the clients and 10.0.0.1, the servers' gateway.
No core runs: the sniffer then orders the redirector itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from check_failover import control
from tests.lab.echo import Echo
from tests.lab.netns import CLIENT, PRIMARY, SERVICE_ADDRESS, STANDBY, House, poll, python_argv
from tests.lab.site import environment

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "nagios-conf" / "keepalived"
KEEPALIVED = "/usr/sbin/keepalived"
ADDRESSES = {"left": "2", "right": "3"}
PRIORITY = {"left": 150, "right": 100}
PORT = 7001

CONFIG = """\
[controller]
client_interface = "cl0"
run_dir = "{directory}/run"
state_dir = "{directory}/state"
peer = "root@10.0.0.{other}"
peer_ssh_config = "{place}/ssh_config"
[monitoring]
command_file = "{directory}/nagios.cmd"
[[service]]
name = "echo"
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
fail_back_passes = 1
fail_back_seconds = 0
"""


class PairHouse(House):
    """The namespaces and their wires."""

    names = ("client", "left", "right", "primary", "standby", "switch")

    def _build(self) -> None:
        self._namespaces()
        for bridge, ends in (("clients", ("client", "left", "right")), ("servers", ("left", "right", *SERVERS))):
            self._ip("switch", "link", "add", bridge, "type", "bridge")
            self._ip("switch", "link", "set", bridge, "up")
            for who in ends:
                port, link = f"{bridge[0]}-{who}", interface(who, bridge)
                wire = ("type", "veth", "peer", "name", link, "netns", self.name(who))
                self._ip("switch", "link", "add", port, *wire)
                self._ip("switch", "link", "set", port, "master", bridge, "up")
                self._ip(who, "link", "set", link, "up")
        self._address("client", "eth0", f"{CLIENT}/24")
        for who, address in SERVERS.items():
            self._address(who, "eth0", f"{address}/24")
            self._ip(who, "route", "add", "default", "via", "10.0.0.1")
        for who, number in ADDRESSES.items():
            self._address(who, "cl0", f"192.0.2.{number}/24")
            self._address(who, "sv0", f"10.0.0.{number}/24")
            self.run(who, "/usr/sbin/sysctl", "-qw", "net.ipv4.ip_forward=1")


SERVERS = {"primary": PRIMARY, "standby": STANDBY}


def interface(who: str, bridge: str) -> str:
    return {"clients": "cl0", "servers": "sv0"}[bridge] if who in ADDRESSES else "eth0"


class Half:
    """One of the two controllers, as a machine that boots and loses its power."""

    def __init__(self, house: House, place: Path, who: str, *, conntrackd: bool) -> None:
        self.house, self.place, self.who, self.conntrackd = house, place, who, conntrackd
        self.directory = place / who
        self.config = self.directory / "config.toml"
        self.socket = self.directory / "run" / "redirector.sock"
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        (self.directory / "state").mkdir(parents=True)
        other = next(number for name, number in ADDRESSES.items() if name != who)
        self.config.write_text(
            CONFIG.format(
                directory=self.directory, place=place, other=other, address=SERVICE_ADDRESS, port=PORT,
                primary=PRIMARY, standby=STANDBY,
            )
        )  # fmt: skip
        self._template(
            "keepalived.conf",
            ("eth0", "cl0"),
            ("eth1", "sv0"),
            ("priority 150", f"priority {PRIORITY[who]}"),
            ("advert_int 1", "advert_int 0.3"),
            ("/run/check_failover", f"{self.directory}/run"),
            ("192.0.2.10/24", f"{SERVICE_ADDRESS}/24"),
            ("script_user failover-pair check_failover", "script_user root"),
            ("/etc/keepalived/failover-conntrack", str(SHIPPED / "failover-conntrack")),
        )
        self._template(
            "conntrackd.conf",
            ("eth1", "sv0"),
            ("IPv4_address 10.0.0.2\n", f"IPv4_address 10.0.0.{ADDRESSES[who]}\n"),
            ("Destination_Address 10.0.0.3", f"Destination_Address 10.0.0.{other}"),
            ("/var/lock", str(self.directory)),
            ("/var/run", str(self.directory)),
        )
        serve = f"{sys.executable} -m check_failover.pair.daemon --serve --config {self.config}"
        key = (place / "id.pub").read_text()
        allowed = self.directory / "authorized"
        allowed.write_text(f'command="/usr/bin/env PYTHONPATH={ROOT} {serve}",restrict {key}')
        (self.directory / "sshd").write_text(
            f"ListenAddress 10.0.0.{ADDRESSES[who]}\nHostKey {place}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {allowed}\nPermitRootLogin yes\nUseDNS no\n"
        )

    def boot(self) -> None:
        """Start all programs at once, as at a boot; they must wait for one another themselves."""
        run = self.directory / "run"
        run.mkdir(exist_ok=True)
        for left_over in (*run.iterdir(), *self.directory.glob("*.pid"), self.directory / "conntrackd.lock"):
            left_over.unlink(missing_ok=True)
        for link in ("cl0", "sv0"):
            self._ip("link", "set", link, "up")
        if self.conntrackd:
            self._start("conntrackd", "/usr/sbin/conntrackd", "-C", str(self.directory / "conntrackd.conf"))
            poll((self.directory / "conntrackd.ctl").exists, 10.0, f"{self.who}: conntrackd")
        keepalived = [KEEPALIVED, "--dont-fork", "--log-console", "--vrrp", "--use-file", "keepalived.conf"]
        self._start("keepalived", *keepalived, "--pid", "k.pid", "--vrrp_pid", "v.pid")
        self._start("sshd", "/usr/sbin/sshd", "-D", "-e", "-f", str(self.directory / "sshd"))
        for name in ("redirector", "sniffer"):
            self._start(name, *python_argv(f"check_failover.{name}.daemon", "--config", str(self.config)))
            poll((run / f"{name}.sock").exists, 20.0, f"{self.who}: {name}")
        self._start("pair", *python_argv("check_failover.pair.daemon", "--config", str(self.config)))

    def power_off(self) -> None:
        """Cut the power: the machine sends nothing more, and its rules and addresses are gone."""
        for link in ("cl0", "sv0"):
            self._ip("link", "set", link, "down")
        while pids := self.house.pids(self.who):  # again and again: keepalived starts scripts
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.house.run(self.who, "/usr/sbin/nft", "flush", "ruleset")
        for link, address in (("cl0", f"{SERVICE_ADDRESS}/24"), ("sv0", "10.0.0.1/24")):
            self.house.run(self.who, "/usr/sbin/ip", "addr", "del", address, "dev", link, check=False)

    def active(self) -> bool:
        """Whether it has the service address."""
        return f" {SERVICE_ADDRESS}/" in self.house.run(self.who, "/usr/sbin/ip", "-4", "addr", "show", "dev", "cl0")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = control.ask(self.socket, {"verb": "status"}, timeout=10.0)["services"]["echo"]
        return found

    def say(self, verb: str, **more: object) -> dict[str, Any]:
        return control.ask(self.socket, {"verb": verb, "service": "echo", "manual": True, **more}, timeout=20.0)

    def ask_conntrackd(self, option: str) -> str:
        """``-i``: what conntrackd sends, ``-e``: what it got from the other half and has not given to the kernel."""
        return self.house.run(self.who, "/usr/sbin/conntrackd", "-C", str(self.directory / "conntrackd.conf"), option)

    def journal(self) -> list[dict[str, Any]]:
        path = self.directory / "state" / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, name: str = "*") -> str:
        logs = sorted(self.directory.glob(f"{name}.log"))
        return "\n".join(path.read_text("utf-8", "replace")[-5000:] for path in logs)

    def _start(self, name: str, *argv: str) -> None:
        log = self.directory / f"{name}.log"
        config = self.directory / ("conntrackd.conf" if self.conntrackd else "none")
        more = {"HOME": "/root", "CONNTRACKD_CONFIG": str(config)}
        self.processes[name] = self.house.start(self.who, *argv, log=log, cwd=self.directory, env=environment() | more)

    def _template(self, name: str, *changes: tuple[str, str]) -> None:
        """A file that we ship, with the lab's names in it."""
        text = (SHIPPED / name).read_text()
        for ours, theirs in changes:
            assert ours in text, ours
            text = text.replace(ours, theirs)
        (self.directory / name).write_text(text)

    def _ip(self, *argv: str) -> None:
        self.house.run(self.who, "/usr/sbin/ip", *argv)


class Pair:
    """Both halves booted, both servers serving; a context manager. ``conntrackd``: it runs on both."""

    def __init__(self, place: Path, *, conntrackd: bool = False) -> None:
        self.place, self.conntrackd = place, conntrackd
        self.house = PairHouse(f"cfp{os.getpid() % 100000}")
        self.servers: dict[str, Echo] = {}

    def __enter__(self) -> Pair:
        try:
            self.house.__enter__()
            self._keys()
            for who in SERVERS:
                self.serve(who)
            self.left, self.right = (Half(self.house, self.place, who, conntrackd=self.conntrackd) for who in ADDRESSES)
            for half in (self.left, self.right):
                half.boot()
        except BaseException:
            self.house.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.house.close()

    def serve(self, who: str) -> None:
        """Start that server (again)."""
        log = self.place / f"{who}.log"
        log.write_text("")
        self.servers[who] = Echo(self.house, who, "tcp", SERVERS[who], PORT, log)
        self.servers[who].start()

    def _keys(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host", "id"):
            argv = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.place / key)]
            subprocess.run(argv, check=True)
        public = " ".join((self.place / "host.pub").read_text().split()[:2])
        known = "".join(f"10.0.0.{number} {public}\n" for number in ADDRESSES.values())
        (self.place / "known").write_text(known)
        (self.place / "ssh_config").write_text(
            f"Host *\n IdentityFile {self.place}/id\n IdentitiesOnly yes\n UserKnownHostsFile {self.place}/known\n"
            " GlobalKnownHostsFile /dev/null\n"
        )
