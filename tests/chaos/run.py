"""Rounds of chaos: random faults, in sequences, against the whole product, with clients that never pause.

    make chaos [ROUNDS=20] [SEED=1]
    python -m tests.chaos.run [--rounds N] [--seed N] [--quick] [--all]
    python -m tests.chaos.run --events "hold ldap, at once; crash ldap primary; release ldap"

A round that fails prints its seed and its sequence, and ``make chaos SEED=... ROUNDS=1`` runs it again alone. The
others go on, on a fresh site; the exit code is 1 then. What must be true after each quiet stands in ``model``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from check_failover import control
from tests.chaos.ground import Ground
from tests.chaos.looks import DAEMONS
from tests.chaos.model import SERVERS, SERVICES, Event, World, apply, settle, tempted
from tests.chaos.sequence import NOT_YET, Round, generate
from tests.lab.netns import poll

PATIENCE, LONG = 15.0, 40.0  # seconds until all must be as it should: a promise of 10, and a busy machine; with loss
DWELL, LONG_DWELL = 0.5, 7.0  # seconds that it must stay so; where something might move that must not: core_deadline
HANDLERS = 3  # starts of an event handler that an order may need on its way; on a quiet machine less than DWELL
# What a daemon may have more at the end than before. A prober stays, and three services may wait for 18 probes at once.
FLAT = {"descriptors": 8, "Threads": 20, "VmRSS": 12 * 1024}


class ChaosError(AssertionError):
    """A round went wrong; the text is for a person."""


class Runner:
    """Rounds on one ground, and what the daemons held after each."""

    def __init__(self, ground: Ground, say: Callable[[str], None], *, quick: bool) -> None:
        self.ground, self._say, self._quick = ground, say, quick
        self._held: dict[int, list[dict[str, int]]] = {}

    def round(self, this: Round) -> None:
        """Do it; raises ChaosError. Everything is well again afterwards, or that is the failure."""
        world, done = World(), []
        try:
            for event in this.events:
                done.append(str(event))
                world = self._do(world, event)
                if event.quiet:
                    world = self._quiet(world)
            if world.up("redirector"):
                wrong = self.ground.looks.told()
                assert not wrong, wrong
            done.append("all is mended")
            self._mend(world)
            self._flat()
        except Exception as error:
            why = error if isinstance(error, AssertionError) else traceback.format_exc()
            tail = "\n".join(f"--- {n}\n{self.ground.site.log(n)[-12000:]}" for n in DAEMONS)
            raise ChaosError(
                f"seed {this.seed}: {this}\nat: {done[-1]}\n{why}\n{_words(world)}\n{tail}\n{_journal(self.ground)}"
            ) from None

    def _do(self, world: World, event: Event) -> World:
        if event.kind == "heal":
            self.ground.heal(world, event)
        else:
            self.ground.do(event)
        return apply(world, event)

    def _quiet(self, world: World, dwell: float = DWELL) -> World:
        """Wait until all is as it must be, and stays so; the world with the targets that were found."""
        world, since = settle(world), time.monotonic()
        delay = HANDLERS * self.ground.looks.delay()
        dwell = max(LONG_DWELL if dwell and not self._quick and tempted(world) else dwell, delay)
        lossy = any(kind == "loss" for kind, _, _ in world.faults)
        deadline = since + (LONG if lossy else PATIENCE) + delay
        good_since: float | None = None
        while True:
            problems, now = self.ground.looks.problems(world, since), time.monotonic()
            good_since = None if problems else good_since or now
            if good_since is not None and now - good_since >= dwell:
                break
            if problems and now > deadline:
                raise AssertionError(f"after {now - since:.0f} s of quiet:\n  " + "\n  ".join(problems))
            time.sleep(0.2)
        self._say(f"    quiet after {time.monotonic() - since:.1f} s")
        return replace(world, at={name: frozenset({self.ground.looks.saved(name)}) for name in SERVICES})

    def _mend(self, world: World) -> None:
        """Everything back to how a round begins. Where a service is at the standby, a person fails it back."""
        pending = {what for _, what, server in world.faults if server == "primary"}
        for event in mending(world):
            world = self._do(world, event)
        # The standby may be well a moment before the primary, and a verdict is up to a second old: until then an order
        # that was pending may be carried out.
        found = {n: at | {"standby"} if {n, ""} & pending else at for n, at in world.at.items()}
        self._quiet(replace(world, at=found), dwell=2.0 if pending else 0.0)
        for name in SERVICES:
            if self.ground.looks.saved(name) == "standby":
                poll(lambda name=name: self._back(name), PATIENCE, f"{name}: the fail-back is accepted", every=0.3)  # type: ignore[misc]
        self._quiet(World())

    def _back(self, name: str) -> bool:
        """A fail-back ordered once the primary is proven; asking for probes spares the usual wait for them."""
        for server in SERVERS:
            with contextlib.suppress(control.ControlError):
                control.ask(self.ground.site.socket("sniffer"), {"verb": "probe", "service": name, "target": server})
        self.ground.order("fail-back", name, "--deadline", "0")
        return self.ground.looks.saved(name) == "primary"

    def _flat(self) -> None:
        for name in DAEMONS:
            held = self.ground.looks.held_by(name)
            if held is None:
                continue
            rows = self._held.setdefault(held["pid"], [])
            rows.append(held)
            early = rows[: max(3, len(rows) // 3)]
            for what, more in FLAT.items():
                grown = min(row[what] for row in rows[-3:]) - max(row[what] for row in early)
                assert len(rows) < 6 or grown <= more, f"{name}: {what} grows: {[row[what] for row in rows]}"


def mending(world: World) -> Iterator[Event]:
    """The events that undo all, none with a quiet of its own. Pure."""
    undo = {"disk full": "free disk", "clients cut": "join clients", "servers cut": "join servers",
            "handlers broken": "mend handlers"}  # fmt: skip
    events = [Event(undo[mark]) for mark in sorted(world.marks) if mark in undo]
    events += [Event("thaw" if how == "frozen" else "start", part) for part, how in sorted(world.down.items())]
    events += [Event("handlers on")] * ("handlers off" in world.marks)
    events += [Event("heal", what, server) for what, server in sorted({fault[1:] for fault in world.faults})]
    events += [Event("release", name) for name in sorted(world.held)]
    events += [Event("downtime over", name) for name in sorted(world.downtime)]
    return (replace(event, quiet=False) for event in events)


def run(rounds: Sequence[Round], say: Callable[[str], None], *, quick: bool = False) -> list[str]:
    """Run them, those of one core on one site; what went wrong, a text for each round that did."""
    failures, left = [], sorted(rounds, key=lambda one: one.core != "nagios")
    while left:
        with tempfile.TemporaryDirectory(prefix="cfo-chaos-") as name:
            Path(name).chmod(0o755)
            with Ground(Path(name), left[0].core) as ground:
                runner, core = Runner(ground, say, quick=quick), left[0].core
                poll(lambda: ready(ground), 30.0, "clients are served, both servers are known")
                while left and left[0].core == core:
                    this, began = left.pop(0), time.monotonic()
                    say(f"seed {this.seed}: {this}")
                    try:
                        runner.round(this)
                    except ChaosError as error:
                        failures.append(str(error))
                        say(str(error))
                        break
                    say(f"    ok, {time.monotonic() - began:.1f} s")
    return failures


def ready(ground: Ground) -> bool:
    """Whether the thresholds have something to learn from and the standby was probed."""
    known = all(ground.site.sniffer(name)["standby"]["ok"] for name in SERVICES)
    return known and all(len(ground.looks.answers(name, 0.0)) > 10 for name in SERVICES)


def _words(world: World) -> str:
    at = ", ".join(f"{name} at {'/'.join(sorted(targets))}" for name, targets in world.at.items())
    faults = ", ".join(" ".join(part for part in fault if part) for fault in sorted(world.faults))
    return f"model: {at}; faults: {faults or 'none'}; down: {dict(world.down)}; {sorted(world.marks | world.held)}"


def _journal(ground: Ground) -> str:
    rows = [f"{e['at']:.3f} {e['by']}: {e['line']}" for e in ground.site.journal()[-40:]]
    return "--- journal\n" + "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="rounds of chaos")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100000)
    parser.add_argument("--quick", action="store_true", help="short rounds, without what takes long")
    parser.add_argument("--all", action="store_true", help="also what the product is known not to do yet")
    parser.add_argument("--events", help="this sequence, in the words of a failed round")
    parser.add_argument("--core", choices=("nagios", "icinga2"), default="nagios", help="for --events")
    given = parser.parse_args()
    os.umask(0o022)
    without = () if given.all else NOT_YET
    most = 3 if given.quick else 6
    seeds = range(given.seed, given.seed + given.rounds)
    rounds = [generate(seed, most=most, quick=given.quick, without=without) for seed in seeds]
    if given.events:
        rounds = [Round(0, given.core, tuple(map(Event.parse, given.events.split(";"))))]
    failures = run(rounds, lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True), quick=given.quick)
    print(f"{len(rounds)} rounds from seed {given.seed}, {len(failures)} failed")
    for failure in failures:
        print(f"\nagain: make chaos ROUNDS=1 SEED={failure.split(':')[0].split()[1]}\n{failure.splitlines()[0]}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
