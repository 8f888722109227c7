"""Liveness and reload: the watchdog's signs of life, SIGHUP with good and bad configs, and answers about a daemon that
hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover import control
from tests.component.test_redirector import Controller, controller
from tests.lab.netns import CLIENT, SERVICE_ADDRESS, poll, python_argv

__all__ = ["controller"]
pytestmark = pytest.mark.component


@pytest.fixture
def signs(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd's end of NOTIFY_SOCKET gets from daemons that are started from now on."""
    path = str(controller.directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(0.1)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        controller.start()
        yield sock


def heard(signs: socket.socket, word: str, seconds: float) -> str:
    """The first message with that word within so many seconds; empty: none came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            text = signs.recv(4096).decode()
        except TimeoutError:
            continue
        if word in text:
            return text
    return ""


def pid(controller: Controller) -> int:
    assert controller.process is not None
    return controller.process.pid


def ctl(controller: Controller, *words: str) -> subprocess.CompletedProcess[str]:
    argv = python_argv("check_failover.admin.ctl", *words, "--config", str(controller.config))
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_loop_shows_that_it_turns(controller: Controller, signs: socket.socket) -> None:
    """READY, then a sign of life with a status for people every few seconds; none from a process that is stopped."""
    text = heard(signs, "WATCHDOG=1", 10.0)
    assert "STATUS=8 services, 0 on the standby" in text
    os.kill(pid(controller), signal.SIGSTOP)
    while heard(signs, "WATCHDOG=1", 0.3):
        pass
    assert not heard(signs, "WATCHDOG=1", 4.0)
    os.kill(pid(controller), signal.SIGCONT)
    assert heard(signs, "WATCHDOG=1", 10.0)


def test_a_daemon_that_hangs_is_reported_in_two_seconds(controller: Controller) -> None:
    """``status`` and the doctor say so, and say "restart": "start" does nothing for a unit that is active."""
    controller.start()
    os.kill(pid(controller), signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(control.SilentError):
            control.ask(controller.socket, {"verb": "status"}, 0.9)
        assert time.monotonic() - began < 2.0
        said = ctl(controller, "status")
        assert said.returncode != 0
        assert "failover-redirector runs and does not answer: restart it" in said.stderr
        found = ctl(controller, "doctor").stdout
        line = next(line for line in found.splitlines() if " failover-redirector:" in line)
        assert line.startswith("missing")
        assert line.endswith("systemctl restart failover-redirector")
    finally:
        os.kill(pid(controller), signal.SIGCONT)
    controller.stop()
    found = ctl(controller, "doctor").stdout
    assert "systemctl start failover-redirector" in found


def test_a_new_config_is_taken_without_a_restart(controller: Controller) -> None:
    """A service more and one less: the process stays, the targets stay, the other services' rules are not touched."""
    controller.start()
    controller.flip("tcp4")
    before, counters = pid(controller), controller.nft("list counter inet check_failover requests_udp4")
    text = controller.config.read_text()
    gone = next(part for part in text.split("[[service]]") if 'name = "tcp6"' in part)
    text = text.replace(f"[[service]]{gone}", "")
    text += gone_as_new(text)
    controller.config.write_text(text)
    os.kill(before, signal.SIGHUP)
    poll(lambda: {"tcp6", "fresh"} & set(controller.status()) == {"fresh"}, 15.0, "the new config is in force")
    assert pid(controller) == before
    assert controller.status()["tcp4"]["target"] == "standby"
    assert controller.ask("tcp4").startswith("standby")
    assert controller.nft("list counter inet check_failover requests_udp4") == counters
    listed = controller.nft("list table inet check_failover")
    assert "connect_fresh" in listed
    assert "tcp6" not in listed


def test_a_bad_config_changes_nothing(controller: Controller, signs: socket.socket) -> None:
    """The reason is in the log and in the status, the config in force stays; so for one that moves the state."""
    good = controller.config.read_text()
    for bad, said in (
        (good.replace("port = 7001", "port = 0"), "port"),
        (good.replace('state_dir = "', 'state_dir = "/elsewhere'), "change with a restart only"),
    ):
        controller.config.write_text(bad)
        os.kill(pid(controller), signal.SIGHUP)
        text = heard(signs, "config refused", 15.0)
        assert said in text
        assert "tcp4" in controller.status()
    assert "the config in force stays" in (controller.directory / "redirector.log").read_text()


def gone_as_new(text: str) -> str:
    part = next(part for part in text.split("[[service]]") if 'name = "tcp4"' in part)
    return "[[service]]" + part.replace('"tcp4"', '"fresh"').replace("port = 7001", "port = 7099")


def test_every_question_is_answered_while_the_program_begins_anew(controller: Controller) -> None:
    """The service socket is not away for a moment: an order in a reload meets no closed door."""
    controller.start()
    text = controller.config.read_text()
    for anew in (text + gone_as_new(text), text):
        controller.config.write_text(anew)
        os.kill(pid(controller), signal.SIGHUP)
        wanted = ("fresh" in anew, True)
        end = time.monotonic() + 20.0
        while ("fresh" in controller.status(), controller.socket.exists()) != wanted:
            assert time.monotonic() < end, "the config was not taken"


def test_a_reload_ends_no_drill(controller: Controller, signs: socket.socket) -> None:
    """It is refused with that reason; after the drill's end it is done."""
    drill = controller.say("drill", client=CLIENT, seconds=60)
    text = controller.config.read_text()
    controller.config.write_text(text + gone_as_new(text))
    os.kill(pid(controller), signal.SIGHUP)
    assert "a drill of tcp4 goes on: reload again when it is over" in heard(signs, "config refused", 15.0)
    assert controller.status()["tcp4"]["drill"]["id"] == drill["id"]
    controller.say("drill-end", id=drill["id"])
    os.kill(pid(controller), signal.SIGHUP)
    poll(lambda: "fresh" in controller.status(), 15.0, "the new config is in force")


def test_connections_survive_a_reload(controller: Controller) -> None:
    """A client asks on and on while the config is read again: every question is answered."""
    controller.start()
    argv = python_argv("tests.lab.echo", "ask", "tcp", SERVICE_ADDRESS, "7001", "2.0", "0")
    answers = []
    for number in range(20):
        if number == 5:
            os.kill(pid(controller), signal.SIGHUP)
        answers.append(controller.house.run("client", *argv, timeout=30).strip())
    assert all(answer.startswith("primary") for answer in answers), answers
    poll(lambda: "tcp4" in controller.status(), 10.0, "it answers again")
    assert Path(f"/proc/{pid(controller)}").exists()
