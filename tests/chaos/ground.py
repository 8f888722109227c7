"""A site on which a round's events are done for real; ``looks`` sees what became of it.

Three services on two servers: LDAP (slapd, with sessions that stay open), web and DNS (``cheap``); both daemons, a
core, clients that never pause, the state on a small disk of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.looks import NFT, Looks
from tests.chaos.model import SERVICES, Event, World
from tests.component.test_adversity import FLOOD
from tests.lab import faults
from tests.lab.cheap import PORTS, Asking, Cheap
from tests.lab.load import Load
from tests.lab.nagios import Nagios
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, freeze
from tests.lab.site import BASE, HOST, SERVERS, Site
from tests.lab.small_disk import SmallDisk

IP = "/usr/sbin/ip"
PORT = {"ldap": 389, **PORTS}
PROTOCOL = {"ldap": "tcp", "web": "tcp", "dns": "udp"}
RATE = 10.0  # requests per second and service
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
        self.looks = Looks(self.site, self.loads)
        self._downtimes: set[str] = set()
        self._handlers = True

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
        self.loads += [ldap, Asking(site.house, place, address=SERVICE_ADDRESS, rate=RATE)]
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

    def _core_pids(self) -> list[int]:
        pids = [self.looks.core.pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return pids

    def end(self, event: Event) -> None:
        """SIGKILL ("kill") or SIGTERM ("stop") of a part."""
        if event.what == "core":
            (self.looks.core.kill if event.kind == "kill" else self.looks.core.stop)()
        else:
            (self.site.kill if event.kind == "kill" else self.site.stop)(event.what)

    def start(self, event: Event) -> None:
        if event.what == "core":
            self.looks.core.start()
            self._as_before()
        else:
            self.site.start(event.what)

    def _as_before(self) -> None:
        """A killed Nagios comes back with what it saved at its last orderly end: a downtime that is over, say."""
        if isinstance(self.looks.core, Nagios):
            self.handlers(on=self._handlers)
            for name in SERVICES:
                self.downtime(name, begin=False)
            for name in sorted(self._downtimes):
                self.downtime(name, begin=True)

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
        verb = "add" if self.looks.kernel()[service] == "primary" else "delete"
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
        core, self._handlers = self.looks.core, on
        if isinstance(core, Nagios):
            core.command("ENABLE_EVENT_HANDLERS" if on else "DISABLE_EVENT_HANDLERS")
            return
        for name in SERVICES:
            path = f"/v1/objects/services/{HOST}!{name} primary"
            core.api("POST", path, {"attrs": {"enable_event_handler": on}})

    def announce(self, service: str, *, begin: bool) -> None:
        """A person announces a downtime, or ends it."""
        (self._downtimes.add if begin else self._downtimes.discard)(service)
        self.downtime(service, begin=begin)

    def downtime(self, service: str, *, begin: bool) -> None:
        """Announce a downtime of "NAME primary" in the core, or end it."""
        core, name, now = self.looks.core, f"{service} primary", int(time.time())
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
    "downtime": lambda ground, event: ground.announce(event.what, begin=True),
    "downtime over": lambda ground, event: ground.announce(event.what, begin=False),
    "handlers off": lambda ground, _event: ground.handlers(on=False),
    "handlers on": lambda ground, _event: ground.handlers(on=True),
    "break handlers": lambda ground, _event: ground.handler_files(0o644),
    "mend handlers": lambda ground, _event: ground.handler_files(0o755),
}
