"""For ``bench_rivals``, with nothing wrong: what each way to the server carries, and the project's planned work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.full_load import Carried, full_load
from tests.bench.rivals import Rival
from tests.lab.load import PATIENCE, Load
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, poll
from tests.lab.site import BASE, Site

CLIENTS, SECONDS = 8, 4.0  # of the full load


@dataclass(frozen=True)
class Way:
    """Many clients at once, and a lone one, beside the same one with nothing but a router between."""

    full: Carried
    lone: Carried
    direct: Carried


HEAD = ("", "connections/s", "lone request, ms", "added, ms")


def ways_row(name: str, ways: Sequence[Way]) -> tuple[str, ...]:
    """Medians of what was measured in several rounds."""
    carried = statistics.median(way.full.per_second for way in ways)
    lone = 1000 * statistics.median(way.lone.median for way in ways)
    added = 1000 * statistics.median(way.lone.median - way.direct.median for way in ways)
    return (name, f"{carried:.0f}", f"{lone:.2f}", f"{added:.2f}")


def way(rival: Rival, directory: Path) -> Way:
    """Measure it. Raises AssertionError when a request failed."""
    with rival.open(directory) as ground:
        full = full_load(ground.house, SERVICE_ADDRESS, 389, clients=CLIENTS, seconds=SECONDS, base=BASE)
        lone, direct = (
            full_load(ground.house, address, 389, clients=1, seconds=SECONDS, base=BASE)
            for address in (SERVICE_ADDRESS, PRIMARY)
        )
    return Way(full, lone, direct)


def planned_work(directory: Path, rate: float, sessions: int) -> str:
    """A drain and a fail-back under load, in a line: requests that failed, and the longest wait."""
    with Site(directory, kannel=False) as site:
        client = Load(site.house, directory / "load", base=BASE, attribute="description", rate=rate, kept=sessions)
        with client as load:
            site.wait_healthy("standby")
            at = time.monotonic()
            site.ctl("drain", "ldap")
            poll(lambda: load.answered_by("standby", at), 10.0, "an answer from the standby")
            poll(lambda: "[ ]" not in site.ctl("status", "ldap"), 30.0, "ready to fail back", every=0.5)
            back = time.monotonic()
            site.ctl("fail-back", "ldap")
            poll(lambda: load.answered_by("primary", back), 10.0, "an answer from the primary")
            time.sleep(PATIENCE)  # what was asked in the last moment ends
            requests = load.requests(at)
    failed, longest = sum(r.server is None for r in requests), max(r.waited for r in requests)
    return f"drain and fail-back: {failed} of {len(requests)} failed, longest wait {longest:.2f}"
