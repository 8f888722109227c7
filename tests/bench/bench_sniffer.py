"""What watching costs at each amount of traffic, and how soon a fault is known.

    python -m tests.bench.bench_sniffer [--faults crash,hang] [--runs 3]

The sniffer runs as on a site, with the capture, one LDAP service and the redirector beside it. CPU is its own, all
threads, in percent of one core, over ``SECONDS``; RSS at the end of them. Traffic is made up (``tests.bench.mirror``):
whole connections of twelve packets at an exact rate, which no two servers on one machine would carry; a last row has
real clients as fast as they are answered. ``watched`` is the sampling; ``dropped``: frames that found a ring full.

The rows for some number of services have no traffic: the sniffer's start until it answers, and what it uses then. Each
service has a TCP probe, and its standby is probed every thirty seconds.

Times to suspicion and verdict are read in the sniffer's log, at 50 requests/s and five open sessions, the median of
some runs (and the longest), each on a fresh site. They count from before the fault is made; ``to make`` is how long
that took. ``dns-silent`` is a bind9 that is stopped (SIGSTOP), ``http-5xx`` an apache2 that is told to answer 503 and
reloaded; their clients ask 50 times a second too (``tests.lab.others``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from check_failover.sniffer.stage1.packet import parse
from check_failover.sniffer.stage1.traffic import TrafficMonitor
from tests.bench import mirror
from tests.bench.bench_rivals import machine, say, table
from tests.bench.full_load import full_load
from tests.lab.demo import from_log
from tests.lab.load import Load
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, freeze, poll, python_argv
from tests.lab.others import Clients, config, start
from tests.lab.site import BASE, ROOT, Site
from tests.unit.packets import packed, service

FAULTS = ("crash", "hang", "blackhole", "apperror")  # of LDAP
OTHERS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "dns-silent": ("dns", lambda named: freeze(named.pid)),
    "http-5xx": ("web", lambda apache: apache.spoil()),
}
SECONDS, WARM = 8.0, 3.0  # measured; before it, until sampling and thresholds have settled
CONNECTIONS = (1000, 5000)
PACKETS = 100_000
SERVICES = (1, 200, 1000)
SETTLED, IDLE = 40.0, 30.0  # seconds after the start, seconds measured: a round of probes
PATIENCE = 10.0  # for a verdict


@dataclass(frozen=True)
class Cost:
    """Of one amount of traffic."""

    packets: float  # per second
    cpu: float  # percent of one core
    rss: float  # MiB
    share: int
    drops: int

    def row(self, name: str) -> tuple[str, ...]:
        watched = "all" if self.share == 1 else f"1 of {self.share}"
        return (name, f"{self.packets:,.0f}", f"{self.cpu:.2f}", f"{self.rss:.1f}", watched, str(self.drops))


MANY = ("services", "start s", "CPU %", "RSS MiB")
COST = ("traffic", "packets/s", "CPU %", "RSS MiB", "watched", "dropped")
TIMES = ("fault", "to make", "suspicion", "verdict", "longest")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_sniffer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", default=",".join((*FAULTS, *OTHERS)), help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="of each fault; default: %(default)s")
    arguments = parser.parse_args()
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes its namespaces along
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="check_failover-bench-") as name:
        top = Path(name)
        top.chmod(0o755)
        crowds = [MANY, *(many(top / f"many{number}", number) for number in SERVICES)]
        costs = [COST, *cost(top / "cost")]
        times = [TIMES]
        for fault in filter(None, arguments.faults.split(",")):
            runs = [run(fault, top / f"{fault}{number}") for number in range(arguments.runs)]
            times.append(seconds(fault, runs))
            say(" ".join(times[-1]))
    print(machine())
    print("\n" + table(crowds) + "\n\n" + table(costs) + "\n\n" + parser_speed() + "\n\n" + table(times))
    print(f"\n{time.monotonic() - begun:.0f} s in all")
    return 0


# ------------------------------------------------------------ what it costs


def cost(directory: Path) -> list[tuple[str, ...]]:
    rows = []
    with Site(directory, nagios=False, kannel=False) as site:
        site.wait_healthy("standby")
        time.sleep(WARM)
        rows.append(watch(site, SECONDS).row("idle"))
        say(" ".join(rows[-1]))
        for rate in CONNECTIONS:
            rows.append(mirrored(site, rate).row(f"{rate:,} connections/s"))
            say(" ".join(rows[-1]))
        rows.append(mirrored(site, PACKETS / len(mirror.STEPS)).row(f"{PACKETS:,} packets/s"))
        say(" ".join(rows[-1]))
    with Site(directory.with_name("real"), nagios=False, kannel=False) as site:
        site.wait_healthy("standby")
        rows.append(real(site))
        say(" ".join(rows[-1]))
    return rows


def many(directory: Path, number: int) -> tuple[str, ...]:
    """So many services without traffic: seconds until the sniffer answers, its CPU and memory."""
    with Site(directory, nagios=False, kannel=False, extra="".join(map(service_block, range(1, number)))) as site:
        site.stop("sniffer")
        core = directory / "nagios/rw/nagios.cmd"  # a core that takes every result
        core.parent.mkdir(parents=True)
        os.mkfifo(core)
        reader = os.open(core, os.O_RDWR | os.O_NONBLOCK)
        threading.Thread(target=drain, args=(reader,), daemon=True).start()
        begin = time.monotonic()
        site.start("sniffer")
        started = time.monotonic() - begin
        time.sleep(SETTLED)
        before, begin = used(site), time.monotonic()
        time.sleep(IDLE)
        cpu = 100 * (used(site) - before) / (time.monotonic() - begin)
        row = (f"{number:,}", f"{started:.2f}", f"{cpu:.2f}", f"{resident(site):.1f}")
        say(" ".join(row))
        return row


def drain(reader: int) -> None:
    while select.select([reader], [], []):
        os.read(reader, 1 << 16)


def service_block(number: int) -> str:
    """One of many services, on the same two servers."""
    return f"""
[[service]]
name = "s{number}"
host = "h"
protocol = "tcp"
address = "{SERVICE_ADDRESS}"
port = {1000 + number}
primary = "{PRIMARY}:389"
standby = "{STANDBY}:389"
[service.check]
type = "tcp"
"""


def watch(site: Site, duration: float) -> Cost:
    """Whatever the traffic is now; its packets per second are the caller's to know."""
    drops, before, begin = site.sniffer()["stats"]["drops"], used(site), time.monotonic()
    time.sleep(duration)
    cpu, passed = used(site) - before, time.monotonic() - begin
    stats = site.sniffer()["stats"]
    return Cost(0.0, 100 * cpu / passed, resident(site), stats["share"], stats["drops"] - drops)


def mirrored(site: Site, rate: float) -> Cost:
    """With so many such connections a second."""
    log = site.directory / f"mirror-{rate:.0f}.log"
    argv = python_argv("tests.bench.mirror", "cl0", SERVICE_ADDRESS, str(rate), str(WARM + SECONDS + 1))
    process = site.house.start("controller", *argv, log=log, cwd=ROOT)
    poll(lambda: log.read_text() or process.poll() is not None, 20.0, "the mirror begins")
    time.sleep(WARM)
    found = watch(site, SECONDS)
    assert process.wait(20.0) == 0, log.read_text()
    said = json.loads(log.read_text().splitlines()[-1])
    return Cost(said["frames"] / said["seconds"], found.cpu, found.rss, found.share, found.drops)


def real(site: Site) -> tuple[str, ...]:
    """Real clients that never pause, their first seconds included; everything shares this machine."""
    before, drops = used(site), site.sniffer()["stats"]["drops"]
    carried = full_load(site.house, SERVICE_ADDRESS, 389, clients=4, seconds=SECONDS, base=BASE)
    stats = site.sniffer()["stats"]
    found = Cost(0.0, 100 * (used(site) - before) / SECONDS, resident(site), stats["share"], stats["drops"] - drops)
    name, _, *rest = found.row(f"{carried.per_second:,.0f} real connections/s")
    return (name, "", *rest)


def used(site: Site) -> float:
    """Seconds of CPU of all threads so far (proc_pid_schedstat: nanoseconds)."""
    tasks = Path(f"/proc/{site.pid('sniffer')}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident(site: Site) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{site.pid('sniffer')}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def parser_speed() -> str:
    """Frames of the same conversations through the parser, and through everything a watched packet meets."""
    found = mirror.frames(packed(SERVICE_ADDRESS))[:100_000]
    begin = time.perf_counter()
    for frame in found:
        parse(frame, 0.0)
    parsed = time.perf_counter()
    watch, now = TrafficMonitor(service("ldap")), 1000.0
    for frame in found:
        now += 0.0001
        packet = parse(frame, now)
        assert packet is not None
        watch.packet(packet, frame)
    done = time.perf_counter()
    alone, all_of_it = len(found) / (parsed - begin), len(found) / (done - parsed)
    return f"parser: {alone:,.0f} packets/s; with flows, LDAP and detectors: {all_of_it:,.0f} packets/s"


# ------------------------------------------------------------ how soon a fault is known


@dataclass(frozen=True)
class Run:
    """Seconds."""

    to_make: float
    suspicion: float
    verdict: float


def run(fault: str, directory: Path) -> Run:
    """One fault on a site of its own."""
    if fault in OTHERS:
        return other(fault, directory)
    with Site(directory, nagios=False, kannel=False) as site:
        client = Load(site.house, directory / "load", base=BASE, attribute="description", kept=5)
        with client as load:
            site.wait_healthy("standby")
            poll(lambda: sum(bool(r.server) for r in load.requests()) > 150, 20.0, "three seconds of answers")
            at = site.fault(fault)
            return timed(site, "ldap", fault, at)


def other(fault: str, directory: Path) -> Run:
    """The same for DNS or web."""
    name, spoil = OTHERS[fault]
    with Site(directory, nagios=False, kannel=False, extra=config(name)) as site, contextlib.ExitStack() as stack:
        server = start(site, stack, name)[name]
        clients = Clients(site, name, many=10)
        site.wait_healthy("standby", name=name)
        clients.served(150)
        at = time.monotonic()
        spoil(server)
        return timed(site, name, fault, at)


def timed(site: Site, name: str, fault: str, at: float) -> Run:
    """The fault is made; when it was known."""
    made = time.monotonic() - at

    def said(what: str) -> float | None:
        # the log has milliseconds, cut off
        found = from_log(site, name)
        return next((t - at for t, w, _ in found if w == f"sniffer: {what}" and t >= at - 0.001), None)

    poll(lambda: said("verdict"), PATIENCE, f"a verdict about {fault}")
    suspicion, verdict = said("suspicion"), said("verdict")
    assert suspicion is not None
    assert verdict is not None
    return Run(made, suspicion, verdict)


def seconds(fault: str, runs: list[Run]) -> tuple[str, ...]:
    columns = ([r.to_make for r in runs], [r.suspicion for r in runs], [r.verdict for r in runs])
    return (fault, *(f"{statistics.median(column):.3f}" for column in columns), f"{max(columns[-1]):.3f}")


if __name__ == "__main__":
    sys.exit(main())
