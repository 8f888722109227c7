"""What ends although something breaks: a probe by an exception, the connection to a pair's other controller."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from check_failover import checks
from check_failover.checks import ProbeError, probe_function
from check_failover.control import ControlError
from check_failover.model import CheckSpec, Endpoint
from check_failover.pair import daemon

SERVER = Endpoint("127.0.0.1", 1)


def test_an_exception_in_a_probe_is_a_failed_probe(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a line in the log. A fault of the configuration stays one: UNKNOWN."""
    broken = ModuleType("broken_probe")
    monkeypatch.setitem(sys.modules, "broken_probe", broken)
    monkeypatch.setitem(checks.PROBES, "tcp", "broken_probe")

    def probe(_server: Endpoint, options: dict[str, object], _timeout: float) -> object:
        if not options:
            raise ProbeError("no such file")
        return options["missing\n|"]

    broken.probe = probe  # type: ignore[attr-defined]
    found = probe_function(CheckSpec("tcp"))(SERVER, {"a": 1}, 1.0)
    assert not found.passed
    assert "KeyError" in found.text
    assert "\n" not in found.text
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [(logging.ERROR, False)]
    with pytest.raises(ProbeError):
        probe_function(CheckSpec("tcp"))(SERVER, {}, 1.0)


def shell(text: str) -> list[str]:
    """As ssh's argument list: the peer is the last but one."""
    return ["/bin/sh", "-c", text, "peer", "command"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo first >&2; echo 'Permission denied' >&2; exit 255", "peer: Permission denied"),
        ("exit 0", "peer: the connection has ended"),
        ("exec sleep 60", "peer: silent for 0.3 s"),
        ("printf {; exec tr '\\0' x < /dev/zero", "peer: a line that does not end"),
        ("echo This account is not available.", "peer: This account is not available."),
        ("exec yes >&2", "peer: y"),
    ],
)
def test_the_other_controllers_line_ends(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    """In one line that says why; ssh is gone then."""
    monkeypatch.setattr(daemon, "SILENCE", 0.3)
    began = time.monotonic()
    with pytest.raises(ControlError) as caught:
        list(daemon.lines(shell(text)))
    assert str(caught.value) == said
    assert time.monotonic() - began < 5.0


def test_each_line_of_the_other_controller(tmp_path: Path) -> None:
    """Those that come together: the newest. Its children end with it."""
    pid = tmp_path / "pid"
    lines = daemon.lines(
        shell(f"sleep 60 & echo $! > {pid}; echo '{{\"a\": 1}}'; sleep 0.3; echo '{{\"a\": 2}}'; wait")
    )
    assert [next(lines), next(lines)] == [{"a": 1}, {"a": 2}]
    lines.close()  # type: ignore[attr-defined]
    status = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_without_ssh() -> None:
    """One line, no traceback."""
    with pytest.raises(ControlError, match="/nonexistent: cannot run: No such file or directory"):
        list(daemon.lines(["/nonexistent", "peer", "command"]))
