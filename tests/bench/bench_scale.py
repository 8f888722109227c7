"""What many services, many connections and a burst of them cost.

    python -m tests.bench.bench_scale [--rows services,burst,tables] [--services 1,10] [--tables 10000]

services   new connections/s and requests/s over open ones, spread over all services, and beside those of the first
           number; CPU of both daemons without traffic in percent of a core, RSS in MiB, seconds until they answer after
           their start, a flip (order to the rule moved) and ``failoverctl status`` in milliseconds, medians
burst      a hang of the LDAP server after three seconds of 6,000 connections/s (``tests.bench.mirror``), beside one
           without: seconds to suspicion and verdict
tables     a fail-over with so many finished entries in conntrack and 10,000 open connections that wait: ``took`` and
           the rule moved in milliseconds, first packets that were sent on of 100, with the median wait, and the clients
           that were freed, with the time of the last. The host's nf_conntrack_max is raised for the while.

Each row starts anew, so one alone is as good as all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from check_failover import control
from check_failover.redirector.nftables import netlink, redirect, ruleset
from tests.bench.bench_rivals import machine, say, table
from tests.bench.bench_sniffer import timed
from tests.lab.load import Load
from tests.lab.many import PORT, Many, blocks
from tests.lab.netns import PRIMARY, ROOT, SERVICE_ADDRESS, STANDBY, House, inside, poll, python_argv
from tests.lab.site import BASE, Site

SERVICES, TABLES = "1,10,50,200,1000", "10000,100000,500000"
SECONDS, IDLE, FLIPS, STATUSES = 4.0, 6.0, 5, 3
SERVER_PORT = 7000
BURST, BURST_SECONDS = 6000, 3.0
OPEN, TRIED = 10_000, 100
LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
OF_SERVICES = ("services", "new/s", "beside", "kept/s", "beside", "redirector CPU %", "RSS", "ready", "sniffer CPU %",
               "RSS", "ready", "flip ms", "status ms")  # fmt: skip
OF_BURST = ("hang", "to make", "suspicion", "verdict")
OF_TABLES = ("finished", "open", "took ms", "moved ms", "sent on", "median wait s", "freed", "last after s")


@contextlib.contextmanager
def ground(services: int) -> Iterator[Many]:
    """A controller with so many services on one pair of servers, whose daemons are not started yet."""
    with tempfile.TemporaryDirectory(prefix="cfo-scale-", dir="/var/tmp") as name, House() as house:
        Path(name).chmod(0o755)
        ends = {"primary": f"{PRIMARY}:{SERVER_PORT}", "standby": f"{STANDBY}:{SERVER_PORT}"}
        many = Many(Path(name), house, blocks(services, **ends))
        for who, address in (("primary", PRIMARY), ("standby", STANDBY)):
            log = many.directory / f"{who}.log"
            house.start(who, *python_argv("tests.bench.crowd", "serve", address, str(SERVER_PORT)), log=log, cwd=ROOT)
            poll(log.read_text, 10.0, f"the {who} listens")
        yield many
        many.stop()


# ------------------------------------------------------------ many services


def services_row(number: int, beside: dict[str, float]) -> tuple[str, ...]:
    with ground(number) as many:
        ready = {daemon: many.start(daemon) for daemon in ("redirector", "sniffer")}
        row: list[str] = [f"{number:,}"]
        for how in ("new", "kept"):
            rate = carried(many, number, how)
            row += [f"{rate:,.0f}", f"{rate / beside.setdefault(how, rate):.2f}"]
        time.sleep(2.0)  # connections end, and the sniffer's sampling settles
        before, began = {daemon: used(many, daemon) for daemon in ready}, time.monotonic()
        time.sleep(IDLE)
        for daemon, seconds in ready.items():
            cpu = 100 * (used(many, daemon) - before[daemon]) / (time.monotonic() - began)
            row += [f"{cpu:.1f}", f"{resident(many, daemon):.0f}", f"{seconds:.1f}"]
        flips = [flip(many) for _ in range(FLIPS)]
        statuses = [clocked(lambda: many.ctl("status")) for _ in range(STATUSES)]
    return (*row, f"{1000 * statistics.median(flips):.1f}", f"{1000 * statistics.median(statuses):.0f}")


def carried(many: Many, number: int, how: str) -> float:
    argv = python_argv("tests.bench.crowd", "load", SERVICE_ADDRESS, str(PORT), str(number), how, str(SECONDS))
    said = many.house.run("client", "/usr/bin/env", f"PYTHONPATH={ROOT}", *argv, timeout=SECONDS + 30)
    return float(json.loads(said))


def flip(many: Many) -> float:
    """Seconds from the order to the rule moved, over; and back again."""
    order = {"service": "s1", "by": "bench", "manual": True}
    assert control.ask(many.socket("redirector"), {"verb": "fail-over", **order}, 20.0)["flipped"]
    moved = last_flip(many)["moved"]
    control.ask(many.socket("redirector"), {"verb": "fail-over", **order}, 20.0)
    back = {"verb": "fail-back", **order, "deadline": 0.0}
    poll(lambda: control.ask(many.socket("redirector"), back, 20.0)["flipped"], 60.0, "it fails back", every=0.5)
    return float(moved)


def last_flip(many: Many) -> dict[str, float]:
    reply = control.ask(many.socket("redirector"), {"verb": "status", "service": "s1"}, 20.0)
    found: dict[str, float] = reply["services"]["s1"]["flip"]
    return found


def clocked(act: Callable[[], subprocess.CompletedProcess[str]]) -> float:
    began = time.monotonic()
    done = act()
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def used(many: Many, daemon: str) -> float:
    """Seconds of CPU of all threads so far (proc_pid_schedstat: nanoseconds)."""
    tasks = Path(f"/proc/{many.daemons[daemon].pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident(many: Many, daemon: str) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{many.daemons[daemon].pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


# ------------------------------------------------------------ a burst before a hang


def burst_row(burst: bool) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory(prefix="cfo-burst-") as name:
        Path(name).chmod(0o755)
        with Site(Path(name) / "site", nagios=False, kannel=False) as site:
            client = Load(site.house, Path(name) / "load", base=BASE, attribute="description", kept=5)
            with client as load:
                site.wait_healthy("standby")
                poll(lambda: sum(bool(r.server) for r in load.requests()) > 150, 20.0, "three seconds of answers")
                if burst:
                    argv = python_argv("tests.bench.mirror", "cl0", SERVICE_ADDRESS, str(BURST), str(BURST_SECONDS))
                    site.house.run("controller", "/usr/bin/env", f"PYTHONPATH={ROOT}", *argv, timeout=30)
                found = timed(site, "ldap", "hang", site.fault("hang"))
    columns = (found.to_make, found.suspicion, found.verdict)
    return ("after a burst" if burst else "without one", *(f"{seconds:.3f}" for seconds in columns))


# ------------------------------------------------------------ large tables


def tables_row(finished: int) -> tuple[str, ...]:
    most = int(LIMIT.read_text())
    try:
        LIMIT.write_text(str(max(most, finished + 3 * OPEN)))
        with ground(1) as many:
            for daemon in ("redirector", "sniffer"):
                many.start(daemon)
            inside(many.house.name("controller"), lambda: fill(many, finished))
            return flooded(many, finished)
    finally:
        LIMIT.write_text(str(most))


def fill(many: Many, number: int) -> None:
    """So many finished connections of s1 with its primary, as the rules mark them, for ten minutes."""
    from check_failover.config import load

    (mark,) = redirect.ct_marks(load(many.config).services).values()
    kernel = netlink.Netlink("conntrack")
    rest = netlink.attribute(7, struct.pack("!I", 600)) + netlink.attribute(
        8, struct.pack("!I", mark | ruleset.FINISHED)
    )
    rest += netlink.attribute(3, struct.pack("!I", 0x0E))  # seen reply, assured, confirmed
    rest += netlink.nested(4, netlink.nested(1, netlink.attribute(1, bytes([7]))))  # TIME_WAIT
    service, server = (bytes(map(int, one.split("."))) for one in (SERVICE_ADDRESS, PRIMARY))
    create = 0x600  # NLM_F_EXCL | NLM_F_CREATE
    requests = []
    for n in range(number):
        client, port = bytes([100, 64, n >> 22 & 255, n >> 14 & 255]), 40000 + (n & 0x3FFF)
        there, back = _tuple(client, service, port, PORT), _tuple(server, client, SERVER_PORT, port)
        body = netlink.nested(1, there) + netlink.nested(2, back) + rest
        requests.append((1 << 8, create | (netlink.ACK if len(requests) == 99 or n == number - 1 else 0), 2, body))
        if requests[-1][1] & netlink.ACK:
            kernel.send_all(requests)
            requests = []
    assert int(LIMIT.with_name("nf_conntrack_count").read_text()) >= number


def _tuple(source: bytes, destination: bytes, source_port: int, port: int) -> bytes:
    ports = netlink.attribute(2, struct.pack("!H", source_port)) + netlink.attribute(3, struct.pack("!H", port))
    ip = netlink.attribute(1, source) + netlink.attribute(2, destination)
    return netlink.nested(1, ip) + netlink.nested(2, netlink.attribute(1, bytes([6])), ports)


def flooded(many: Many, finished: int) -> tuple[str, ...]:
    """A fail-over while ``OPEN`` clients wait and ``TRIED`` have just asked for a connection."""
    log = many.directory / "stay.log"
    argv = python_argv("tests.bench.crowd", "stay", SERVICE_ADDRESS, str(PORT), str(OPEN), str(TRIED))
    clients = many.house.start("client", *argv, log=log, cwd=ROOT)
    poll(lambda: "waiting" in log.read_text(), 60.0, "the clients wait")
    poll(lambda: watched(many) == 1, 30.0, "the burst of their connections is over for the sniffer")
    time.sleep(0.3)  # the sniffer's filter follows after 0.1 s
    chain = "type filter hook input priority 0"
    drop = f"table ip t {{\n chain c {{\n {chain}\n tcp dport {SERVER_PORT} drop\n }}\n}}\n"
    many.house.run("primary", "/usr/sbin/nft", "-f", "-", input=drop)
    clients.send_signal(signal.SIGUSR1)
    poll(lambda: "tried" in log.read_text(), 20.0, "the last ones try")
    at = time.time()
    order = {"verb": "fail-over", "service": "s1", "by": "bench", "manual": True}
    assert control.ask(many.socket("redirector"), order, 30.0)["flipped"]
    poll(lambda: "freed" in log.read_text(), 60.0, "the clients are done")
    said, entry = json.loads(log.read_text().splitlines()[-1]), last_flip(many)
    wait = f"{statistics.median(said['waits']):.2f}" if said["waits"] else ""
    last = f"{said['at'] - at:.2f}" if said["freed"] else ""
    times = (f"{1000 * entry['took']:.0f}", f"{1000 * entry['moved']:.1f}")
    return (f"{finished:,}", f"{OPEN:,}", *times, f"{said['served']} of {TRIED}", wait, f"{said['freed']:,}", last)


def watched(many: Many) -> int:
    """The sniffer watches one connection in so many."""
    reply = control.ask(many.socket("sniffer"), {"verb": "status", "service": "s1"}, 20.0)
    return int(reply["services"]["s1"]["stats"]["share"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="services,burst,tables", help="default: %(default)s")
    parser.add_argument("--services", default=SERVICES, help="how many; default: %(default)s")
    parser.add_argument("--tables", default=TABLES, help="finished entries; default: %(default)s")
    wanted = parser.parse_args()
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes its namespaces along
    begun, beside = time.monotonic(), dict[str, float]()
    rows: dict[str, tuple[tuple[str, ...], list[Callable[[], tuple[str, ...]]]]] = {
        "services": (OF_SERVICES, [lambda n=n: services_row(int(n), beside) for n in wanted.services.split(",")]),  # type: ignore[misc]
        "burst": (OF_BURST, [lambda: burst_row(False), lambda: burst_row(True)]),
        "tables": (OF_TABLES, [lambda n=n: tables_row(int(n)) for n in wanted.tables.split(",")]),  # type: ignore[misc]
    }
    found = []
    for name in wanted.rows.split(","):
        head, makers = rows[name]
        measured = [head]
        for make in makers:
            measured.append(make())
            say(f"{name}: " + " ".join(measured[-1]))
        found.append(table(measured))
    print("\n\n".join([machine(), *found, f"{time.monotonic() - begun:.0f} s in all"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
