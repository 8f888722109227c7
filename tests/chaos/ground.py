"""A site on which a round's events are done for real, and the looks at what became of it.

Three services on two servers: LDAP (slapd, with sessions that stay open), web and DNS (``cheap``); both daemons, a
core, clients that never pause, the state on a small disk of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_failover import control
from tests.chaos.model import SERVICES, Event, World, must_be_served
from tests.component.test_adversity import FLOOD
from tests.lab import faults, kernel
from tests.lab.cheap import PORTS, Asking, Cheap
from tests.lab.icinga import Icinga
from tests.lab.load import Load, Request
from tests.lab.nagios import Nagios
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, freeze
from tests.lab.site import BASE, HOST, SERVERS, Site
from tests.lab.small_disk import SmallDisk

NFT, IP = "/usr/sbin/nft", "/usr/sbin/ip"
DAEMONS = ("redirector", "sniffer")
PORT = {"ldap": 389, **PORTS}
PROTOCOL = {"ldap": "tcp", "web": "tcp", "dns": "udp"}
RATE = 10.0  # requests per second and service
LAST = 3  # so many requests in a row must have been answered well
SERVICE = f"""
[[service]]
name = "{{name}}"
host = "{HOST}"
protocol = "{{protocol}}"
address = "{SERVICE_ADDRESS}"
port = {{port}}
primary = "{PRIMARY}"
standby = "{STANDBY}"
[service.policy]
hold_down = 2
fail_back_passes = 2
fail_back_seconds = 1
damping_half_life = 2
[service.check]
{{check}}
"""
CHECKS = {"web": 'type = "http"\nstatus = [200]', "dns": 'type = "dns"\nname = "www.example.org"'}


class Ground:
    """A context manager. ``core``: nagios | icinga2."""

    def __init__(self, directory: Path, core: str, core_user: str = "nagios") -> None:
        self._directory = directory
        extra = "".join(SERVICE.format(name=n, protocol=PROTOCOL[n], port=PORT[n], check=CHECKS[n]) for n in CHECKS)
        self.site = Site(directory / "site", core=core, kannel=False, extra=extra, policy="damping_half_life = 2")
        self._parts = contextlib.ExitStack()
        self.servers: dict[tuple[str, str], faults.Server] = {}
        self.loads: list[Load] = []
        self._read: dict[str, int] = {}  # log -> how much of it was looked at

    def __enter__(self) -> Ground:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def _build(self) -> None:
        state = self._directory / "site" / "state"
        state.mkdir(parents=True)
        self.disk = SmallDisk(state, "24m")
        self._parts.callback(self.disk.close)
        self._parts.enter_context(self.site)
        site = self.site
        for who, address in SERVERS.items():
            self.servers["ldap", who] = site.slapd[who]
            for kind in PORTS:
                cheap = Cheap(site.house, kind, who, address, site.directory / f"{kind}-{who}.log")
                self.servers[kind, who] = self._parts.enter_context(cheap)
        place = self._directory / "clients"
        ldap = Load(site.house, place, base=BASE, attribute="description", rate=RATE, kept=2)
        self.loads = [ldap, Asking(site.house, place, address=SERVICE_ADDRESS, rate=RATE)]
        for load in self.loads:
            self._parts.enter_context(load)

    # ------------------------------------------------------------ what happens

    def do(self, event: Event) -> None:
        """Do it, to its end."""
        DO[event.kind](self, event)

    def fault(self, event: Event) -> None:
        names = [event.what] if event.what else ["ldap"]  # those of a host do not look at the server
        faults.FAULTS[event.kind](self.site.house, event.server, self.servers[names[0], event.server])

    def heal(self, world: World, event: Event) -> None:
        """Undo what ``world`` has of this service's, or this host's, faults."""
        for kind, what, server in world.faults:
            if (what, server) == (event.what, event.server):
                faults.heal(self.site.house, server, self.servers[what or "ldap", server], kind)

    def core(self) -> Nagios | Icinga:
        core = self.site.core
        assert isinstance(core, Nagios | Icinga)
        return core

    def _core_pids(self) -> list[int]:
        pids = [self.core().pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return pids

    def end(self, event: Event) -> None:
        """SIGKILL ("kill") or SIGTERM ("stop") of a part."""
        if event.what == "core":
            (self.core().kill if event.kind == "kill" else self.core().stop)()
        else:
            (self.site.kill if event.kind == "kill" else self.site.stop)(event.what)

    def start(self, event: Event) -> None:
        if event.what == "core":
            self.core().start()
        else:
            self.site.start(event.what)

    def restart(self, event: Event) -> None:
        self.end(Event("stop", event.what))
        self.start(event)

    def freeze(self, event: Event) -> None:
        if event.what != "core":
            freeze(self.site.pid(event.what))
            return
        for pid in self._core_pids():
            with contextlib.suppress(ProcessLookupError):  # a plugin that ended meanwhile
                os.kill(pid, signal.SIGSTOP)

    def thaw(self, event: Event) -> None:
        for pid in self._core_pids() if event.what == "core" else [self.site.pid(event.what)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def clock(self, seconds: float) -> None:
        """As after a step of the clock while the redirector was away: what it saved lies that far off."""
        self.site.kill("redirector")
        for path in (self.site.directory / "state" / "target").glob("*.json"):
            saved = json.loads(path.read_text())
            if saved["since"] is not None:
                path.write_text(json.dumps({**saved, "since": saved["since"] + seconds}))
        self.site.start("redirector")

    def order(self, *argv: str) -> None:
        """A person's order; it may be refused, and says so in one line."""
        said = self.site.ctl(*argv, check=False)
        assert "Traceback" not in said, said

    def change_element(self, service: str) -> None:
        """Another hand sends a service to where it should not be, with its own nft."""
        verb = "add" if self.kernel()[service] == "primary" else "delete"
        element = f"{{ {PROTOCOL[service]} . {SERVICE_ADDRESS} . {PORT[service]} }}"
        line = f"{verb} element inet check_failover on_standby4 {element}\n"
        self.site.house.run("controller", NFT, "-f", "-", input=line)

    def flood(self) -> None:
        """Fill the namespace's connection table: by datagrams to an address behind the controller that says nothing."""
        house, limit = self.site.house, Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text().strip()
        fixed = ("neigh", "replace", "10.0.0.99", "lladdr", "02:00:00:00:00:99", "dev", "sv0", "nud", "permanent")
        house.run("controller", IP, *fixed)
        house.run("client", sys.executable, "-c", FLOOD, limit, timeout=120)

    def handlers(self, *, on: bool) -> None:
        """Switch event handlers off or on as a person does in the core."""
        core = self.core()
        if isinstance(core, Nagios):
            core.command("ENABLE_EVENT_HANDLERS" if on else "DISABLE_EVENT_HANDLERS")
            return
        for name in SERVICES:
            path = f"/v1/objects/services/{HOST}!{name} primary"
            core.api("POST", path, {"attrs": {"enable_event_handler": on}})

    def downtime(self, service: str, *, begin: bool) -> None:
        """Announce a downtime of "NAME primary" in the core, or end it."""
        core, name, now = self.core(), f"{service} primary", int(time.time())
        if isinstance(core, Nagios):
            command = f"SCHEDULE_SVC_DOWNTIME;{HOST};{name};{now};{now + 3600};1;0;3600;chaos;chaos"
            core.command(command if begin else f"DEL_DOWNTIME_BY_HOST_NAME;{HOST};{name}")
            return
        fields = {"type": "Service", "service": f"{HOST}!{name}"}
        if begin:
            fields |= {"author": "chaos", "comment": "chaos", "start_time": now, "end_time": now + 3600, "fixed": True}
        core.api("POST", f"/v1/actions/{'schedule' if begin else 'remove'}-downtime", fields)

    def handler_files(self, mode: int) -> None:
        for path in (self.site.directory / "plugins" / "eventhandlers").iterdir():
            if path.is_symlink():  # to the installed program, which stays as it is
                text = path.resolve().read_bytes()
                path.unlink()
                path.write_bytes(text)
            path.chmod(mode)

    # ------------------------------------------------------------ looks

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
        """``failoverctl status --json`` against the state files; it takes a process, so it is looked at once."""
        before = [self.saved(name) for name in SERVICES]
        said = json.loads(self.site.ctl("status", "--json"))
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
        if world.up("core") and not Path(f"/proc/{self.core().pid}/exe").exists():
            found.append("the core ended by itself")
        return found

    def tracebacks(self) -> list[str]:
        """In what any part has written since the last look."""
        found = []
        for path in (*self.site.directory.glob("*.log"), self.core().log, self.core().directory / self.core().out):
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
            numbers = {
                key: int(re.findall(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[0]) for key in ("Threads", "VmRSS")
            }
            return {"pid": pid, "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())), **numbers}
        return None


def _link(link: str, state: str) -> Callable[[Ground, Event], object]:
    return lambda ground, _event: ground.site.house.run("controller", IP, "link", "set", link, state)


DO: dict[str, Callable[[Ground, Event], object]] = {
    **dict.fromkeys(faults.FAULTS, Ground.fault),
    **dict.fromkeys(("kill", "stop"), Ground.end),
    "start": Ground.start,
    "restart": Ground.restart,
    "freeze": Ground.freeze,
    "thaw": Ground.thaw,
    "clock ahead": lambda ground, _event: ground.clock(-86400.0),
    "clock back": lambda ground, _event: ground.clock(86400.0),
    "hold": lambda ground, event: ground.order("hold", event.what, "--reason", "chaos"),
    **dict.fromkeys(
        ("release", "fail-over", "fail-back", "drain"), lambda ground, event: ground.order(event.kind, event.what)
    ),
    "drain and cut": lambda ground, event: ground.order("drain", event.what, "--deadline", "1"),
    "delete table": lambda ground, _event: ground.site.house.run(
        "controller", NFT, "delete", "table", "inet", "check_failover", check=False
    ),
    "change element": lambda ground, event: ground.change_element(event.what),
    "flush conntrack": lambda ground, _event: ground.site.house.run("controller", "/usr/sbin/conntrack", "-F"),
    "fill conntrack": lambda ground, _event: ground.flood(),
    "fill disk": lambda ground, _event: ground.disk.fill(),
    "free disk": lambda ground, _event: ground.disk.well(),
    "cut clients": _link("cl0", "down"),
    "join clients": _link("cl0", "up"),
    "cut servers": _link("sv0", "down"),
    "join servers": _link("sv0", "up"),
    "downtime": lambda ground, event: ground.downtime(event.what, begin=True),
    "downtime over": lambda ground, event: ground.downtime(event.what, begin=False),
    "handlers off": lambda ground, _event: ground.handlers(on=False),
    "handlers on": lambda ground, _event: ground.handlers(on=True),
    "break handlers": lambda ground, _event: ground.handler_files(0o644),
    "mend handlers": lambda ground, _event: ground.handler_files(0o755),
}
