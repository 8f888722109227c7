"""The rule of failover-sync with the real redirector: a client stays on the standby after a fail-back with a drain."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover.listening import Server
from tests.component.test_drain import Session, drain, over
from tests.component.test_redirector import ROOT, Controller
from tests.lab.netns import PRIMARY, STANDBY, House, poll, python_argv
from tests.lab.sshd import Servers
from tests.lab.syncing import contents, fill

pytestmark = pytest.mark.component


def well(message: Any, _peer: Any) -> dict[str, Any]:
    """What the sniffer would say: both servers pass their probes."""
    good = {"ok": True, "passes": 9, "good_for": 900.0, "text": ""}
    service: dict[str, Any] = {"target": "primary", "verdict": "ok", "primary": good, "standby": good, "blind": None}
    service["stats"] = {"p99": None, "request_rate": 0.0, "unanswered": 0}
    return {"passed": True} if message["verb"] == "probe" else {"services": {"tcp4": service}}


class Drained(Controller):
    """A redirector, and the data of its service on two servers behind ssh."""

    def __init__(self, directory: Path, house: House, servers: Servers) -> None:
        super().__init__(directory, house, only=("tcp4",))
        self.primary, self.standby = (servers.place / who / "data" for who in ("primary", "standby"))
        keys = f'[service.sync]\nfrom = "{servers.srv}/data"\nssh_config = "{servers.ssh_config}"\n'
        with self.config.open("a") as file:
            file.write(keys + "".join(f'{who} = "{to}"\n' for who, to in servers.targets.items()))

        self.sniffer = Server(
            self.socket.with_name("sniffer.sock"), frozenset({"status", "probe"}), well, lambda *_: None
        )
        self.sniffer.start()

    def sync(self, *options: str) -> str:
        """The line of a run on the controller."""
        argv = python_argv("check_failover.sync.run", "--config", str(self.config), *options, "tcp4")
        return self.house.run("controller", *argv, check=False, timeout=60)

    def ctl(self, *arguments: str) -> str:
        """What failoverctl prints."""
        argv = python_argv("check_failover.admin.ctl", "--config", str(self.config), *arguments)
        done = subprocess.run(argv, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)
        return done.stdout + done.stderr


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Drained]:
    """Both servers have the same data; the redirector runs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.chmod(0o755)
    place = tmp_path / "servers"
    place.mkdir()
    with House() as house, Servers(place, {"primary": PRIMARY, "standby": STANDBY}, house.argv) as servers:
        made = Drained(tmp_path, house, servers)
        fill(made.primary, {"entries": "first"})
        made.start()
        for options in ((), ("--adopt",)):
            said = made.sync(*options)
            assert said.startswith("OK"), said
        yield made
        made.sniffer.close()


def away(drained: Drained) -> None:
    """New connections go to the standby."""
    reply = drain(drained, "tcp4")
    assert reply["flipped"], reply


def test_a_client_that_stays_after_the_fail_back_keeps_its_writes(drained: Drained) -> None:
    """Drain, reverse, fail-back which drains: what the client writes to the standby outlasts the timer's runs."""
    first = Session(drained, "tcp4")
    away(drained)
    fill(drained.standby, {"taken": "by the standby"})
    assert "[still-reached]" in drained.sync("--reverse")
    first.end()
    over(drained, "tcp4")
    said = drained.sync("--reverse")
    assert said.startswith("OK"), said

    stays = Session(drained, "tcp4")
    reply = drained.say("fail-back", manual=True, by="test")
    assert reply["flipped"], reply
    assert stays.said(2) == {"standby"}
    fill(drained.standby, {"late": "acknowledged"})
    said = drained.sync()
    assert "[still-reached]" in said, said
    stays.end()
    over(drained, "tcp4")
    fill(drained.primary, {"other": "by a client of the primary"})
    said = drained.sync()
    assert "[both-served]" in said, said
    assert "drain" in said
    assert (drained.standby / "late").read_text() == "acknowledged"
    assert "sync: CRITICAL: in step" in drained.ctl("status", "tcp4")

    away(drained)
    shown = drained.ctl("status", "tcp4")
    assert "the standby's changes were not brought back: both servers have changed since they were in step" in shown
    over(drained, "tcp4")
    said = drained.sync("--take", "standby", "--yes")
    assert said.startswith("OK"), said
    assert contents(drained.primary) == contents(drained.standby)
    (kept,) = drained.primary.with_name("data.sync").glob("kept-*")
    assert (kept / "other").exists()
    poll(lambda: "not brought back" not in drained.ctl("status", "tcp4"), 10.0, "the checklist follows")
    assert os.path.lexists(drained.primary / "late")
