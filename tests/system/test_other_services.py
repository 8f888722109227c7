"""DNS, web and a service that only a plugin can check: found by their traffic, judged by Nagios, moved like LDAP."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.apache import Apache
from tests.lab.nagios import PLUGINS
from tests.lab.named import Named
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, freeze, poll
from tests.lab.site import HOST, ROOT, SERVERS, Site

pytestmark = pytest.mark.system

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
CHECKS = {
    "dns": ("udp", 53, 'type = "dns"\nname = "www.example.org"'),
    "dns2": ("udp", 5353, 'type = "dns"\nname = "www.example.org"'),
    "web": ("tcp", 80, 'type = "http"\nstatus = [200]\nserver_name = "www.test"'),
    "echo": ("tcp", ECHO, f'type = "plugin"\ncommand = {PLUGIN!r}'),
}
ASKS = {"dns": "dns", "dns2": "dns", "web": "http", "echo": "echo"}


class Clients:
    """Of one service; ``said`` is what came of each request."""

    def __init__(self, site: Site, name: str) -> None:
        self.log = site.directory / f"clients-{name}.log"
        argv = [sys.executable, "-m", "tests.lab.asking", ASKS[name], SERVICE_ADDRESS, str(CHECKS[name][1])]
        site.house.start("client", *argv, log=self.log, cwd=ROOT)

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def served(self, more: int = 30) -> None:
        """So many requests from now on are all answered well, within a while."""
        skip = len(self.said())
        poll(lambda: self.said()[skip:][-more:] == ["ok"] * more, 20.0, f"{self.log.name}: clients are served")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[[Site], dict[str, Any]]]:
    """Starts bind9 (twice), apache2 and an echo server on both servers; returns those of the primary."""
    with contextlib.ExitStack() as stack:

        def start(site: Site) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for who, address in SERVERS.items():
                place, prefix = site.directory / f"more-{who}", site.house.argv(who)
                found[who] = {
                    "dns": stack.enter_context(Named(place / "dns", address, 53, prefix)),
                    "dns2": stack.enter_context(Named(place / "dns2", address, 5353, prefix)),
                    "web": stack.enter_context(Apache(place / "web", address, 80, 443, prefix)),
                    "echo": _echo(site, who, address),
                }
            primary: dict[str, Any] = found["primary"]
            return primary

        yield start


def _echo(site: Site, who: str, address: str) -> subprocess.Popen[Any]:
    log = site.directory / f"echo-{who}.log"
    argv = [sys.executable, "-m", "tests.lab.echo", "serve", who, "tcp", address, str(ECHO)]
    process = site.house.start(who, *argv, log=log, cwd=ROOT)
    poll(lambda: "ready" in log.read_text(), 15.0, f"echo on the {who}")
    return process


def test_each_kind_of_service_fails_over(
    make_site: Callable[..., Site], servers: Callable[[Site], dict[str, Any]]
) -> None:
    """bind9 that says nothing, bind9 with SERVFAIL, apache2 with 503, a hang behind ``type = "plugin"``; LDAP stays."""
    parts = (
        SERVICE.format(
            name=name, host=HOST, protocol=protocol, address=SERVICE_ADDRESS, port=port, check=check,
            primary=PRIMARY, standby=STANDBY,
        )
        for name, (protocol, port, check) in CHECKS.items()
    )  # fmt: skip
    site = make_site(kannel=False, extra="".join(parts))
    assert site.core is not None
    primary = servers(site)
    clients = {name: Clients(site, name) for name in CHECKS}
    for name in CHECKS:
        site.wait_healthy("standby", name=name)
        clients[name].served()
        assert site.sniffer(name)["primary"]["ok"] is None, "the primary was probed although it answered"
    freeze(primary["dns"].pid)
    primary["dns2"].spoil()
    primary["web"].spoil()
    freeze(primary["echo"].pid)
    detectors = {}
    for name in CHECKS:
        site.wait_target("standby", name=name)
        flips = [e for e in site.journal("fail-over") if e["service"] == name and e["flipped"]]
        assert [flip["by"] for flip in flips] == ["nagios"]
        detectors[name] = flips[0]["facts"]["detector"]
        site.core.wait(f"{name} primary", 2)
        site.core.wait(f"{name} redirect", 1, text="on the standby")
    for name in CHECKS:
        clients[name].served()
    assert (detectors["dns2"], detectors["web"]) == ("error-share", "error-share")
    assert (detectors["dns"], detectors["echo"]) == ("unanswered-request", "unanswered-request")
    assert site.status("ldap")["target"] == "primary"
