"""A site per test: two servers, controller, core, gateway; see tests.lab.site."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.load import Load
from tests.lab.site import BASE, Site


@pytest.fixture(autouse=True)
def _readable() -> Iterator[None]:
    """What the lab makes is read by the core's own user."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Builds a site; it is gone when the test ends."""
    with contextlib.ExitStack() as stack:
        for path in (tmp_path, *tmp_path.parents[:2]):
            path.chmod(0o755)

        def make(**settings: object) -> Site:
            return stack.enter_context(Site(tmp_path / "site", **settings))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def make_load(tmp_path: Path) -> Iterator[Callable[[Site], Load]]:
    """Starts clients and waits until the thresholds have something to learn from."""
    with contextlib.ExitStack() as stack:

        def make(site: Site, rate: float = 50.0) -> Load:
            load = Load(site.house, tmp_path / "load", base=BASE, attribute="description", rate=rate)
            stack.enter_context(load)
            site.wait_healthy("standby")
            site.poll(lambda: len(load.requests()) > 60, 15.0, "sixty requests answered")
            return load

        yield make
