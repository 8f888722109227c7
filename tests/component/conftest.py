"""The redirector's ground for tests that start, kill and starve it themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.component.test_redirector import ROOT, Controller
from tests.lab.netns import House


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Controller]:
    """The namespaces with their echo servers; each test starts its redirectors itself."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.chmod(0o755)
    with House() as house:
        yield Controller(tmp_path, house, only=("tcp4", "udp4"))
