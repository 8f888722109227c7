"""The event handler: what the core says becomes which order, over a real control socket."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import listening, rights
from check_failover.handlers import event
from check_failover.peer import Peer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "handlers" / "failover_event"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
VERDICT = "detector=2 probes=2 probes_failed=2 asked=12 answered=0 standby_ok=1"


class Redirector:
    """A control socket that notes what it is asked and answers what it is told."""

    def __init__(self, path: Path, reply: dict[str, Any] | None = None) -> None:
        self.path, self.asked = path, list[dict[str, Any]]()
        self.reply = reply or {"flipped": True, "reason": "flip", "text": "ldap: primary -> standby", "id": "1"}
        self.server = listening.Server(path, rights.OF_REDIRECTOR, self._handle, lambda _verb, _peer: None)
        self.server.start()

    def _handle(self, message: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        self.asked.append(message)
        return self.reply


@pytest.fixture
def redirector(tmp_path: Path) -> Iterator[Redirector]:
    """A redirector that flips."""
    made = Redirector(tmp_path / "r.sock")
    yield made
    made.server.close()


def run(redirector: Redirector, state: str, state_type: str, *more: str) -> int:
    """The handler with a service's macros."""
    base = ["--service", "ldap", "--state", state, "--state-type", state_type, "--socket", str(redirector.path)]
    return event.main([*base, *more])


def test_hard_critical_orders_a_fail_over(redirector: Redirector, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict's perfdata goes along as it is; what was done is one line on stdout."""
    assert run(redirector, "CRITICAL", "HARD", "--perfdata", VERDICT, "--downtime", "0") == 0
    assert redirector.asked == [
        {"verb": "fail-over", "service": "ldap", "by": "nagios", "downtime": False, "perfdata": VERDICT}
    ]
    assert capsys.readouterr().out == "ldap: fail-over: done: ldap: primary -> standby\n"


@pytest.mark.parametrize(
    ("state", "state_type"),
    [("CRITICAL", "SOFT"), ("WARNING", "HARD"), ("UNKNOWN", "HARD"), ("3", "HARD"), ("2", "SOFT")],
)
def test_anything_less_moves_nothing(
    redirector: Redirector, state: str, state_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Soft problems, warnings, stale results: the redirector is not even asked."""
    assert run(redirector, state, state_type, "--perfdata", VERDICT) == 0
    assert redirector.asked == []
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("state_type", ["SOFT", "HARD"])
def test_ok_withdraws(redirector: Redirector, state_type: str) -> None:
    """A recovery withdraws an order that is still pending; a soft one too."""
    assert run(redirector, "OK", state_type) == 0
    assert redirector.asked == [{"verb": "recovered", "service": "ldap", "by": "nagios"}]


@pytest.mark.parametrize("option", ["--downtime", "--host-downtime"])
def test_downtime_goes_along(redirector: Redirector, option: str) -> None:
    """A downtime of the service or of its host is a fact of the order; policy decides what it means."""
    run(redirector, "CRITICAL", "HARD", "--perfdata", VERDICT, option, "2")
    assert redirector.asked[0]["downtime"] is True


@pytest.mark.parametrize(
    ("state", "age", "expected"),
    [
        ("OK", 30, True),
        ("WARNING", 30, True),
        ("CRITICAL", 30, False),
        ("UNKNOWN", 30, None),
        ("OK", 3600, None),
        ("", 30, None),
    ],
)
def test_a_foreign_check_is_confirmed_by_the_core(
    redirector: Redirector, state: str, age: float, expected: bool | None
) -> None:
    """A check of the site's own: the core's attempts count; the standby is believed only when checked lately."""
    checked = str(int(time.time() - age))
    run(
        redirector,
        "CRITICAL",
        "HARD",
        "--own-check",
        "--perfdata",
        "time=0.2s",
        "--standby-state",
        state,
        "--standby-checked",
        checked,
    )
    assert redirector.asked[0]["facts"] == {"detector": "core", "standby_ok": expected, "downtime": False}
    assert "perfdata" not in redirector.asked[0]


def test_an_order_without_facts_claims_nothing(redirector: Redirector) -> None:
    """CRITICAL without the sniffer's facts may be a check that could not run: the redirector is to look for itself."""
    run(redirector, "CRITICAL", "HARD", "--perfdata", "time=0.2s", "--standby-state", "OK")
    assert redirector.asked == [{"verb": "fail-over", "service": "ldap", "by": "nagios", "downtime": False}]


def test_a_standby_that_was_never_checked_is_unknown(redirector: Redirector) -> None:
    """Nagios's macros call a pending service OK, with 0 as the time of its last check."""
    run(redirector, "CRITICAL", "HARD", "--own-check", "--standby-state", "OK", "--standby-checked", "0")
    assert redirector.asked[0]["facts"]["standby_ok"] is None


def test_a_refusal_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused flip is no failure of the handler; its reason stands on stdout."""
    refusing = Redirector(
        tmp_path / "r.sock", {"flipped": False, "reason": "hold", "text": "held by joe: disks", "id": "1"}
    )
    assert run(refusing, "CRITICAL", "HARD", "--perfdata", VERDICT) == 0
    refusing.server.close()
    assert capsys.readouterr().out == "ldap: fail-over: not done (hold): held by joe: disks\n"


def test_fail_back_is_ordered_by_a_person_only(redirector: Redirector, capsys: pytest.CaptureFixture[str]) -> None:
    """OK typed in the web UI is the order; the redirector's own "on the primary" is not, however late it arrives."""
    assert run(redirector, "OK", "HARD", "--fail-back", "--output", "disks replaced") == 0
    assert run(redirector, "OK", "HARD", "--fail-back", "--output", "OK: on the primary since 10:02") == 0
    assert run(redirector, "WARNING", "HARD", "--fail-back", "--output", "on the standby: not proven") == 0
    assert run(redirector, "CRITICAL", "HARD", "--fail-back") == 0
    assert redirector.asked == [{"verb": "fail-back", "service": "ldap", "by": "nagios"}]
    assert "the redirector's own result" in capsys.readouterr().out


def test_a_redirector_that_restarts_is_asked_again(tmp_path: Path) -> None:
    """The order survives a restart of the redirector."""
    path, started = tmp_path / "r.sock", list[Redirector]()
    timer = threading.Timer(0.4, lambda: started.append(Redirector(path)))
    timer.start()
    code = event.main(["--service", "a", "--state", "CRITICAL", "--state-type", "HARD", "--socket", str(path)])
    timer.join()
    started[0].server.close()
    assert (code, len(started[0].asked)) == (0, 1)


def test_a_redirector_that_stays_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After its patience the handler says so and ends non-zero, which is what nagios.log shows."""
    argv = ["--service", "a", "--state", "2", "--state-type", "HARD", "--patience", "0.2"]
    start = time.monotonic()
    assert event.main([*argv, "--socket", str(tmp_path / "none.sock")]) == 1
    assert time.monotonic() - start < 2
    assert "fail-over NOT DONE" in capsys.readouterr().out


def test_no_is_not_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A redirector that says no is alive: no second question."""
    calls = []
    server = listening.Server(
        tmp_path / "r.sock",
        rights.OF_REDIRECTOR,
        lambda _m, _p: {},
        lambda verb, _p: calls.append(verb) or "not you",
    )
    server.start()
    argv = ["--service", "a", "--state", "2", "--state-type", "HARD", "--socket", str(tmp_path / "r.sock")]
    assert event.main(argv) == 1
    server.close()
    assert calls == ["fail-over"]
    assert "not you" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--service", "a"], "--state is missing"),
        (["--stat", "OK"], "unknown option --stat"),
        (["ldap"], "not an option"),
        (["--service"], "--service needs a value"),
        (["--service", "a", "--state", "DOWN", "--state-type", "HARD"], "--state DOWN: not one of"),
        (["--service", "a", "--state", "OK", "--state-type", "x"], "not SOFT or HARD"),
        (["--help"], "--state-type TYPE"),
        (["-V"], "failover_event 0"),
    ],
)
def test_the_command_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistakes are one line and exit code 3; -h and -V exit 3 as plugins do."""
    assert event.main(argv) == 3
    assert said in capsys.readouterr().out


def test_the_script_is_light(redirector: Redirector) -> None:
    """The shipped script imports nothing that costs more than the interpreter's own start, and works."""
    code = (
        "import sys; sys.argv = ['failover_event'] + sys.argv[2:]\n"
        f"try: exec(compile(open({str(SCRIPT)!r}).read(), 'failover_event', 'exec'))\n"
        "except SystemExit as end: print(end.code, *sorted(sys.modules))\n"
    )
    argv = ["--service", "ldap", "--state", "2", "--state-type", "HARD", "--socket", str(redirector.path)]
    done = subprocess.run(
        [sys.executable, "-c", code, "-", *argv],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    modules = set(done.stdout.splitlines()[-1].split())
    heavy = {
        "argparse",
        "dataclasses",
        "pathlib",
        "ipaddress",
        "typing",
        "subprocess",
        "tomllib",
        "jsonschema",
        "requests",
    }
    assert "0" in modules
    assert not modules & heavy
    assert redirector.asked[0]["verb"] == "fail-over"


def test_the_script_may_be_installed() -> None:
    """Its first line is one that installers turn into the environment's own interpreter; it can be executed."""
    for script in (ROOT / "handlers").iterdir():
        if script.is_file():
            assert script.read_text().splitlines()[0] == "#!/usr/bin/env python3"
            assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("notice", "begin"),
    [("DOWNTIMESTART", True), ("DOWNTIMEEND", False), ("DOWNTIMECANCELLED", False), ("DowntimeRemoved", False)],
)
def test_a_downtime_is_told(redirector: Redirector, notice: str, begin: bool) -> None:
    """As a notification command it tells whose downtime began or ended; a host's has no description."""
    base = ["--notice", notice, "--host", "ldap1", "--socket", str(redirector.path)]
    assert event.main([*base, "--by", "ada", "--description", "ldap primary"]) == 0
    assert event.main([*base, "--by", ""]) == 0
    asked = {"verb": "downtime", "host": "ldap1", "begin": begin}
    assert redirector.asked == [
        {**asked, "description": "ldap primary", "by": "ada"},
        {**asked, "description": "", "by": "nagios"},
    ]


def test_other_notices_are_nobodys_downtime(redirector: Redirector, capsys: pytest.CaptureFixture[str]) -> None:
    """A contact that gets more than downtimes by mistake moves nothing; without a host it is a wrong command line."""
    for notice in ("PROBLEM", "RECOVERY", "ACKNOWLEDGEMENT", "CUSTOM", "FLAPPINGSTART"):
        assert event.main(["--notice", notice, "--host", "ldap1", "--socket", str(redirector.path)]) == 0
        assert "nothing to do" in capsys.readouterr().out
    assert event.main(["--notice", "DOWNTIMESTART", "--socket", str(redirector.path)]) == 3
    assert redirector.asked == []
