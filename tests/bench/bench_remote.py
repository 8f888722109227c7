"""How long a verdict needs to the core, back as an order, and to the flip: each way to a core on another machine.

    python -m tests.bench.bench_remote [--runs 5]

Two slapd, the controller and a real Nagios in a namespace of its own (the first row: on the controller), joined by the
way's real daemons. Milliseconds from the sniffer's verdict, medians of the runs and the longest to the flip: until
Nagios read the result, until it started the event handler, until the redirector had the order, until the flip was done.
Icinga 2's log has whole seconds only, so of it the last two are known: on the controller, and as two masters in an HA
zone with the controller as their agent.
The fault is a crash; each run fails back by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.lab.icinga import Icinga
from tests.lab.icinga_zone import Zone
from tests.lab.load import Load
from tests.lab.nagios import Nagios
from tests.lab.netns import poll
from tests.lab.remote import RemoteCore, settings
from tests.lab.site import BASE, Site

# results, way back, whether ssh keeps its connection
WAYS = (
    ("command_file", "local", False),
    ("nsca", "nrpe", False),
    ("nsca", "ssh", True),
    ("nsca", "ssh", False),
    ("nrdp", "nrpe", False),
    ("nrdp", "ssh", True),
    ("icinga2", "local", False),
    ("icinga2", "agent", False),
)
NAMES = {("ssh", True): "ssh, connection kept", ("ssh", False): "ssh, a new one", ("local", False): "same machine"}
ICINGA = {"local": "icinga2", "agent": "icinga2 zone"}
Row = tuple[float, float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="of each way; one takes about six seconds")
    arguments = parser.parse_args()
    os.umask(0o022)
    print(
        f"{'results':<14}{'orders':<22}{'core has it':>12}{'handler':>10}{'order':>10}{'flip':>10}{'longest':>10}  ms"
    )
    for results, way, shared in WAYS:
        rows = measure(results, way, arguments.runs, shared=shared)
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        shown = "".join(
            f"{'-' if math.isnan(value) else round(1000 * value):>{width}}"
            for value, width in zip(medians, (12, 10, 10, 10), strict=True)
        )
        print(
            f"{results:<14}{NAMES.get((way, shared), way):<22}{shown}{1000 * max(r[3] for r in rows):>10.0f}",
            flush=True,
        )


def measure(results: str, way: str, runs: int, *, shared: bool) -> list[Row]:
    """One site; a crash and a fail-back for each run."""
    with tempfile.TemporaryDirectory(prefix="bench_remote-") as name, contextlib.ExitStack() as stack:
        directory, place = Path(name) / "site", Path(name) / "core"
        Path(name).chmod(0o755)
        place.mkdir()
        if results == "icinga2":
            site = stack.enter_context(Site(directory, kannel=False, core=ICINGA[way]))
            assert isinstance(site.core, Icinga | Zone)
            nagios: Nagios | Icinga | Zone = site.core
        elif way == "local":
            site = stack.enter_context(Site(directory, kannel=False))
            assert isinstance(site.core, Nagios)
            nagios = site.core
        else:
            site = stack.enter_context(Site(directory, nagios=False, kannel=False, **settings(place, results, 30.0)))
            core = stack.enter_context(RemoteCore(site, place, results=results, way=way, shared=shared))
            nagios = core.nagios
        load = stack.enter_context(Load(site.house, Path(name) / "load", base=BASE, attribute="description"))
        site.wait_healthy("standby")
        poll(lambda: len(load.requests()) > 60, 20.0, "sixty requests answered")
        for service in ("primary", "redirect", "traffic"):
            nagios.wait(f"ldap {service}", 0, 30.0)
        return [once(site, nagios) for _ in range(runs)]


def once(site: Site, nagios: Nagios | Icinga | Zone) -> Row:
    """Crash, wait for the flip, heal and fail back; the seconds from the verdict."""
    before = len(flips(site))
    site.fault("crash")
    try:
        poll(lambda: len(flips(site)) > before, 60.0, "the flip's journal line")
    except AssertionError as error:
        logs = "\n".join(site.log(name)[-2000:] for name in ("sniffer", "redirector"))
        raise AssertionError(f"{error}\n{site.journal()[-2:]}\n{logs}\n{nagios.tail()}") from None
    order = flips(site)[-1]
    verdict = verdicts(site)[-1]
    heard = handler = math.nan
    if isinstance(nagios, Nagios):
        heard = first(nagios, r"^Command Arguments: .*;ldap primary;2;", verdict)
        handler = first(nagios, r"^Running event handler for service.*", verdict)
    site.heal("crash")
    poll(lambda: not [why for _, why in site.status()["fail_back"] if why], 60.0, "a fail-back is possible", every=0.1)
    site.ctl("fail-back", "ldap")
    nagios.wait("ldap primary", 0, 30.0)
    poll(lambda: site.status()["hold_down_left"] == 0, 30.0, "hold-down is over", every=0.1)
    assert order["by"].startswith(("nagios", "icinga2")), f"ordered by {order['by']}, not by the core"
    return tuple(at - verdict for at in (heard, handler, order["at"], order["at"] + order["took"]))


def flips(site: Site) -> list[dict[str, Any]]:
    return [entry for entry in site.journal("fail-over") if entry["flipped"]]


def verdicts(site: Site) -> list[float]:
    """The moments of the sniffer's failed verdicts, Unix time."""
    found = re.findall(r"^(\S+ \S+) failover-sniffer: WARNING: ldap: verdict: ", site.log("sniffer"), re.MULTILINE)
    return [datetime.datetime.fromisoformat(at).timestamp() for at in found]


def first(nagios: Nagios, pattern: str, since: float) -> float:
    """When the core's debug file says that for the first time after a moment (the log's milliseconds are cut off)."""
    return poll(lambda: [at for at, _ in nagios.debug(pattern) if at >= since - 0.001], 10.0, pattern)[0]


if __name__ == "__main__":
    main()
