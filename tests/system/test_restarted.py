"""Eight ways in which a fail-over once went wrong, each with the restart of either daemon before its judgement.

What a daemon knows only in its memory is lost in a restart: these cases are judged on what is left. The eighth,
sessions on the other server whose answers veto a fail-over, is ``test_answers_of_the_other_server_are_no_veto`` in
``test_drain``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from check_failover import control
from check_failover.redirector.inquiry import RECENT
from tests.lab.echo import Echo
from tests.lab.handshake import QUIET
from tests.lab.netns import CLIENT, PRIMARY, SERVICE_ADDRESS, STANDBY, freeze, poll, python_argv
from tests.lab.site import HOST, ROOT, SERVERS, Site

pytestmark = [pytest.mark.system, pytest.mark.parametrize("daemon", ["redirector", "sniffer"])]

CASES = ("resort", "silent", "planned", "cut", "disarmed", "frozen", "invalid")
DAEMONS = ("redirector", "sniffer")
PORT = {f"{case}-{daemon[:3]}": 7100 + 10 * i + j for i, case in enumerate(CASES) for j, daemon in enumerate(DAEMONS)}
LONG = 300  # seconds of hold-down where it must not matter
SERVICE = f"""
[[service]]
name = "{{name}}"
host = "{HOST}"
protocol = "tcp"
address = "{SERVICE_ADDRESS}"
port = {{port}}
primary = "{PRIMARY}"
standby = "{STANDBY}"
[service.check]
type = "tcp"
[service.policy]
hold_down = {{hold_down}}
fail_back_passes = 2
fail_back_seconds = 0
"""


class Ground:
    """A site with an echo service for each case and daemon, so that no case sees another's flips."""

    def __init__(self, site: Site) -> None:
        self.site, self.house = site, site.house
        self.echo: dict[tuple[str, str], Echo] = {}
        for name, port in PORT.items():
            for who, address in SERVERS.items():
                log = site.directory / f"{name}-{who}.log"
                self.echo[name, who] = Echo(self.house, who, "tcp", address, port, log)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Echo.start, self.echo.values()))
        for name in PORT:
            site.wait_healthy("standby", name=name, deadline=40.0)

    def ask(self, name: str, timeout: float = 2.0) -> str:
        """What a new client gets: "SERVER address", or its error."""
        argv = python_argv("tests.lab.echo", "ask", "tcp", SERVICE_ADDRESS, str(PORT[name]), str(timeout))
        return self.house.run("client", *argv).strip()

    def say(self, verb: str, name: str, **more: object) -> dict[str, Any]:
        return control.ask(self.site.socket("redirector"), {"verb": verb, "service": name, **more}, timeout=20.0)

    def by_hand(self, verb: str, name: str, **more: object) -> dict[str, Any]:
        return self.say(verb, name, manual=True, by="a person", facts={"standby_ok": True}, **more)

    def restart(self, daemon: str) -> None:
        """As after the kill of a program that ran out of memory: nothing is saved on its way out."""
        self.site.kill(daemon)
        self.site.start(daemon)

    def prove(self, name: str, target: str, passes: int = 1) -> None:
        """Ask for probes, which spares the usual wait for them, until the server passed so often in a row."""

        def proven() -> bool:
            message = {"verb": "probe", "service": name, "target": target}
            control.ask(self.site.socket("sniffer"), message, timeout=10.0)
            return int(self.site.sniffer(name)[target]["passes"]) >= passes

        poll(proven, 20.0, f"{name}: the {target} is proven")

    def moved(self, name: str, target: str, deadline: float = 20.0) -> dict[str, Any]:
        """Clients ask until the redirect is there; the journal's last flip."""

        def there() -> bool:
            self.ask(name, 0.3)
            return bool(self.site.status(name)["kernel"] == target)

        poll(there, deadline, f"{name} at the {target}")
        self.site.wait_target(target, name=name)
        assert self.ask(name) == f"{target} {CLIENT}"
        return self.flips(name)[-1]

    def flips(self, name: str) -> list[dict[str, Any]]:
        return [entry for entry in self.site.journal() if entry["service"] == name and entry["flipped"]]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    extra = "".join(
        SERVICE.format(name=name, port=port, hold_down=LONG if name.startswith("planned") else 0)
        for name, port in PORT.items()
    )
    with tempfile.TemporaryDirectory(prefix="cfo-site-") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        Path(name).chmod(0o755)
        before = os.umask(0o022)
        with Site(Path(name) / "site", kannel=False, extra=extra) as site:
            yield Ground(site)
        os.umask(before)


def test_the_last_resort(ground: Ground, daemon: str) -> None:
    """Both servers failed while the standby served: the primary that comes back serves, though a daemon forgot all."""
    name = f"resort-{daemon[:3]}"
    assert ground.by_hand("fail-over", name)["flipped"]
    ground.echo[name, "primary"].stop()
    ground.echo[name, "standby"].stop()
    poll(lambda: ground.ask(name, 0.3) and ground.site.sniffer(name)["verdict"] == "failed", 20.0, "it is seen")
    ground.restart(daemon)
    assert ground.site.status(name)["target"] == "standby"
    ground.echo[name, "primary"].start()
    flip = ground.moved(name, "primary")
    assert flip["text"].startswith("last resort: the standby failed")


def test_a_core_that_does_not_order(ground: Ground, daemon: str) -> None:
    """Its handler cannot be run: the sniffer orders after ``core_deadline``, also if a daemon began anew meanwhile."""
    name, handler = f"silent-{daemon[:3]}", ground.site.directory / "plugins" / "eventhandlers" / "failover_event"
    away = handler.rename(handler.with_suffix(".away"))
    try:
        ground.echo[name, "primary"].stop()
        poll(lambda: ground.ask(name, 0.3) and ground.site.sniffer(name)["verdict"] == "failed", 20.0, "it is seen")
        ground.restart(daemon)
        flip = ground.moved(name, "standby")
    finally:
        away.rename(handler)
    assert flip["by"] == "sniffer (the core is silent)"


def test_a_hold_down_is_for_planned_moves(ground: Ground, daemon: str) -> None:
    """It outlives a restart and delays the fail-back; the fault of the server that serves does not wait for it."""
    name = f"planned-{daemon[:3]}"
    assert ground.by_hand("fail-over", name)["flipped"]
    ground.restart(daemon)
    ground.prove(name, "primary", 2)
    assert ground.by_hand("fail-back", name)["reason"] == "hold-down"
    ground.echo[name, "standby"].stop()
    assert ground.moved(name, "primary")["verb"] == "fail-over"
    assert ground.site.status(name)["hold_down_left"] > LONG / 2


def test_after_a_cut_no_server_counts_as_dead(ground: Ground, daemon: str) -> None:
    """A fail-back cut what was left on the standby: a drill's client is served by it, whichever daemon began anew."""
    name = f"cut-{daemon[:3]}"
    assert ground.by_hand("fail-over", name)["flipped"]
    log = ground.site.directory / f"{name}.log"
    talk = ground.house.start(
        "client", *python_argv("tests.lab.echo", "talk", SERVICE_ADDRESS, str(PORT[name])), log=log
    )
    poll(lambda: log.exists() and log.read_text().startswith("standby"), 10.0, "a session on the standby")
    ground.prove(name, "primary", 2)
    assert ground.by_hand("fail-back", name, deadline=0)["flipped"]
    ground.restart(daemon)
    poll(lambda: talk.poll() is not None, 10.0, "the session was cut")
    poll(lambda: ground.site.status(name)["dead"] is None, 10.0, "no server counts as dead")
    drill = ground.say("drill", name, client=CLIENT, seconds=20)
    assert ground.ask(name) == f"standby {CLIENT}"
    ground.say("drill-end", name, id=drill["id"])
    assert ground.ask(name) == f"primary {CLIENT}"


def test_orders_that_move_nothing_disarm_nothing(ground: Ground, daemon: str) -> None:
    """After them and a restart the primary's process dies: no client sees a refused connection."""
    name = f"disarmed-{daemon[:3]}"
    assert ground.by_hand("fail-back", name)["reason"] == "already-there"
    refused = ground.say("fail-over", name, manual=True, by="a person", facts={"standby_ok": False})
    assert refused["reason"] == "no-healthy-server"
    ground.restart(daemon)
    ground.prove(name, "standby")
    ground.echo[name, "primary"].stop()
    answers = [ground.ask(name) for _ in range(5)]
    assert set(answers) == {f"standby {CLIENT}"}
    ground.site.wait_target("standby", name=name)


def test_an_order_that_waited_in_a_frozen_redirector(ground: Ground, daemon: str) -> None:
    """The primary died and is well again before the redirector reads the core's order: nothing moves."""
    name, site = f"frozen-{daemon[:3]}", ground.site
    frozen = site.pid("redirector")
    freeze(frozen)
    try:
        ground.echo[name, "primary"].stop()
        poll(lambda: ground.ask(name, 0.3) and site.sniffer(name)["verdict"] == "failed", 20.0, "it is seen")
        poll(lambda: _waiting(site, name), 20.0, "the core's order waits in the socket")
        verdict = site.sniffer(name)["facts"]["evidence"] / 1000
        poll(lambda: time.time() > verdict + RECENT, 20.0, "the order is no longer fresh: a fresh one is obeyed")
        ground.echo[name, "primary"].start()
        if daemon == "sniffer":
            site.kill(daemon)
            site.start(daemon)
            ground.prove(name, "primary")
    finally:
        os.kill(frozen, signal.SIGCONT)
    if daemon == "redirector":
        ground.restart(daemon)
    poll(lambda: not _waiting(site, name), 40.0, "the handler has its answer")
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        assert ground.ask(name) == f"primary {CLIENT}"
    assert ground.flips(name) == []
    assert site.status(name)["target"] == "primary"


def _waiting(site: Site, name: str) -> bool:
    """Whether the core's event handler for that service runs."""
    words = []
    for pid in site.house.pids("controller"):
        with contextlib.suppress(OSError):  # it has ended
            words.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return any(b"failover_event" in word and name.encode() in word for word in words)


def test_a_segment_that_conntrack_calls_invalid(ground: Ground, daemon: str) -> None:
    """A connection that outlives the daemon's restart is not reset for a segment far ahead of its window."""
    name, restarted = f"invalid-{daemon[:3]}", ground.site.directory / f"restarted-{daemon}"
    ground.house.run("client", "/usr/sbin/nft", "-f", "-", input=f"table inet quiet\ndelete table inet quiet\n{QUIET}")
    log, source_port = ground.site.directory / f"{name}.log", str(30001 + DAEMONS.index(daemon))
    argv = python_argv("tests.lab.ahead", SERVICE_ADDRESS, str(PORT[name]), source_port, str(restarted))
    client = ground.house.start("client", *argv, log=log, cwd=ROOT)
    poll(lambda: log.exists() and log.read_text().count("\n") == 1, 10.0, "the first answer")
    ground.restart(daemon)
    restarted.touch()
    poll(lambda: client.poll() is not None, 20.0, "the connection has ended")
    assert log.read_text().splitlines() == [f"primary {CLIENT}"] * 2
