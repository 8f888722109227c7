"""The frame of the plugins, and those that ask the daemons. What holds for every one: test_conventions.py."""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.checks import plugin
from check_failover.checks.plugin import Outcome, Perf, number, render
from check_failover.checks.talk import unescape
from check_failover.control import Message
from check_failover.listening import Server
from check_failover.model import State
from check_failover.peer import Peer
from tests.lab.guidelines import first_line, perfdata
from tests.lab.netns import python_argv

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_")} | {"LC_ALL": "C", "PYTHONPATH": "."}
    return subprocess.run(
        python_argv("check_failover.checks.entry", name, *argv),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def proper(done: subprocess.CompletedProcess[str], state: State) -> str:
    """The output keeps the rules and says ``state``; returns the first line."""
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == state, done.stdout + done.stderr
    return first_line(done.stdout, state)


@pytest.mark.parametrize(
    ("name", "argv", "said"),
    [
        ("http", ["--status", "99999"], "argument --status: '99999' is not a list of statuses such as 200,401"),
        ("http", ["--status", "200,x"], "argument --status: '200,x' is not a list of statuses such as 200,401"),
        ("ldap", ["--base", "example"], "base: 'example' is not a DN"),
        ("ldap", ["--base", "dc=example", "--filter", "(uid=joe"], "filter: '(uid=joe' is not a search filter"),
        ("ldap", ["--base", "dc=example", "--filter", "uid"], "filter: 'uid' is not a search filter"),
    ],
)
def test_a_question_that_cannot_be_asked_is_unknown(name: str, argv: list[str], said: str) -> None:
    """It is the caller's mistake, and no server's fault."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run(name, "-H", "127.0.0.1", "-p", str(silent.getsockname()[1]), *argv, "-t", "1")
        assert said in proper(done, State.UNKNOWN) + done.stdout


def test_escapes_become_bytes() -> None:
    """What is none stays as it is."""
    assert unescape(r"\x41\r\n\0\xff\\n \q\xZZ\x4") == b"A\r\n\0\xff\\n \\q\\xZZ\\x4"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1e-7, "0"), (0.25, "0.25"), (1e9, "1000000000"), (-0.0, "0"), (12.0, "12"), (0.000123, "0.000123")],
)
def test_numbers_have_no_exponent(value: float, text: str) -> None:
    """``1e-05`` is no number to a core."""
    assert number(value) == text


def test_output_is_kept_in_order() -> None:
    """A remote string cannot begin perfdata or a second line; what is too long goes to the long output whole."""
    said = "x" * 90 + " | a=1\nb\x00"
    lines = render(
        Outcome(State.CRITICAL, said, (Perf("gap p99", 0.5, "s", "1", "", "0"), Perf("u", None)))
    ).splitlines()
    assert len(lines) == 2
    text, perf = lines[0].split(" | ")
    assert len(text) == 80
    assert text.endswith("...")
    assert perf == "'gap p99'=0.5s;1;;0 u=U"
    assert lines[1] == "CRITICAL: " + "x" * 90 + " / a=1 b"


@pytest.mark.parametrize(
    "text",
    ["a=", "a=1;x", "a=1e5", "a=1ms", "a=1.", "a b=1", "a=1,b=2", "a=1;;;~", "a'b=1", "=1", "a=1 a=2", "a=1;1:2:3",
     "the_same_19_characters_1=1 the_same_19_characters_2=1"],
)  # fmt: skip
def test_what_is_no_perfdata(text: str) -> None:
    """The reader that judges the plugins is strict."""
    with pytest.raises(AssertionError):
        perfdata(text)


def test_what_is_perfdata() -> None:
    """All that the guidelines allow and we use."""
    labels = perfdata("time=0.5s;@1:2;~:3;0;10 'two words'=-1 'it''s'=U;;5: share=5%;;;0 n=7c")
    assert list(labels) == ["time", "two words", "it's", "share", "n"]


@pytest.mark.parametrize("text", ["5:1", "5:1:2", "1e5", "", "@", ":", "nan", "-5", "1,5", " 1", "1.", "~", "inf:"])
def test_what_is_no_range(text: str) -> None:
    """A range that the guidelines do not know is a wrong option, and none that a core cannot read is in perfdata."""
    with pytest.raises(argparse.ArgumentTypeError):
        plugin.threshold(text)


@pytest.mark.parametrize("text", ["10", "10:", "~:10", "10:20", "@10:20", "-5:-1", "0.5", "@~:-1"])
def test_what_is_a_range(text: str) -> None:
    """As the guidelines have them, 2.5."""
    assert plugin.threshold(text) == text


@pytest.mark.parametrize(
    ("value", "warning", "critical", "state"),
    [
        (5, None, None, State.OK),
        (5, "10", "20", State.OK),
        (15, "10", "20", State.WARNING),
        (25, "10", "20", State.CRITICAL),
        (5, "10:", None, State.WARNING),
        (-1, "~:10", None, State.OK),
        (5, "@1:10", None, State.WARNING),
        (None, "10", "20", State.OK),
    ],
)
def test_ranges(value: float | None, warning: str | None, critical: str | None, state: State) -> None:
    """Ranges as the guidelines define them."""
    assert plugin.judge(value, warning, critical) is state


def test_crash_of_our_own_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception nobody thought of is UNKNOWN in one line."""

    def check(_argv: object) -> Outcome:
        raise KeyError("boo|m")

    with pytest.raises(SystemExit) as end:
        plugin.run(check, [])
    assert end.value.code == 3
    assert capsys.readouterr().out == "UNKNOWN: internal error: KeyError: 'boo/m'\n"


# ---------------------------------------------------------------- against daemons' sockets

STATS = {
    "request_rate": 50.2,
    "reply_rate": 50.0,
    "unanswered": 0,
    "oldest_unanswered": 0.0,
    "p50": 0.001,
    "p99": 0.004,
    "error_share": 0.1,
    "requests": 100,
    "replies": 100,
    "rescued": 0,
    "drops": 0,
}
SNIFFER: Message = {"target": "primary", "verdict": "ok", "blind": None, "text": "", "stats": STATS}
REDIRECTOR: Message = {
    "target": "primary",
    "kernel": "primary",
    "state": 0,
    "text": "on the primary 10.0.0.11:389",
    "hold": None,
    "problem": None,
    "protocol": "tcp",
    "address": "192.0.2.10:389",
    "primary": "10.0.0.11:389",
    "standby": "10.0.0.12:389",
    "story": ["tcp 192.0.2.10:389: primary 10.0.0.11:389, standby 10.0.0.12:389"],
    "activity": {"asked": 10, "answered": 10},
}


class Daemons:
    """Both sockets, with a status that the test may change. Our own server class, a scripted answer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sniffer, self.redirector = dict(SNIFFER), dict(REDIRECTOR)
        self.readings: list[Message] = []
        self._servers: list[Server] = []

    def start(self, name: str) -> None:
        def handle(_message: Message, _peer: Peer) -> Message:
            status = self.sniffer if name == "sniffer" else self.redirector
            if name == "redirector" and self.readings:
                status = {**status, "activity": self.readings.pop(0)}
            return {"services": {"ldap": status}}

        server = Server(self.directory / f"{name}.sock", frozenset({"status"}), handle, lambda _verb, _peer: None)
        server.start()
        self._servers.append(server)

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    config = (ROOT / "tests" / "fixtures" / "config" / "good.toml").read_text()
    (tmp_path / "config.toml").write_text(re.sub(r'run_dir = "[^"]*"', f'run_dir = "{tmp_path}"', config))
    both = Daemons(tmp_path)
    yield both
    both.close()


def ask(daemons: Daemons, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return run(name, "--service", "ldap", "--config", str(daemons.directory / "config.toml"), *argv)


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, State.OK, "50.2 requests/s to the primary"),
        ({"verdict": "suspect"}, State.WARNING, "50.2 requests/s"),
        ({"verdict": "failed", "text": "no answer"}, State.CRITICAL, "no answer"),
        ({"verdict": "blind", "blind": "cl0 is down"}, State.UNKNOWN, "blind: cl0 is down"),
    ],
)
def test_traffic_from_the_sniffer(daemons: Daemons, changes: Message, state: State, said: str) -> None:
    """The sniffer's condition becomes the state, its numbers perfdata."""
    daemons.sniffer |= changes
    daemons.start("sniffer")
    done = ask(daemons, "traffic")
    first = proper(done, state)
    assert said in done.stdout
    for part in ("requests=50.2", "gap_p99=0.004s", "errors=10%"):
        assert part in first


def test_traffic_thresholds(daemons: Daemons) -> None:
    """Slow replies and a share of errors are worth a warning of the site's own measure."""
    daemons.start("sniffer")
    proper(ask(daemons, "traffic", "-w", "0.001", "-c", "1"), State.WARNING)
    proper(ask(daemons, "traffic", "--critical-errors", "5"), State.CRITICAL)


@pytest.mark.parametrize(
    ("readings", "state"),
    [
        ([(100, 90), (120, 110)], State.OK),
        ([(100, 90), (100, 90)], State.OK),
        ([(100, 90), (120, 90)], State.CRITICAL),
        ([(100, 90), (3, 2)], State.UNKNOWN),
    ],
)
def test_traffic_from_the_counters(daemons: Daemons, readings: list[tuple[int, int]], state: State) -> None:
    """Without the sniffer two readings of the NAT's counters tell whether clients get answers."""
    daemons.readings = [{"asked": asked, "answered": answered} for asked, answered in readings]
    daemons.start("redirector")
    proper(ask(daemons, "traffic", "--interval", "0.05"), state)


def test_traffic_without_anybody(daemons: Daemons) -> None:
    """Nobody to ask is our own fault: UNKNOWN."""
    proper(ask(daemons, "traffic"), State.UNKNOWN)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, State.OK),
        ({"target": "standby", "kernel": "standby", "state": 1, "text": "on the standby"}, State.WARNING),
        ({"kernel": "standby"}, State.CRITICAL),
        ({"kernel": None}, State.CRITICAL),
        ({"state": 2, "text": "fail-over pending, hold"}, State.CRITICAL),
    ],
)
def test_redirect(daemons: Daemons, changes: Message, state: State) -> None:
    """Kernel and intent must agree; the redirector's own judgement is taken otherwise."""
    daemons.redirector |= changes
    daemons.start("redirector")
    proper(ask(daemons, "redirect"), state)


def test_redirect_without_the_redirector(daemons: Daemons) -> None:
    """A redirector that is away flips nothing: CRITICAL."""
    first = proper(ask(daemons, "redirect"), State.CRITICAL)
    assert "away" in first
