"""The second controller of a round with a pair: its own namespace, state, redirector, sniffer and failover-pair.

Clients stay at the first one. The second one's rules carry no traffic; it takes orders, and runs failover-sync with
the same servers. Real failover-pair programs over ssh join the two, until ``split`` ends both.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from check_failover import control
from tests.lab.daemon import Housed
from tests.lab.netns import end, poll, python_argv
from tests.lab.site import ROOT, environment
from tests.lab.synced import SyncedSite

ADDRESSES = {"controller": "198.51.100.1", "other": "198.51.100.2"}
HEARD = 25.0  # seconds: the next attempt of failover-pair, and the redirector's note that the silence is over


class Second:
    """Of one site; ``begin`` and ``end`` frame each round that needs it."""

    def __init__(self, site: SyncedSite, kind: str) -> None:
        self._site, self._kind, self._place = site, kind, site.directory / "other"
        self.config = self._place / "config.toml"
        self._alone = site.config.read_text()
        self._parts: list[Housed] = []
        self._followers: list[subprocess.Popen[Any]] = []
        site.house.add("other", "ot0", f"{ADDRESSES['controller']}/24", f"{ADDRESSES['other']}/24")
        site.house.run(
            "other",
            "/usr/sbin/ip",
            "route",
            "add",
            "default",
            "via",
            ADDRESSES["controller"],
        )
        self._place.mkdir()
        public = " ".join((site.directory / "host.pub").read_text().split()[:2])
        (self._place / "known").write_text("".join(f"{address} {public}\n" for address in ADDRESSES.values()))
        (self._place / "pair_ssh").write_text(
            f"Host *\n IdentityFile {site.directory}/id\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {self._place}/known\n GlobalKnownHostsFile /dev/null\n"
        )
        # not by the first one's connections
        servers = (site.directory / "ssh_config").read_text().replace("%r@%h", "other-%r@%h")
        (self._place / "ssh_config").write_text(servers)
        for who in ADDRESSES:
            self._sshd(who)

    def _sshd(self, who: str) -> None:
        """It gives that controller's state, and nothing else."""
        serve = f"{sys.executable} -m check_failover.pair.daemon --serve --config {self._of(who)}"
        allowed, config = self._place / f"{who}.allowed", self._place / f"{who}.sshd"
        key = (self._site.directory / "id.pub").read_text()
        allowed.write_text(f'command="/usr/bin/env PYTHONPATH={ROOT} {serve}",restrict {key}')
        config.write_text(
            f"ListenAddress {ADDRESSES[who]}\nHostKey {self._site.directory}/host\nPidFile none\nUsePAM no\n"
            f"StrictModes no\nAuthorizedKeysFile {allowed}\nPermitRootLogin yes\nUseDNS no\n"
        )
        self._site.house.start(
            who,
            "/usr/sbin/sshd",
            "-D",
            "-e",
            "-f",
            str(config),
            log=self._place / f"{who}.log",
        )

    def _of(self, who: str) -> Path:
        return self._site.config if who == "controller" else self.config

    # ------------------------------------------------------------ a round

    def configure(self, *, pair: bool) -> None:
        """The first controller's config for the next round, before its redirector starts."""
        self.end()
        self._site.config.write_text(self._with_peer(ADDRESSES["other"]) if pair else self._alone)

    def _with_peer(self, address: str) -> str:
        peer = f'peer = "root@{address}"\npeer_ssh_config = "{self._place}/pair_ssh"\n'
        return self._alone.replace("[controller]\n", f"[controller]\n{peer}", 1)

    def begin(self) -> None:
        """Start it without a memory; it learns all from the first one."""
        directory = self._site.directory
        for name in ("run", "state"):
            shutil.rmtree(self._place / name, ignore_errors=True)
            (self._place / name).mkdir()
        text = self._with_peer(ADDRESSES["controller"]).replace('"cl0"', '"eth0"')
        for path in ("run", "state", "ssh_config"):
            text = text.replace(f'"{directory}/{path}"', f'"{self._place}/{path}"')
        text = text.replace(f'"{self._site.srv}/../ssh_config"', f'"{self._place}/ssh_config"')
        self.config.write_text(text)
        for name in ("redirector", "sniffer"):
            self._parts.append(self._daemon(name))
            self._parts[-1].start()
        self.join()

    def _daemon(self, name: str) -> Housed:
        socket = self._place / "run" / f"{name}.sock"
        argv = python_argv(f"check_failover.{name}.daemon", "--config", str(self.config))
        daemon = Housed(
            self._site.house,
            "other",
            argv,
            self._place / f"{name}.log",
            socket.exists,
            cwd=ROOT,
            env=environment(),
        )
        daemon.limit = 20.0
        return daemon

    def end(self) -> None:
        self.split()
        while self._parts:
            self._parts.pop().stop()

    # ------------------------------------------------------------ events

    def split(self) -> None:
        """Neither hears the other any more."""
        while self._followers:
            end(self._followers.pop())

    def noted(self) -> bool:
        """Whether both redirectors know of the silence."""
        return all(any(one["why"] == "peer-silent" for one in found["reached"]) for found in self._both())

    def join(self) -> None:
        """Until both know the other one's state, and are on the same server."""
        if not self._followers:
            for who in ADDRESSES:
                argv = python_argv("check_failover.pair.daemon", "--config", str(self._of(who)))
                more: dict[str, Any] = {
                    "cwd": ROOT,
                    "env": environment() | {"HOME": "/root"},
                }
                log = self._place / f"pair-{who}.log"
                self._followers.append(self._site.house.start(who, *argv, log=log, **more))
        try:
            poll(self._joined, HEARD, "the two controllers agree", every=0.1)
        except AssertionError as error:
            logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in self._place.glob("*.log"))
            raise AssertionError(f"{error}\n{self._both()}\n{logs}") from None

    def _joined(self) -> bool:
        first, second = self._both()
        silent = any(
            one["why"] == "peer-silent" and one["end"] is None for found in (first, second) for one in found["reached"]
        )
        unsure = first["peer_unsure"] or second["peer_unsure"]
        return not silent and not unsure and first["target"] == second["target"] == first["kernel"] == second["kernel"]

    def _both(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self._site.status(self._kind), self.status()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("redirector", "status")["services"][self._kind]
        return found

    def order(self, verb: str) -> str:
        """It may be refused."""
        for target in ("primary", "standby"):
            with contextlib.suppress(control.ControlError):
                self._ask("sniffer", "probe", target=target)
        try:
            reply = self._ask("redirector", verb, manual=True, by="chaos")
        except control.ControlError as error:
            return str(error)
        return str(reply.get("text") or reply.get("line") or reply)

    def _ask(self, daemon: str, verb: str, **more: object) -> dict[str, Any]:
        request = {"verb": verb, "service": self._kind, **more}
        return control.ask(self._place / "run" / f"{daemon}.sock", request, timeout=20.0)
