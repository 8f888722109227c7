"""failover-sync killed and cut off at random moments: the standby serves a complete, verified copy at every moment."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from check_failover.sync.run import main
from tests.lab.syncing import Syncing, fill, ok, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

KILLS, CUTS = 50, 5
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["check_failover.sync.run", "jsonschema", "check_failover.transports.command_file"])
BUDGET = 60.0  # seconds for all of them
VERIFY = 'verify = ["/bin/sh", "-c", "cd \\"$1\\" && sha256sum --quiet -c sums", "sh", "{staged}"]'


def write_generation(directory: Path, number: int) -> None:
    """Files that only fit together, with their digests in ``sums``: one that is half changed is found out."""
    files = {f"d{i % 4}/f{i}": f"generation {number} file {i}\n" * 200 for i in range(20)} | {"generation": f"{number}"}
    sums = "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in files.items())
    fill(directory, files | {"sums": sums})


def generation(link: Path) -> int:
    """The generation of the copy behind the link; raises when any file of it is missing or of another generation."""
    root = os.open(link, os.O_RDONLY | os.O_DIRECTORY)
    try:

        def read(name: str) -> bytes:
            with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=root), "rb") as file:
                return file.read()

        for line in read("sums").decode().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256(read(name)).hexdigest() == digest, f"{name} is not what sums says"
        return int(read("generation"))
    finally:
        os.close(root)


class Reader(threading.Thread):
    """A service on the standby that reads its data all the time, and what it saw."""

    def __init__(self, link: Path) -> None:
        super().__init__(daemon=True)
        self.link, self.stop, self.reads = link, threading.Event(), 0
        self.seen: list[int] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Note each new generation and each copy that was not whole."""
        while not self.stop.wait(0.005):
            try:
                number = generation(self.link)
            except (OSError, AssertionError, ValueError) as error:
                self.problems.append(f"{type(error).__name__}: {error}")
                continue
            self.reads += 1
            if not self.seen or self.seen[-1] != number:
                self.seen.append(number)


def test_killed_at_any_moment_the_standby_serves_a_whole_copy(syncing: Syncing) -> None:
    """50 kills and 5 cut connections; nobody ever reads half a copy, data only gets newer, and the next run repairs."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    write_generation(syncing.primary, -1)
    configure(syncing, relay=True)
    ok(syncing.sync())
    usual: dict[bool, float] = {}
    for relay in (True, False):
        configure(syncing, relay)
        write_generation(syncing.primary, 1 - relay)
        began = time.monotonic()
        run = start(syncing)
        run.join(30)
        assert run.exitcode == 0
        usual[relay] = time.monotonic() - began
    reader = Reader(syncing.standby)
    reader.start()
    faults = ["kill"] * KILLS + ["cut"] * CUTS
    chance.shuffle(faults)
    ended = 0
    began = time.monotonic()
    try:
        for number, fault in enumerate(faults, start=2):
            relay = number % 5 == 0
            configure(syncing, relay)
            write_generation(syncing.primary, number)
            ended += hit(syncing, fault, chance.uniform(0.05, 1.05) * usual[relay])
            assert generation(syncing.standby) <= number
        took = time.monotonic() - began
        ok(syncing.sync())
    finally:
        reader.stop.set()
        reader.join(10)
    assert not reader.problems
    assert reader.reads > 2 * KILLS
    assert reader.seen == sorted(reader.seen)
    assert len(reader.seen) > 3, f"only generations {reader.seen} were served: no kill came near a switch"
    assert generation(syncing.standby) == KILLS + CUTS + 1
    assert ended < KILLS // 2, f"{ended} runs had ended before they were killed: nothing was tested"
    assert {name[:2] for name in syncing.versions("standby")} == {"v-"}
    assert took < BUDGET


def configure(syncing: Syncing, relay: bool) -> None:
    """The servers as two others, with a relay between them, or the primary as this machine, which is faster."""
    to = f'to = "{syncing.servers.srv}/data"'
    if relay:
        syncing.configure(f"{VERIFY}\n{to}")
    else:
        syncing.configure(f"{VERIFY}\n{to}", primary="local", source=str(syncing.primary))


def start(syncing: Syncing) -> BaseProcess:
    """failover-sync in a process of its own, without the start of the interpreter, in which a kill hits nothing."""
    process = FORKS.Process(target=main, args=(["--config", str(syncing.config), "web"],))
    process.start()
    return process


def hit(syncing: Syncing, fault: str, after: float) -> bool:
    """Start a run and kill it, or cut its connections, ``after`` seconds; True when it had ended before."""
    run = start(syncing)
    try:
        run.join(after)
        if run.exitcode is not None:
            return True
        if fault == "kill":
            run.kill()
            run.join(5)
            return False
        syncing.servers.disconnect()
        run.join(30)
        assert run.exitcode == 0, f"exit {run.exitcode}: a cut connection must be a failure that is told, no traceback"
        return False
    finally:
        run.kill()
        run.join()
