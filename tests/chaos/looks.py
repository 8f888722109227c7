"""The looks at a ground: where each service is, by the kernel, the files and the daemons; who is served; what ended."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

from check_failover import control
from tests.chaos.model import SERVICES, World, must_be_served
from tests.lab import kernel
from tests.lab.icinga import Icinga
from tests.lab.load import Load, Request
from tests.lab.nagios import Nagios
from tests.lab.netns import poll, python_argv
from tests.lab.site import Site

NFT = "/usr/sbin/nft"
DAEMONS = ("redirector", "sniffer")
LAST = 3  # so many requests in a row must have been answered well


class Looks:
    """Without any effect on what it looks at. ``loads``: the clients of LDAP, and those of the others."""

    def __init__(self, site: Site, loads: list[Load]) -> None:
        self.site, self.loads = site, loads
        self._read: dict[str, int] = {}  # log -> how much of it was looked at

    @property
    def core(self) -> Nagios | Icinga:
        core = self.site.core
        assert isinstance(core, Nagios | Icinga)
        return core

    def delay(self) -> float:
        """Seconds that the start of an event handler takes now, which is what an order waits for on this machine."""
        began = time.monotonic()
        argv = python_argv("check_failover.handlers.event", "--version")
        self.site.house.run("controller", *argv, check=False)
        return time.monotonic() - began

    def kernel(self) -> dict[str, str | None]:
        """Where the kernel's own rule sends each service, by nft's own words; None: nowhere."""
        found = kernel.targets(self.site.house.run("controller", NFT, *kernel.TABLE, check=False))
        return {name: found.get(name) for name in SERVICES}

    def saved(self, service: str) -> str:
        path = self.site.directory / "state" / "target" / f"{service}.json"
        return str(json.loads(path.read_text())["target"]) if path.exists() else "primary"

    def problems(self, world: World, since: float) -> list[str]:
        """What is not as the world (settled) must have it. Empty: all is well. ``since``: the quiet's beginning."""
        return [*self._targets(world), *self._unserved(world, since), *self.dead(world), *self.tracebacks()]

    def _targets(self, world: World) -> list[str]:
        said: dict[str, Any] = {}
        watched: dict[str, Any] = {}
        try:
            if world.up("redirector"):
                said = control.ask(self.site.socket("redirector"), {"verb": "status"}, timeout=10.0)["services"]
            if world.up("sniffer"):
                watched = control.ask(self.site.socket("sniffer"), {"verb": "status"}, timeout=10.0)["services"]
        except control.ControlError as error:
            return [str(error)]
        found, kernel = [], self.kernel()
        for name in SERVICES:
            saved = self.saved(name)
            if saved not in world.at[name]:
                found.append(f"{name}: is at the {saved}, may be at {'/'.join(sorted(world.at[name]))}")
            if "tampered" not in world.marks and kernel[name] != saved:
                found.append(f"{name}: state file {saved}, kernel {kernel[name]}")
            if said and (said[name]["target"], said[name]["kernel"]) != (saved, saved):
                found.append(f"{name}: state file {saved}, status {said[name]['target']} {said[name]['kernel']}")
            if said and watched and watched[name]["target"] != saved:
                found.append(f"{name}: state file {saved}, sniffer {watched[name]['target']}")
        return found

    def told(self) -> list[str]:
        """``failoverctl status --json`` against the state files; it takes a process, so it is looked at once.

        A daemon that gets no time from a busy machine for two seconds is asked again, as a person does.
        """
        before = [self.saved(name) for name in SERVICES]

        def answer() -> str | None:
            text = self.site.ctl("status", "--json", check=False)
            return text.removeprefix("0: ") if text.startswith("0: ") else None

        said, _ = json.JSONDecoder().raw_decode(poll(answer, 15.0, "failoverctl status answers") or "")
        rows = [(name, said[name]["redirector"]["target"], self.saved(name)) for name in SERVICES]
        return [
            f"{name}: failoverctl says {told}, the state file {now}"
            for was, (name, told, now) in zip(before, rows, strict=True)
            if was == now != told
        ]

    def _unserved(self, world: World, since: float) -> list[str]:
        found = []
        for name in SERVICES:
            if not must_be_served(world, name):
                continue
            last = self.answers(name, since)[-LAST:]
            bad = [request.error for request in last if request.server is None]
            if bad or len(last) < LAST:
                found.append(f"{name}: clients are not served: {bad or 'too few answers'}")
        return found

    def answers(self, service: str, since: float) -> list[Request]:
        """Requests of its clients that began since then; of kept sessions each one's reads count as well."""
        ldap, others = self.loads
        if service == "ldap":
            return ldap.requests(since)
        return [request for request in others.requests(since) if request.kind == service]

    def dead(self, world: World) -> list[str]:
        """Parts that run no more though nobody ended them."""
        found = [f"{name} ended by itself" for name in DAEMONS if world.up(name) and self.site.ended(name)]
        if world.up("core") and not Path(f"/proc/{self.core.pid}/exe").exists():
            found.append("the core ended by itself")
        return found

    def tracebacks(self) -> list[str]:
        """In what any part has written since the last look."""
        found = []
        for path in (*self.site.directory.glob("*.log"), self.core.log, self.core.directory / self.core.out):
            text = path.read_text("utf-8", "replace") if path.exists() else ""
            fresh = text[self._read.get(str(path), 0) :]
            at = fresh.find("Traceback")
            if at >= 0:
                found.append(f"{path.name}: {fresh[at : at + 1500]}")
            else:
                self._read[str(path)] = len(text)
        return found

    def held_by(self, name: str) -> dict[str, int] | None:
        """What a daemon's process has: descriptors, threads, RSS in KiB, and its pid; None: it does not run."""
        with contextlib.suppress(KeyError, OSError):
            pid = self.site.pid(name)
            status = Path(f"/proc/{pid}/status").read_text()
            numbers = {key: int(re.findall(rf"{key}:\s+(\d+)", status)[0]) for key in ("Threads", "VmRSS")}
            return {"pid": pid, "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())), **numbers}
        return None
