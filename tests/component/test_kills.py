"""SIGKILL in the middle of a flip, before every line of it: the old state or the new one, and a restart finishes it.

The redirector runs as it is, forked from here so that a start takes milliseconds; a trace function ends it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from check_failover import control
from check_failover.config import Config, load
from check_failover.redirector import daemon
from tests.component.test_redirector import FACTS, NFT, ROOT, SHAPES, Controller
from tests.lab import kernel
from tests.lab.netns import SERVICE_ADDRESS, inside, poll

pytestmark = pytest.mark.component
MODULES = ("steering", "repair", "wiring", "store", "state", "journal", "nftables/redirect")
FILES = {str(ROOT / "check_failover" / "redirector" / f"{name}.py") for name in MODULES}


class Tracer:
    """Notes each line of ``FILES`` when it is run first, from an order on; ends the process before line ``kill``."""

    def __init__(self, kill: int | None = None, at: str = "") -> None:
        self.kill, self.at = kill, at
        self.seen: dict[tuple[str, int], str] = {}
        self._armed = 0

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if frame.f_code.co_name == "_order":
            self._armed = threading.get_ident()
        if self._armed != threading.get_ident():
            return None
        place = (frame.f_code.co_filename, frame.f_lineno)
        name = f"{Path(place[0]).stem}.{frame.f_code.co_name}:{place[1]}"
        if event == "line" and place not in self.seen:
            if len(self.seen) == self.kill or (self.at and name.startswith(self.at)):
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen[place] = name
        return self


class Forked:
    """The redirector in a child of a process that is already in the controller's namespace."""

    def __init__(self, config: Config, log: Path, hook: Callable[[], object] | None = None) -> None:
        self.socket = config.controller.redirector_socket
        self.pid = os.fork()
        if self.pid == 0:
            try:
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for number in (1, 2):
                    os.dup2(descriptor, number)
                if hook is not None:
                    hook()
                daemon.run(config, daemon.Wake())
            finally:
                os._exit(3)
        poll(self._there, 20.0, "the redirector answers", every=0.005)

    def _there(self) -> bool:
        try:
            return bool(self.status())
        except control.UnreachableError:
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), "it ended"
            return False

    def status(self) -> dict[str, Any]:
        services: dict[str, Any] = control.ask(self.socket, {"verb": "status"}, timeout=10.0)["services"]
        return services

    def flip(self, service: str) -> dict[str, Any]:
        order = {"verb": "fail-over", "service": service, "facts": FACTS, "manual": True}
        return control.ask(self.socket, order, timeout=20.0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def the_rule(service: str = "tcp4") -> str:
    """The kernel's word, by nft itself."""
    done = subprocess.run([NFT, *kernel.TABLE], capture_output=True, check=True, text=True)
    return kernel.targets(done.stdout)[service]


def agreed(controller: Controller, running: Forked) -> dict[str, Any]:
    """The status, once it is sure that the kernel, the state file and the status say the same."""
    status: dict[str, Any] = running.status()["tcp4"]
    path = controller.directory / "state" / "target" / "tcp4.json"
    saved = json.loads(path.read_text())["target"] if path.exists() else "primary"
    assert status["target"] == status["kernel"] == saved, status
    assert status["problem"] is None
    return status


def one_kill(controller: Controller, config: Config, number: int) -> str | None:
    """From the primary: flip, killed before the ``number``-th line; what was found, None once it got through."""
    state = controller.directory / "state"
    shutil.rmtree(state)
    state.mkdir()
    log = controller.directory / "redirector.log"
    first = Forked(config, log, hook=lambda: threading.settrace(Tracer(number)))
    try:
        assert first.flip("tcp4")["flipped"]
    except control.UnreachableError:
        os.waitpid(first.pid, 0)
    else:
        first.kill()
        return None
    before = the_rule()  # old or new, never none
    second = Forked(config, log)
    status = agreed(controller, second)
    assert the_rule() == status["target"]
    assert before in ("primary", status["target"]), "a restart took the traffic back"
    verbs = [entry["verb"] for entry in controller.journal()] if (state / "journal.jsonl").exists() else []
    assert bool({"resume", "restore", "fail-over"} & set(verbs)) == (status["target"] == "standby"), verbs
    assert second.flip("tcp4")["flipped"] is (status["target"] == "primary")
    assert agreed(controller, second)["target"] == "standby"
    second.kill()
    return f"{before} -> {status['target']}"


def test_killed_before_every_line(controller: Controller) -> None:
    """Kernel, state file, journal and status agree after each restart; a flip that began is finished, never undone."""

    def act() -> list[str]:
        config, found = load(controller.config), []
        while (outcome := one_kill(controller, config, len(found))) is not None:
            found.append(outcome)
        return found

    found = inside(controller.house.name("controller"), act)
    assert len(found) > 100
    # In this order: nothing happened; the intent was there; the rule had moved.
    assert sorted(set(found), key=found.index) == ["primary -> primary", "primary -> standby", "standby -> standby"]
    assert found == sorted(found, key=sorted(set(found), key=found.index).index)


@pytest.mark.parametrize(
    "at", ["redirect.wire:", "redirect.forget_unanswered", "redirect.free_stranded", "state.settle"]
)
def test_a_restart_frees_those_who_wait(controller: Controller, at: str) -> None:
    """A client that waits for the dead server when the redirector is killed is freed by its restart."""
    code = (
        "import socket\n"
        f"s = socket.create_connection(({SERVICE_ADDRESS!r}, {SHAPES['tcp4'][2]})); s.sendall(b'wait\\n')\n"
        "print('waiting', flush=True)\n"
        "try: print('got', s.recv(10))\n"
        "except ConnectionResetError: print('reset')\n"
    )
    client = controller.directory / "client.log"
    log = controller.directory / "redirector.log"

    def begin() -> None:
        config = load(controller.config)
        first = Forked(config, log, hook=lambda: threading.settrace(Tracer(at=at)))
        controller.house.start("client", sys.executable, "-c", code, log=client)
        poll(lambda: "waiting" in client.read_text(), 10.0, "the client waits")
        with pytest.raises(control.UnreachableError):
            first.flip("tcp4")
        os.waitpid(first.pid, 0)
        second = Forked(config, log)
        assert agreed(controller, second)["target"] == "standby"
        poll(lambda: "reset" in client.read_text(), 10.0, "the client is told")
        assert controller.journal()[-1]["verb"] == "resume"
        second.kill()

    inside(controller.house.name("controller"), begin)
