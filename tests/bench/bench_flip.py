"""What a flip costs: from the handler's fork to the rule, from the order to the rule, to the answer, to the disk.

    python -m tests.bench.bench_flip [--flips 20] [--clients 200]

The real redirector on the real kernel with so many clients that wait for the dead server; the handler is the installed
``failover_event``, started as Nagios starts it. Times in milliseconds, the median and the longest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from check_failover import control, listening, rights
from tests.component.test_redirector import ROOT, Controller
from tests.lab.netns import SERVICE_ADDRESS, House, poll

HANDLER = Path(sys.executable).parent / "failover_event"
VERDICT = "detector=2 probes=2 probes_failed=2 asked=12 answered=0 standby_ok=1"
WELL = {"ok": True, "passes": 99, "good_for": 999.0}
CLIENTS = """
import socket, sys, time
def client():
    s = socket.create_connection((sys.argv[1], 7001)); s.sendall(b"wait\\n")
    return s
held = [client() for _ in range(int(sys.argv[2]))]
print("waiting", flush=True)
time.sleep(600)
"""


@contextmanager
def flipped_at(controller: Controller) -> Iterator[list[float]]:
    """When the event of the flip came, on the monotonic clock."""
    sock, _ = control.subscribe(controller.socket)
    seen: list[float] = []

    def read() -> None:
        if sock.recv(65536):
            seen.append(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    yield seen
    thread.join(10)
    sock.close()


def one(controller: Controller, clients: int, figures: dict[str, list[float]]) -> None:
    """A flip to the standby by the handler, and back."""
    log = controller.directory / "clients.log"
    log.write_text("")
    argv = (sys.executable, "-c", CLIENTS, SERVICE_ADDRESS, str(clients))
    waiting = controller.house.start("client", *argv, log=log)
    poll(lambda: "waiting" in log.read_text(), 60.0, "the clients wait")
    order = ("--service", "tcp4", "--state", "CRITICAL", "--state-type", "HARD", "--perfdata", VERDICT)
    with flipped_at(controller) as event:
        began, at = time.monotonic(), time.time()
        done = subprocess.run(
            [HANDLER, *order, "--socket", controller.socket], capture_output=True, text=True, check=False
        )
        ended = time.monotonic()
    assert "done" in done.stdout, done.stdout
    entry = next(entry for entry in reversed(controller.journal()) if entry["flipped"])
    figures["handler: fork to the rule moved"].append(entry["at"] + entry["moved"] - at)
    figures["handler: fork to clients served by the standby"].append(event[0] - began)
    figures["handler: fork to exit"].append(ended - began)
    figures["order to the rule moved"].append(entry["moved"])
    figures["order to settled on the disk"].append(entry["took"])
    waiting.kill()
    assert controller.say("fail-back", "tcp4", manual=True)["flipped"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--clients", type=int, default=200)
    wanted = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    names = ("fork to the rule moved", "fork to clients served by the standby", "fork to exit")
    figures: dict[str, list[float]] = {f"handler: {name}": [] for name in names}
    figures |= {"order to the rule moved": [], "order to settled on the disk": []}
    with tempfile.TemporaryDirectory(prefix="cfo-flip-", dir="/var/tmp") as name, House() as house:  # a real disk
        Path(name).chmod(0o755)
        controller = Controller(Path(name), house, only=("tcp4",))
        health: dict[str, Any] = {"passed": True, "services": {"tcp4": {"primary": WELL, "standby": WELL}}}
        sniffer = listening.Server(
            controller.socket.with_name("sniffer.sock"),
            rights.OF_SNIFFER,
            lambda _m, _p: health,
            lambda _v, _p: None,
        )
        sniffer.start()
        controller.start()
        for _ in range(wanted.flips):
            one(controller, wanted.clients, figures)
        controller.stop()
        sniffer.close()
    print(f"{wanted.flips} flips, {wanted.clients} clients waiting{'':24}median   longest")
    for what, seconds in figures.items():
        print(f"  {what:48}{1000 * statistics.median(seconds):10.1f}{1000 * max(seconds):10.1f}")


if __name__ == "__main__":
    main()
