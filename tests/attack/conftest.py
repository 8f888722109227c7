"""The table of attacks at the end of ``make attack``."""

from __future__ import annotations

import pytest

from tests.attack import ROUNDS, table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROUNDS:
        terminalreporter.section("attacks: the first release, and now")
        for line in table.lines():
            terminalreporter.line(line)
