"""A redirector's process in the test's own: its requests, steering, state and journal, over a kernel in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from check_failover import rights
from check_failover.config import Config, load
from check_failover.control import Message
from check_failover.listening import Server
from check_failover.model import Endpoint, Service, Target
from check_failover.peer import Peer
from check_failover.records import Activity
from check_failover.redirector import Wiring
from check_failover.redirector.drill import Drills
from check_failover.redirector.report import CoreReports
from check_failover.redirector.requests import RedirectorRequests
from check_failover.redirector.steering import Steering

CORE, SNIFFER, PAIR, OPERATORS, LOOKER = "nobody", "daemon", "bin", "operator", 54321
PEERS = {
    "root": Peer(1, 0, frozenset({0})),
    "core": Peer(2, 65534, frozenset({65534})),
    "sniffer": Peer(3, 1, frozenset({1})),
    "pair": Peer(4, 2, frozenset({2})),
    "operator": Peer(5, 4321, frozenset({37, 4321})),
    "looker": Peer(6, LOOKER, frozenset({LOOKER})),
}
SERVICES = ("ldap", "dns")


class Kernel:
    """Does what ``Redirect`` says with a dict instead of rules, and like them it survives the process."""

    cuts = drills = True

    def __init__(self) -> None:
        self.rules: dict[str, Wiring] = {}

    def install(self, targets: Mapping[str, Target]) -> None:
        for name, target in targets.items():
            if name not in self.rules or self.rules[name].target is not target:
                self.rules[name] = Wiring(target)

    def whole(self) -> bool:
        return True

    def wire(self, service: Service, wiring: Wiring) -> None:
        self.rules[service.name] = wiring

    def wired(self, services: Iterable[Service]) -> dict[str, Wiring]:
        return {service.name: self.rules[service.name] for service in services if service.name in self.rules}

    def forget_unanswered(self, service: Service, old: Target) -> int:
        return 0

    free_stranded = sweep = sweep_finished = cut = forget_unanswered

    def open_connections(self, servers: Mapping[str, Target]) -> dict[str, int]:
        return dict.fromkeys(servers, 0)

    def elsewhere(self, service: Service, target: Target) -> list[Endpoint]:
        return []

    def activity(self, services: Collection[Service]) -> dict[str, Activity]:
        return {service.name: Activity(0, 0) for service in services}

    def forget(self, service: Service, client: str, port: int) -> bool:
        return True

    def send_to_standby(self, service: Service, client: str | None, seconds: float) -> None:
        """Nothing is sent."""

    def answered(self, service: Service, client: str) -> frozenset[tuple[Target, int]]:
        return frozenset()


def config(directory: Path) -> Config:
    """Two services; the roles are users that every system has."""
    for name in ("run", "state"):
        (directory / name).mkdir(exist_ok=True)
    parts = [
        f'[controller]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\ncore_user = "{CORE}"\n'
        f'sniffer_user = "{SNIFFER}"\npair_user = "{PAIR}"\noperators = "{OPERATORS}"\n'
        f'[monitoring]\ncommand_file = "{directory}/nagios.cmd"\n'
    ]
    for number, name in enumerate(SERVICES):
        parts.append(
            f'[[service]]\nname = "{name}"\nhost = "h"\nprotocol = "tcp"\nport = {7000 + number}\n'
            'address = "192.0.2.1"\nprimary = "10.0.0.1"\nstandby = "10.0.0.2"\ntest_client = "198.51.100.7"\n'
            '[service.check]\ntype = "tcp"\n'
            "timeout = 0.1\n[service.policy]\nhold_down = 0\n"
        )
    (directory / "config.toml").write_text("".join(parts))
    return load(directory / "config.toml")


def sniffer(message: Message, _peer: Peer) -> Message:
    """A sniffer that has no verdict, while the primary fails its probes: it confirms each fail-over."""
    if message["verb"] == "status":
        return {"services": {name: {"facts": None, "blind": None} for name in SERVICES}}
    return {"passed": message["target"] == "standby"}


class Redirector:
    """As ``redirector.daemon`` builds it, and a sniffer. ``close`` it before the next one starts."""

    def __init__(self, config: Config, kernel: Kernel) -> None:
        self.config = config
        self.steering = Steering(config, kernel, lambda _event: None)
        self.steering.restore()
        self._report, self.drills = CoreReports(config), Drills(kernel, self.steering)
        self.requests = RedirectorRequests(config, self.steering, self._report, self.drills)
        self.server = Server(
            config.controller.redirector_socket,
            rights.OF_REDIRECTOR,
            self.requests.handle,
            partial(rights.refused, rights.OF_REDIRECTOR, config.controller),
            looks=partial(rights.looks, config.controller),
        )
        self.server.start()
        self._sniffer = Server(config.controller.sniffer_socket, rights.OF_SNIFFER, sniffer, lambda *_: None)
        self._sniffer.start()

    def beat(self) -> None:
        """One turn of the daemon's loop, without its guard."""
        self.steering.reconcile()
        for service in self.config.services:
            self.requests.advance(service)
            self.requests.fail_back(service)

    def close(self) -> None:
        self.server.close()
        self._sniffer.close()
        self.requests.close()
        self._report.close()
