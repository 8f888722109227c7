"""Rounds of data: clients write numbered entries or files while servers, runs of failover-sync and the redirect fail.

    make chaos-data [ROUNDS=20] [SEED=1]
    python -m tests.chaos.data.run [--rounds N] [--seed N]
    python -m tests.chaos.data.run --seed 7 --events "drain +0.5; sync; crash standby"

Seeds from 10001 on are rounds with files, those below with LDAP; those divisible by 3 have a pair of controllers,
which can be split. A round that fails prints its seed, its sequence and
what happened; the others go on, on a fresh site, and the exit code is 1 then. What must be true stands in ``model``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from check_failover.syncstate import DIVIDED
from tests.chaos.data.ground import PATIENCE, Ground, Run
from tests.chaos.data.model import OTHER, Found, decided, judge, numbers
from tests.chaos.data.pair import HEARD
from tests.chaos.data.sequence import Event, Round, generate
from tests.lab.netns import poll

FOREGROUND = 4.0  # seconds that a sequence waits for a run; then the run goes on in the background
HUNG = 45.0  # seconds until a run must have ended once all is well, and after SIGTERM
SETTLED = 20.0  # seconds until a run must end well, or name what a person must decide


class ChaosError(AssertionError):
    """A round went wrong; the text is for a person."""


class Runner:
    """Rounds on one ground."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._faults: set[tuple[str, str]] = set()
        self._held = self._late = self._split = False
        self.times = ""  # seconds of the last round: start, events, mending, end

    def round(self, this: Round) -> None:
        """Do it; raises ChaosError."""
        ground = self.ground
        began = time.monotonic()
        ground.reset(pair=this.pair)
        self._split = False
        self._faults.clear()
        try:
            reset = time.monotonic()
            for event in this.events:
                ground.tell(str(event))
                self._do(event)
                time.sleep(event.pause)
            done = time.monotonic()
            self._well(this.pair)
            well = time.monotonic()
            self._end(this)
            moments = (began, reset, done, well, time.monotonic())
            self.times = " + ".join(f"{later - one:.1f}" for one, later in pairwise(moments))
        except Exception as error:
            why = error if isinstance(error, AssertionError) else traceback.format_exc()
            raise ChaosError(f"seed {this.seed}: {this}\n{why}\n{self.told()}") from None

    # ------------------------------------------------------------ events

    def _do(self, event: Event) -> None:
        ground, kind, what = self.ground, event.kind, event.what
        if kind in ("crash", "hang", "blackhole"):
            ground.fault(kind, what)
            self._faults.add((kind, what))
        elif kind == "heal":
            self._heal(what)
        elif kind == "write":
            time.sleep(1.0)
        elif kind in ("clients sleep", "clients wake"):
            ground.rest(kind == "clients sleep")
        elif kind in ("late", "late over"):
            self._late = kind == "late"
            ground.late(on=self._late)
        elif kind == "wait for run":
            ground.join(FOREGROUND)
        elif kind in ("split", "split over"):
            self._part(what, split=kind == "split")
        elif kind in ("other sync", "other reverse"):
            self._run(kind.partition(" ")[2], what, other=True)
        elif kind == "other order":
            ground.tell(f"other: {what}: {ground.second.order(what)}")
        elif kind.split(" ")[0] in ("sync", "reverse", "take"):
            self._run(kind, what)
        else:
            self._held = kind == "hold" or (self._held and kind != "release")
            verb, cut = kind.split(" ")[0], kind == "drain and cut"
            ground.order(verb, **({"deadline": 1.0} if cut else {}), **({"reason": "chaos"} if verb == "hold" else {}))

    def _part(self, what: str, *, split: bool) -> None:
        """The two controllers lose each other, or find each other again."""
        self._split, second = split, self.ground.second
        if split:
            second.split()
            if what == "noted":
                poll(second.noted, HEARD, "both controllers note the silence", every=0.1)
        else:
            second.join()

    def _run(self, kind: str, what: str, *, other: bool = False) -> None:
        ground = self.ground
        if not ground.join(FOREGROUND):
            ground.tell("an earlier run goes on")
            return
        options = ["--reverse"] if kind.startswith("reverse") else []
        if kind.startswith("take"):  # the server whose clients are asleep: the one that serves, as a person would
            options = ["--take", what if kind == "take" else ground.status()["target"], "--yes"]
        run = ground.start(*options, other=other)
        if kind.endswith("killed"):
            _, phase, _, side = what.split(" ")
            ground.kill_run(run, phase, side)
        if what != "in background":
            ground.join(FOREGROUND)

    def _heal(self, server: str) -> None:
        for kind, where in sorted(self._faults):
            if where == server:
                self.ground.heal(kind, where)
                self._faults.discard((kind, where))

    # ------------------------------------------------------------ the end

    def _well(self, pair: bool) -> None:
        """Clients stop, all is mended, and what still ran has ended."""
        ground = self.ground
        ground.end_clients()
        ground.tell("clients have stopped; all is mended")
        for server in OTHER:
            self._heal(server)
            if not ground.server[server].runs():  # e.g. a run was killed while it restarted the server
                ground.server[server].start()
        if self._late:
            ground.late(on=False)
        if self._held:
            ground.order("release")
        self._held = self._late = False
        if pair:
            self._part("", split=False)
        if not ground.join(HUNG):
            raise AssertionError(f"a run did not end: {ground.record().running}")
        ground.on()
        poll(lambda: not ground.status()["drain"], PATIENCE, "the drain is over, without clients")
        if any(one["end"] is not None and one["end"] > time.time() for one in ground.status()["reached"]):
            ground.leases_end()

    def _end(self, this: Round) -> None:
        ground = self.ground
        acknowledged = ground.acknowledged()
        found = self._found(self._settle(), acknowledged)
        problems = judge(found)
        if not problems and found.code:
            takes = found.serving if this.seed % (2 if this.pair else 3) else OTHER[found.serving]
            run = self._sync("--take", takes, "--yes")
            found = self._found(run, acknowledged)
            problems = decided(found)
            if not problems and not any(self.ground.record().kept.endswith(path) for path in found.kept):
                problems = [f"the record names another place: {self.ground.record().kept}"]
        assert not problems, "\n".join(problems) + "\n" + self._where(found)

    def _settle(self) -> tuple[int, str]:
        """The timer's run from the serving server, again until it is good or a person must decide."""
        until = time.monotonic() + SETTLED
        while True:
            serving = self.ground.status()["target"]
            code, line = self._sync(*(["--reverse"] if serving == "standby" else []))
            if code == 0 or any(f"[{reason}]" in line for reason in DIVIDED) or time.monotonic() > until:
                return code, line
            time.sleep(0.3)

    def _sync(self, *options: str) -> tuple[int, str]:
        run: Run = self.ground.start(*options)
        assert self.ground.join(HUNG), f"a run does not end: {run.said}"
        return run.process.returncode, run.said

    def _found(self, run: tuple[int, str], acknowledged: frozenset[int]) -> Found:
        ground = self.ground
        serving, on = ground.status()["target"], ground.on()
        asked = run[0] and acknowledged - on[serving]
        status = ground.site.ctl("status", ground.kind) if asked else ""
        return Found(serving, acknowledged, on, *run, status, ground.kept())

    # ------------------------------------------------------------ what a person reads

    def _where(self, found: Found) -> str:
        """When the writes that are not everywhere were acknowledged, and which directories have them (files)."""
        short = found.acknowledged - (frozenset(found.on["primary"]) & frozenset(found.on["standby"]))
        rows = [one for one in self.ground.writes() if one["number"] in short]
        lines = [f"  {one['at']:.3f} n{one['number']} {'kept' if one['kept'] else 'short'}" for one in rows[:20]]
        for who in OTHER:
            for path in sorted((self.ground.site.directory / who / "data.sync").glob("*")):
                has = [int(file.name[1:]) for file in path.glob("n*")]
                lines.append(f"  {who} {path.name}: {numbers([n for n in has if n in short])} of {len(has)}")
        return "\n".join([f"acknowledged {len(found.acknowledged)}, serves: {found.serving}", *lines])

    def told(self) -> str:
        ground = self.ground
        journal = [f"{entry['at']:.3f} journal: {entry['by']}: {entry['line']}" for entry in ground.site.journal()]
        failed = [one for one in ground.writes() if one["error"]]
        return "\n".join(
            [
                *sorted([*ground.story, *journal]),
                f"record: {ground.record()}",
                f"reached: {ground.status()['reached']}",
                f"pending: {ground.status()['pending']}; the sniffer: {ground.site.sniffer(ground.kind)['verdict']}",
                f"not acknowledged: {len(failed)}, e.g. {failed[:3]}",
            ]
        )


def run(rounds: Sequence[Round], say: Callable[[str], None], *, story: bool = False) -> list[str]:
    """Run them, those of one kind on one site; what went wrong, a text for each round that did."""
    failures: list[str] = []
    left = sorted(rounds, key=lambda one: one.kind)
    while left:
        with tempfile.TemporaryDirectory(prefix="cfo-data-", dir=_memory()) as name:
            Path(name).chmod(0o755)
            kind = left[0].kind
            with Ground(Path(name), kind) as ground:
                runner = Runner(ground)
                while left and left[0].kind == kind:
                    this, began = left.pop(0), time.monotonic()
                    say(f"seed {this.seed}: {this}")
                    try:
                        runner.round(this)
                    except ChaosError as error:
                        failures.append(str(error))
                        say(str(error))
                        break
                    took, writes = time.monotonic() - began, len(ground.acknowledged())
                    say(f"    ok, {took:.1f} s ({runner.times}), {writes} writes: {_end(ground)}")
                    if story:
                        say(runner.told())
    return failures


def _memory() -> str | None:
    """Each run flushes the file system that it switches on, and others may be writing to the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _end(ground: Ground) -> str:
    return ground.story[-1].partition(" ")[2][:150]


def main() -> None:
    parser = argparse.ArgumentParser(description="rounds of data")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10000)
    parser.add_argument("--story", action="store_true", help="what happened in each round")
    parser.add_argument("--events", help="this sequence, in the words of a failed round; --seed says of which kind")
    given: Any = parser.parse_args()
    os.umask(0o022)
    rounds = [generate(seed) for seed in range(given.seed, given.seed + given.rounds)]
    if given.events:
        rounds = [Round(given.seed, tuple(map(Event.parse, given.events.split(";"))))] * given.rounds
    failures = run(rounds, lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True), story=given.story)
    print(f"{len(rounds)} rounds from seed {given.seed}, {len(failures)} failed")
    for failure in failures:
        first = failure.splitlines()[0]
        print(f"\nagain: make chaos-data ROUNDS=1 SEED={first.split(':')[0].split()[1]}\n{first}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
