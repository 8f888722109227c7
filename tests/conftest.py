"""Rules for every test: a skip needs a reason, and is a failure on a machine with all programs.

``--strict-skips`` is what `make test` and CI use: the lab's installer has put every program there, so a test that did
not run is a hole in the suite.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A property is about what holds, not about a busy machine's speed.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
_skipped: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="a skipped test fails the run (CI)")
    parser.addoption("--pictures", metavar="DIR", help="keep the screenshots of the web interface here")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped.append(f"{report.nodeid}: {reason}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and session.config.getoption("--strict-skips") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _skipped and config.getoption("--strict-skips"):
        terminalreporter.section("skipped, which fails this run", red=True)
        for line in _skipped:
            terminalreporter.line(line)
