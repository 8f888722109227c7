"""A plugin ends with 0 to 3 whatever happens to its deadline, its output, its libraries and its rights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from check_failover.checks.plugin import judge, threshold
from check_failover.model import State

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"LC_ALL": "C", "PYTHONPATH": str(ROOT)}

SLOW_TO_PRINT = """
import sys, time
from check_failover.checks import plugin
from check_failover.model import State
render = plugin.render
def slow(outcome):
    time.sleep(0.6)
    return render(outcome)
plugin.render = slow
def check(argv):
    plugin.deadline(0.3, "server")
    SLOW
    return plugin.Outcome(State.OK, "fine")
plugin.run(check, [])
"""
SWALLOWING = "for _ in range(3):\n        try: time.sleep(5)\n        except Exception: pass"


def python(code: str, *, stdin: int | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT, stdin=stdin)


@pytest.mark.parametrize(("slow", "code", "said"), [("pass", 0, "OK: fine"), (SWALLOWING, 2, "no answer within 0.3 s")])
def test_the_deadline_ends_with_the_check(slow: str, code: int, said: str) -> None:
    """No alarm comes while the output is written; and no library that catches all errors swallows it."""
    done = python(SLOW_TO_PRINT.replace("SLOW", slow))
    assert (done.returncode, done.stderr) == (code, "")
    assert said in done.stdout


def check(name: str, *argv: str, end: str = "", before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run a check by its entry point; ``end``: the shell's redirections."""
    code = f"import sys; {before}; from check_failover.checks.entry import {name}; sys.argv[0] = 'check'; {name}()"
    words = ["/bin/sh", "-c", f'exec "$@" {end}', "sh", sys.executable, "-c", code, *argv]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT)


@pytest.mark.parametrize("end", [">/dev/full", ">&-"])
@pytest.mark.parametrize("argv", [["--socket", "/nowhere", "--service", "x"], ["--help"], ["--nonsense"]])
def test_no_output_is_unknown(end: str, argv: list[str]) -> None:
    """A check that can say nothing ends with 3, without a traceback."""
    done = check("redirect", *argv, end=end)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "package"), [("ldap", "ldap3"), ("dns", "dns"), ("http", "requests")])
def test_a_missing_package_is_unknown(name: str, package: str) -> None:
    """An import that fails is a fault of this machine."""
    done = check(name, "-H", "127.0.0.1", before=f"sys.modules[{package!r}] = None")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("UNKNOWN: cannot start: ")
    assert package in done.stdout


DEAD_RESOLVER = "import socket, time; socket.getaddrinfo = lambda *a, **k: time.sleep(20)"


def test_a_dead_resolver_is_within_the_deadline() -> None:
    """``-t`` counts from the start, look-ups included; a name without an address is no fault of the server."""
    began = time.monotonic()
    done = check("tcp", "-H", "ldap.example.org", "-p", "389", "-t", "1", before=DEAD_RESOLVER)
    assert done.returncode == 3
    assert "cannot look up 'ldap.example.org'" in done.stdout
    assert time.monotonic() - began < 4.0


def test_no_permission_on_the_socket_is_unknown(tmp_path: Path) -> None:
    """It says nothing about the daemon: CRITICAL would be a false alarm."""
    place = tmp_path / "run"
    place.mkdir(mode=0o700)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    drop = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    argv = ["--socket", str(place / "redirector.sock"), "--service", "x"]
    denied = check("redirect", *argv, before=f"import check_failover.checks.redirect; {drop}")
    assert (denied.returncode, denied.stderr) == (3, "")
    assert "Permission denied" in denied.stdout
    assert check("redirect", *argv).returncode == 2


@pytest.mark.parametrize(
    ("value", "text", "alerts"),
    [
        (0.4, ".5", False), (0.6, ".5", True), (-1, ".5", True), (5, "5:", False), (4.9, "5:", True),
        (9, "~:10", False), (-99, "~:10", False), (11, "~:10", True), (1.5, "@1:2", True), (3, "@1:2", False),
        (-0.5, "-1:-.1", False), (0, "0", False), (1, "0:0", True),
    ],
)  # fmt: skip
def test_ranges(value: float, text: str, alerts: bool) -> None:
    """The guidelines' ranges (2.5), with and without digits before the point."""
    assert judge(value, threshold(text), None) is (State.WARNING if alerts else State.OK)
    assert judge(value, None, threshold(text)) is (State.CRITICAL if alerts else State.OK)
