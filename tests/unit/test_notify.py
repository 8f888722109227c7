"""The daemons' log: priorities in the journal, plain text elsewhere, no name twice, and what --debug adds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.netns import python_argv

ROOT = Path(__file__).resolve().parents[2]
SAY = """
import logging
from check_failover.notify import log_to_stderr
log_to_stderr("failover-sniffer", debug=DEBUG)
log, other = logging.getLogger("check_failover.redirector.steering"), logging.getLogger("urllib3")
log.debug("considered"); other.debug("of a library")
log.info("watching"); log.warning("refused"); log.error("failed")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a fault")
"""
PRIORITIES = {"considered": 7, "watching": 6, "refused": 4, "failed": 3, "a fault": 3}
DAEMONS = {
    "failover-sniffer": "check_failover.sniffer.daemon",
    "failover-redirector": "check_failover.redirector.daemon",
    "failover-pair": "check_failover.pair.daemon",
}


def stderr(argv: list[str], *, journal: bool, stale: bool = False) -> str:
    """What a process says on stderr: a pipe that is called the journal's, as systemd does, or any other."""
    reader, writer = os.pipe()
    status = os.fstat(reader if stale else writer)
    number = status.st_ino + stale
    env = os.environ | ({"JOURNAL_STREAM": f"{status.st_dev}:{number}"} if journal else {})
    process = subprocess.Popen(argv, stderr=writer, env=env, cwd=ROOT)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as said:
        text = said.read()
    process.wait(30)
    return text


def say(*, debug: bool) -> list[str]:
    return [sys.executable, "-c", SAY.replace("DEBUG", str(debug))]


def test_priorities_in_the_journal() -> None:
    """Each line, those of a traceback too, has its own; time and name are the journal's."""
    lines = stderr(say(debug=True), journal=True).splitlines()
    assert lines[: len(PRIORITIES)] == [f"<{number}>{text}" for text, number in PRIORITIES.items()]
    assert lines[len(PRIORITIES)] == "<3>Traceback (most recent call last):"
    assert all(line.startswith("<3>") for line in lines[len(PRIORITIES) :])


@pytest.mark.parametrize("journal", [False, True], ids=["none", "another stream's"])
def test_plain_text_elsewhere(journal: bool) -> None:
    """A terminal or a file has time, program and level; a child of a unit inherits the variable, not the stream."""
    lines = stderr(say(debug=False), journal=journal, stale=True).splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} failover-sniffer: INFO: watching", lines[0])
    assert lines[1].endswith(" failover-sniffer: WARNING: refused")


@pytest.mark.parametrize("name", DAEMONS)
def test_why_it_cannot_begin(name: str, tmp_path: Path) -> None:
    """An error with its priority, and the program's name once: by the journal or by us."""
    argv = python_argv(DAEMONS[name], "--debug", "--config", str(tmp_path / "none.toml"))
    error = f"{tmp_path}/none.toml: "
    assert stderr(argv, journal=True).startswith(f"<3>{error}")
    assert stderr(argv, journal=False).startswith(f"{name}: {error}")
