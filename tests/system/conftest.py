"""A site per test: two servers, controller, core, gateway; see tests.lab.site."""

from __future__ import annotations

import contextlib
import os
import tempfile
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
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where screenshots go: ``--pictures DIR``, or nowhere that lasts."""
    return Path(request.config.getoption("--pictures") or tmp_path)


@pytest.fixture(params=["nftables", "ipfilter"])
def redirect(request: pytest.FixtureRequest) -> str:
    """A test that takes it is about the decision, which is the same whoever moves the packets."""
    name: str = request.param
    return name


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter; pytest's own are for root alone."""
    with tempfile.TemporaryDirectory(prefix="cfo-site-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def make_site(place: Path) -> Iterator[Callable[..., Site]]:
    """Builds a site; it is gone when the test ends."""
    with contextlib.ExitStack() as stack:
        made: list[Site] = []

        def make(**settings: object) -> Site:
            made.append(Site(place / "site", **settings))  # type: ignore[arg-type]
            return stack.enter_context(made[-1])

        yield make
        assert [site.ipnat.refused for site in made if site.ipnat and site.ipnat.refused] == []


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
