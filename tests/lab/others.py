"""Services beside LDAP on both servers of a site: bind9, apache2, and one that only a plugin can check.

site = Site(directory, extra=config("dns", "web"))
primary = start(site, stack, "dns", "web")        # {"dns": Named, "web": Apache}, those of the primary
clients = Clients(site, "dns")                    # each of them asks five times a second (``tests.lab.asking``)
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from tests.lab.apache import Apache
from tests.lab.echo import Echo
from tests.lab.nagios import PLUGINS
from tests.lab.named import Named
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, poll
from tests.lab.site import HOST, ROOT, SERVERS, Site

ECHO = 7000
SERVICE = """
[[service]]
name = "{name}"
host = "{host}"
protocol = "{protocol}"
address = "{address}"
port = {port}
primary = "{primary}"
standby = "{standby}"
[service.policy]
hold_down = 2
[service.check]
{check}
"""
PLUGIN = [
    str(PLUGINS / "check_tcp"),
    "-H",
    "{address}",
    "-p",
    "{port}",
    "-E",
    "-s",
    "who\\n",
    "-e",
    "10.0.0.1",
    "-t",
    "2",
]
# name: transport, port, check, and what its clients speak
KINDS = {
    "dns": ("udp", 53, 'type = "dns"\nname = "www.example.org"', "dns"),
    "dns2": ("udp", 5353, 'type = "dns"\nname = "www.example.org"', "dns"),
    "web": ("tcp", 80, 'type = "http"\nstatus = [200]\nserver_name = "www.test"', "http"),
    "echo": ("tcp", ECHO, f'type = "plugin"\ncommand = {PLUGIN!r}', "echo"),
}


class Clients:
    """The clients of one service; ``said``: the outcome of each request."""

    def __init__(self, site: Site, name: str, many: int = 4) -> None:
        self.log = site.directory / f"clients-{name}.log"
        _, port, _, speaks = KINDS[name]
        argv = [sys.executable, "-m", "tests.lab.asking", speaks, SERVICE_ADDRESS, str(port), str(many)]
        site.house.start("client", *argv, log=self.log, cwd=ROOT)

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def served(self, more: int = 30) -> None:
        """So many requests from now on are all answered well, within a while."""
        skip = len(self.said())
        poll(lambda: self.said()[skip:][-more:] == ["ok"] * more, 20.0, f"{self.log.name}: clients are served")


def config(*names: str) -> str:
    """Their part of the site's config."""
    return "".join(
        SERVICE.format(
            name=name, host=HOST, protocol=KINDS[name][0], address=SERVICE_ADDRESS, port=KINDS[name][1],
            check=KINDS[name][2], primary=PRIMARY, standby=STANDBY,
        )
        for name in names
    )  # fmt: skip


def start(site: Site, stack: contextlib.ExitStack, *names: str) -> dict[str, Any]:
    """On both servers; returns those of the primary. The stack ends them."""
    found: dict[str, dict[str, Any]] = {who: {} for who in SERVERS}
    for who, address in SERVERS.items():
        place, prefix = site.directory / f"more-{who}", site.house.argv(who)
        for name in names:
            port = KINDS[name][1]
            if name == "web":
                found[who][name] = stack.enter_context(Apache(place / name, address, port, 443, prefix))
            elif name == "echo":
                log = site.directory / f"echo-{who}.log"
                found[who][name] = stack.enter_context(Echo(site.house, who, "tcp", address, ECHO, log))
            else:
                found[who][name] = stack.enter_context(Named(place / name, address, port, prefix))
    return found["primary"]
