"""check_failover_sms against a real spool and a real Kannel: what it says while the gateway stops and comes back."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from check_failover.model import State
from check_failover.sms.flush import sender
from check_failover.sms.spool import FAILED, QUEUE, SENT, Spool, Text, key_of
from tests.component.test_kannel import ENVIRONMENT, config, of, put
from tests.lab.kannel import Kannel
from tests.lab.netns import python_argv
from tests.lab.scripted import Scripted, closed_port, silent
from tests.lab.smsd import Smsd

pytestmark = pytest.mark.component
PLUGIN = "check_failover.handlers.check_sms"


def ask(directory: Path, *argv: str) -> tuple[State, str]:
    """State and whole output."""
    done = subprocess.run(
        python_argv(PLUGIN, "--config", str(directory / "config.toml"), *argv),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return State(done.returncode), done.stdout


def text(spool: Spool, folder: str, **what: object) -> None:
    """A text in a folder, as the sender would have left it."""
    made = Text(key_of(), "+491701", "words", **{"at": time.time(), **what})  # type: ignore[arg-type]
    spool.put(made)
    if folder != QUEUE:
        spool.settle(made, folder)


def test_a_gateway_that_stops_and_comes_back(tmp_path: Path) -> None:
    """Up; without its message centre; gone, a text waits; back, the text has left. Asking sends nothing."""
    with Kannel(tmp_path / "kannel") as kannel:
        loaded = config(tmp_path, of(kannel))
        state, said = ask(tmp_path)
        assert state is State.OK
        assert said.startswith("OK: kannel: Kannel answers, 1 of 1 message centres connected; 0 waiting | ")
        kannel.network_down()
        state, said = ask(tmp_path)
        assert state is State.CRITICAL
        assert said.startswith("CRITICAL: kannel: no message centre is connected")
        kannel.stop()
        spool = put(tmp_path, "waits")
        assert sender(loaded).run(stay=0) == 1
        state, said = ask(tmp_path)
        assert state is State.CRITICAL
        assert "refused" in said
        assert " gateways=0;;;0;1 waiting=1;;;0 " in said
        assert "\nwaits: +491701, tried 1 times: " in said
        kannel.start()
        state, said = ask(tmp_path)
        assert state is State.OK
        assert "1 waiting" in said
        assert kannel.received() == []
        assert sender(loaded).run(stay=0) == 0
        assert ask(tmp_path)[0] is State.OK
        assert kannel.wait_received(1) == [("+491701", "waits")]
        assert spool.count(SENT) == 1


def test_one_of_two_gateways_is_a_warning(tmp_path: Path) -> None:
    """Texts still leave, by the second one."""
    with Smsd(tmp_path / "smsd") as smsd:
        config(tmp_path, {"gateway": "kannel", "url": f"http://127.0.0.1:{closed_port()}/"}, smsd.options)
        state, said = ask(tmp_path)
    assert state is State.WARNING
    assert "second smstools: " in said
    assert " gateways=1;;;0;2 " in said


def test_a_silent_gateway_is_critical_in_time(tmp_path: Path) -> None:
    """It accepts the connection and says nothing: -t ends it."""
    with Scripted(silent) as server:
        config(tmp_path, {"gateway": "kannel", "url": f"http://127.0.0.1:{server.port}/"})
        state, said = ask(tmp_path, "-t", "1")
    assert (state, said) == (State.CRITICAL, "CRITICAL: SMS gateway: no answer within 1 s\n")


def test_the_spool(tmp_path: Path) -> None:
    """Age and number against ranges, texts refused for good, without receipt; what a second gateway told is told."""
    outgoing = tmp_path / "outgoing"
    outgoing.mkdir()
    config(tmp_path, {"gateway": "smstools", "outgoing": str(outgoing)})
    spool = Spool(tmp_path / "spool")
    text(spool, QUEUE, at=time.time() - 100)
    assert ask(tmp_path)[0] is State.WARNING
    assert ask(tmp_path, "-c", "90")[0] is State.CRITICAL
    assert ask(tmp_path, "-w", "200")[0] is State.OK
    assert ask(tmp_path, "-w", "200", "--critical-waiting", "0")[0] is State.CRITICAL
    text(spool, SENT, gateway="second kannel", receipt="no receipt in 1 s", sent_at=time.time())
    assert ask(tmp_path, "-w", "200")[0] is State.OK
    text(spool, SENT, gateway="smstools", receipt="no receipt in 1 s", sent_at=time.time())
    state, said = ask(tmp_path, "-w", "200")
    assert state is State.WARNING
    assert "WARNING: 1 waiting for 10" in said
    assert ", 1 without receipt" in said
    assert ask(tmp_path, "-w", "200", "--warning-unconfirmed", "1")[0] is State.OK
    text(spool, FAILED)
    state, said = ask(tmp_path, "-w", "200", "--warning-unconfirmed", "1")
    assert state is State.WARNING
    assert "1 refused" in said
    for path in (tmp_path / "spool" / FAILED).iterdir():
        os.utime(path, (0, time.time() - 4000))
    assert ask(tmp_path, "-w", "200", "--warning-unconfirmed", "1")[0] is State.OK


def test_a_spool_nobody_can_write(tmp_path: Path) -> None:
    """A file where the spool belongs: no text can be stored. Without [sms] there is nothing to check."""
    (tmp_path / "outgoing").mkdir()
    config(tmp_path, {"gateway": "smstools", "outgoing": str(tmp_path / "outgoing")})
    (tmp_path / "spool").write_text("")
    state, said = ask(tmp_path)
    assert state is State.UNKNOWN
    assert str(tmp_path / "spool") in said
    written = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(written.replace(written[written.index("[sms]") : written.index("[[")], ""))
    state, said = ask(tmp_path)
    assert state is State.UNKNOWN
    assert "[sms] is missing" in said
