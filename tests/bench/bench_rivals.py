"""The project beside its rivals (``tests.bench.rivals``): what clients feel of each fault, and what watching costs.

    python -m tests.bench.bench_rivals [--faults crash,hang] [--rivals check_failover,nginx] [--keep DIRECTORY]

First, with nothing wrong, what each way carries (``tests.bench.full_load``): requests per second of eight clients that
never pause, and what it adds to the median time of a lone client's request, beside the same client asking the primary
itself; the median of ``ROUNDS``, each of them through all rivals. And the project's planned work: a drain and a
fail-back under the load below. Then the faults; ``--faults ""`` leaves them out.

A cell is one run: 50 new LDAP connections a second and 5 open sessions (``tests.lab.load``), some healthy seconds, the
fault, then until nothing bad has happened for ``QUIET`` seconds or ``WINDOW`` is over. The columns:

outage         seconds from the fault to the end of the last new connection that failed or took over ``SLOW`` seconds
longest wait   of a new connection, in seconds; its client gives up after 3
failed         new connections without an answer, of those begun after the fault
caught         those begun before it and not over then, that failed
sessions       like outage, for reads in the open sessions; a session that breaks connects anew and repeats the read
probes/s       connections per second that the primary got beyond those of clients, while healthy, over all faults
sees clients   the primary sees the clients' addresses

``>`` before an outage: it was not over when the run ended. Numbers are of one run on one machine with nothing else
to do; where a check runs once a second, chance decides how much of that second passes before it sees the fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.bench.healthy import HEAD as WAYS_HEAD
from tests.bench.healthy import Way, planned_work, way, ways_row
from tests.bench.rivals import HAPROXY, KEEPALIVED, NFT, NGINX, RIVALS, Ground, Rival
from tests.lab.faults import FAULTS
from tests.lab.load import PATIENCE, Load, Request
from tests.lab.netns import CLIENT, PRIMARY, SERVICE_ADDRESS, House, poll
from tests.lab.site import BASE

LIMIT = 900  # seconds for everything
ROUNDS = 3  # of the healthy state
CELL = 45  # no cell is begun with less time left than this
HEALTHY = 3.0  # seconds of ordinary traffic before the fault, at least
CHANCE = 2.0  # at most so much more: else the fault would always meet the same moment of a check's round
QUIET = PATIENCE + 0.5  # a request begun in the fault's last moment has ended by then
WINDOW = 18.0  # seconds watched at most
SLOW = 0.2  # seconds: a person notices
RATE, SESSIONS = 50.0, 5

# The controller sees both sides, so one reading of its counters is exact: a proxy's own connections less the clients'.
COUNTERS = f"""
table inet bench {{
    counter own {{ }}
    counter clients {{ }}
    chain out {{
        type filter hook output priority 10;
        ip daddr {PRIMARY} tcp dport 389 tcp flags & (syn | ack) == syn counter name own
    }}
    chain in {{
        type filter hook prerouting priority -310;
        iifname "cl0" ip daddr {SERVICE_ADDRESS} tcp dport 389 tcp flags & (syn | ack) == syn counter name clients
    }}
}}
"""
CLIENTS_SEEN = f"""
table inet bench {{
    counter clients {{ }}
    chain in {{ type filter hook input priority 10; ip saddr {CLIENT} tcp dport 389 counter name clients; }}
}}
"""


class TooLongError(Exception):
    """The whole benchmark's limit passed."""


@dataclass(frozen=True)
class Healthy:
    """Before the fault."""

    seconds: float
    probes: int
    sees_clients: bool
    bad: int  # requests that failed or were slow with nothing wrong: the machine is busy


@dataclass(frozen=True)
class Felt:
    """What the clients of one kind felt from the fault on; seconds."""

    asked: int
    failed: int
    longest: float
    outage: float
    over: bool  # nothing bad in the last QUIET seconds

    def __str__(self) -> str:
        return f"{self.outage:.2f}" if self.over else f"> {self.outage:.1f}"


@dataclass(frozen=True)
class Cell:
    short: Felt
    caught: Felt  # connections in whose middle the fault came
    kept: Felt
    healthy: Healthy


Cells = dict[tuple[str, str], Cell | None]  # None: the run broke or there was no time


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_rivals", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=_names(FAULTS), default=list(FAULTS), help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--rivals", type=_names(RIVALS), default=list(RIVALS), help=f"of {', '.join(RIVALS)}")
    parser.add_argument("--keep", type=Path, help="an existing directory, open to everybody, for configs and logs")
    arguments = parser.parse_args()
    os.umask(0o022)
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(LIMIT)
    cells: Cells = {}
    ways: dict[str, list[Way]] = {name: [] for name in arguments.rivals}
    planned = ""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        top = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="check_failover-bench-")))
        top.chmod(0o755)
        try:
            for number in range(ROUNDS):
                for name in arguments.rivals:
                    ways[name].append(way(RIVALS[name], top / f"way-{name}-{number}"))
                    say(f"{name}: {ways[name][-1]}")
            if "check_failover" in arguments.rivals:
                planned = "\n\ncheck_failover, " + planned_work(top / "planned", RATE, SESSIONS)
            measure(arguments.faults, arguments.rivals, top, cells, begun + LIMIT - CELL)
        except (KeyboardInterrupt, TooLongError) as problem:
            say(f"ended early: {problem or 'interrupted'}")
        finally:
            signal.alarm(0)
    print(report(arguments.faults, arguments.rivals, cells, ways) + planned)
    print(f"\n{time.monotonic() - begun:.0f} s in all")
    complete = all(cells.get((fault, rival)) for fault in arguments.faults for rival in arguments.rivals)
    return 0 if complete else 1


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def _too_long(*_: object) -> NoReturn:
    raise TooLongError(f"not done within {LIMIT} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------ measuring


def measure(faults: list[str], rivals: list[str], top: Path, cells: Cells, last_start: float) -> None:
    """Fill ``cells`` one after the other; one that breaks is told and leaves the others alone."""
    for fault in faults:
        for name in rivals:
            cells[fault, name] = None
            if time.monotonic() > last_start:
                say(f"{fault}, {name}: no time left")
                continue
            begun = time.monotonic()
            try:
                cell = cells[fault, name] = run(RIVALS[name], fault, top / f"{fault}-{name}")
            except (AssertionError, OSError, subprocess.SubprocessError) as problem:
                say(f"{fault}, {name}: {problem}")
                continue
            say(
                f"{fault}, {name}: outage {cell.short}, longest {cell.short.longest:.2f}, "
                f"failed {cell.short.failed}/{cell.short.asked}, caught {cell.caught.failed}, sessions {cell.kept}, "
                f"probes {cell.healthy.probes}, bad before the fault {cell.healthy.bad}, "
                f"run took {time.monotonic() - begun:.0f} s"
            )


def run(rival: Rival, fault: str, directory: Path) -> Cell:
    """One cell. Everything it made is gone when it returns, but for ``directory``."""
    with rival.open(directory) as ground:
        house = ground.house
        house.run("controller", NFT, "-f", "-", input=COUNTERS)
        house.run("primary", NFT, "-f", "-", input=CLIENTS_SEEN)
        client = Load(house, directory / "load", base=BASE, attribute="description", rate=RATE, kept=SESSIONS)
        with client as load:
            poll(lambda: sum(bool(r.server) for r in load.requests()) > RATE, 10.0, "a second of answers")
            healthy = settle(house, load, rival)
            at = time.monotonic()
            FAULTS[fault](house, "primary", ground.slapd["primary"])
            made = time.monotonic()
            end = watch(load, at)
            requests = [r for r in load.requests() if at <= r.end <= end]
            _note(directory, ground, at)
    short = [r for r in requests if r.kind == "short"]
    new, caught = ([r for r in short if (r.start >= made) is after] for after in (True, False))
    return Cell(felt(new, at, end), felt(caught, at, end), sessions(requests, at, end), healthy)


def settle(house: House, load: Load, rival: Rival) -> Healthy:
    """Traffic as every day; what reaches the primary beside it."""
    begin, before = time.monotonic(), counted(house, "controller")
    time.sleep(HEALTHY + random.uniform(0.0, CHANCE))
    after, end = counted(house, "controller"), time.monotonic()
    grown = {name: after[name] - before[name] for name in after}
    requests = load.requests(begin)
    strangers = {r.server for r in requests} - {"primary", None}
    assert not strangers, f"{strangers} served before the fault"
    return Healthy(
        seconds=end - begin,
        probes=max(0, grown["own"] - rival.proxy * grown["clients"]),
        sees_clients=counted(house, "primary")["clients"] > 0,
        bad=sum(map(bad, requests)),
    )


def counted(house: House, who: str) -> dict[str, int]:
    """Packets in each counter of the benchmark's own table there."""
    entries = json.loads(house.run(who, NFT, "-j", "list", "counters", "table", "inet", "bench"))["nftables"]
    return {e["counter"]["name"]: e["counter"]["packets"] for e in entries if "counter" in e}


def watch(load: Load, at: float) -> float:
    """Until all is well for QUIET seconds, or WINDOW is over; returns that moment."""
    while True:
        now = time.monotonic()
        if now - at >= WINDOW:
            return now
        requests = [r for r in load.requests() if r.end >= at]
        if now - at > QUIET and all(f.over for f in (felt(requests, at, now), sessions(requests, at, now))):
            return now
        time.sleep(0.1)


def bad(request: Request) -> bool:
    return request.server is None or request.waited > SLOW


def felt(requests: list[Request], at: float, end: float) -> Felt:
    last = max((r.end for r in requests if bad(r)), default=at)
    failed = sum(r.server is None for r in requests)
    return Felt(len(requests), failed, max((r.waited for r in requests), default=0.0), last - at, end - last >= QUIET)


def sessions(requests: list[Request], at: float, end: float) -> Felt:
    """The open sessions; one that has not come to an end of its read for long is still out."""
    kept = [r for r in requests if r.kind == "kept"]
    all_there = {r.session for r in kept if end - r.end < 1.0} == set(range(SESSIONS))
    view = felt(kept, at, end)
    if all_there:
        return view
    return Felt(view.asked, view.failed, max(view.longest, end - at), end - at, over=False)


def _note(directory: Path, ground: Ground, at: float) -> None:
    """The moment of the fault and the rules at the end, beside the logs: for those who ask why."""
    wall = time.time() - time.monotonic() + at
    clock = time.strftime("%H:%M:%S", time.localtime(wall))
    (directory / "fault").write_text(f"{wall:.3f} {clock}.{int(wall % 1 * 1000):03d} monotonic {at:.3f}\n", "utf-8")
    (directory / "rules").write_text(ground.house.run("controller", NFT, "list", "ruleset"), "utf-8")


# ------------------------------------------------------------ telling

HEAD = ("", "outage", "longest wait", "failed", "caught", "sessions", "probes/s", "sees clients")


def report(faults: list[str], rivals: list[str], cells: Cells, ways: dict[str, list[Way]]) -> str:
    """The tables, as Markdown, and the machine."""
    parts = [machine()]
    found = [ways_row(name, rounds) for name, rounds in ways.items() if rounds]
    parts.append("healthy\n\n" + table([WAYS_HEAD, *found]))
    for fault in faults:
        parts.append(f"{fault}\n\n" + table([HEAD, *(row(fault, rival, cells) for rival in rivals)]))
    return "\n\n".join(parts)


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(r[column]) for r in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(t.ljust(w) for t, w in zip(r, widths, strict=True)) + " |" for r in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def row(fault: str, rival: str, cells: Cells) -> tuple[str, ...]:
    cell = cells.get((fault, rival))
    if cell is None:
        return (rival, "not measured", *[""] * (len(HEAD) - 2))
    healthy = [c.healthy for (_, name), c in cells.items() if name == rival and c is not None]
    probes = sum(h.probes for h in healthy) / sum(h.seconds for h in healthy)
    sees = "yes" if all(h.sees_clients for h in healthy) else "no"
    short = cell.short
    return (
        rival, str(short), f"{short.longest:.2f}", f"{short.failed} of {short.asked}", str(cell.caught.failed),
        str(cell.kept), f"{probes:.1f}", sees,
    )  # fmt: skip


def machine() -> str:
    """Where this was measured, and with which versions."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    words = [
        f"{cpu[1] if cpu else platform.machine()}, {cores} cores, Linux {platform.release()}",
        f"load average {load:.1f} at the end",
        f"Python {platform.python_version()}",
        *(
            version(*argv)
            for argv in (
                ("/usr/sbin/nagios4", "--version"),
                ("/usr/sbin/slapd", "-VV"),
                (HAPROXY, "-v"),
                (NGINX, "-v"),
                (KEEPALIVED, "--version"),
                (NFT, "--version"),
            )
        ),
    ]
    return "\n".join(words)


def version(*argv: str) -> str:
    """The first line that a program prints about itself with a number in it."""
    if not Path(argv[0]).exists():
        return f"{argv[0]}: not installed"
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    lines = (line.strip() for line in (done.stdout + done.stderr).splitlines())
    line = next((line for line in lines if re.search(r"\d\.\d", line)), argv[0])
    return re.split(r" - |\s+\(| http", line.removeprefix("@(#) $"))[0]


if __name__ == "__main__":
    sys.exit(main())
