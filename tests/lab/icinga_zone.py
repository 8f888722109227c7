"""Icinga 2 distributed: two masters in an HA zone, each in a namespace of its own, and the controller an agent of both.

m1 has the configuration and syncs it: commands and templates by a global zone, services by the masters' zone. Checks
and event handlers run on the controller (``command_endpoint``), notification commands on the masters, which share their
spool here; results go to either master.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab import icinga
from tests.lab.daemon import Daemon
from tests.lab.icinga import Icinga
from tests.lab.netns import MANAGEMENT, House

M1, M2, AGENT = "m1.example.org", "m2.example.org", "controller.example.org"
ADDRESSES = {M1: "198.51.100.11", M2: "198.51.100.12", AGENT: MANAGEMENT}
WHERE = {M1: "m1", M2: "m2", AGENT: "controller"}  # namespaces
ZONES = "".join(f'object Endpoint "{name}" {{\n  host = "{address}"\n}}\n' for name, address in ADDRESSES.items())
ZONES += f"""\
object Zone "master" {{
  endpoints = [ "{M1}", "{M2}" ]
}}
object Zone "{AGENT}" {{
  endpoints = [ "{AGENT}" ]
  parent = "master"
}}
object Zone "global-templates" {{
  global = true
}}
"""
SERVICES = "// ---- ldap: "  # how the services begin in what failoverctl prints


def monitoring(directory: Path) -> str:
    """What check_failover's config says of both masters."""
    lines = dict(line.split(" = ") for line in icinga.monitoring(directory / M1, M1, ADDRESSES[M1]).splitlines())
    lines["url"] = str([f"https://{ADDRESSES[name]}:{icinga.PORT}" for name in (M1, M2)])
    lines["server_name"] = str([M1, M2])
    return "\n".join(f"{key} = {value}" for key, value in lines.items())


def join(house: House) -> None:
    """The masters' namespaces."""
    for name in (M1, M2):
        house.join(WHERE[name], ADDRESSES[name])


class Zone(Daemon):
    """The three nodes. ``objects``: what ``failoverctl`` printed for the agent; ``site``: what the site has itself."""

    def __init__(self, directory: Path, house: House, objects: str, site: str, plugins: Path) -> None:
        self.directory, self.house, self.user = directory, house, "nagios"
        commands, _, services = objects.partition(SERVICES)
        api_user, own = site.split("\nobject User", 1)
        synced = {"global-templates": commands, "master": f"{SERVICES}{services}\nobject User{own}"}
        self.nodes: dict[str, Icinga] = {}
        for name, where in WHERE.items():
            self.nodes[name] = Icinga(
                directory / name,
                api_user if name != AGENT else "",
                house.argv(where),
                name=name,
                bind=ADDRESSES[name],
                zones=ZONES,
                accept=True,
                plugins=plugins,
                synced=synced if name == M1 else None,
            )
        self.m1, self.m2 = self.nodes[M1], self.nodes[M2]

    def verify(self) -> str:
        """The master that has the configuration takes it."""
        return self.m1.verify()

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def stop(self) -> None:
        for node in reversed(self.nodes.values()):
            node.stop()

    def wait(self, service: str, state: int, deadline: float = 15.0, text: str = "") -> dict[str, str]:
        """See ``Icinga.wait``; as the first master has it."""
        return self.m1.wait(service, state, deadline, text)

    def tail(self) -> str:
        """The last lines of what each said, for a failure's message."""
        return "\n".join(f"{name}:\n{node.tail()}" for name, node in self.nodes.items())
