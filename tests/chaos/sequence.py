"""Rounds: a seed, and the sequence of events that it stands for. Pure.

Each round begins with everything well and the redirects at the primaries, so that it can be run again alone.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace

from tests.chaos.model import KINDS, Event, World, apply, last_resort, possible, settle

# What the suite's rounds leave out because the product does not do it yet: kinds of events, and "last resort", a
# standby that fails while it serves. An empty list is the aim.
NOT_YET: tuple[str, ...] = ()
QUIET = 0.7  # share of events that are followed by a quiet; the last one always is


@dataclass(frozen=True, slots=True)
class Round:
    """What ``seed`` stands for."""

    seed: int
    core: str  # nagios | icinga2
    events: tuple[Event, ...]

    def __str__(self) -> str:
        return f"{self.core}: " + "; ".join(str(event) for event in self.events)


def core(seed: int) -> str:
    """Each tenth seed is for Icinga 2."""
    return "icinga2" if seed % 10 == 9 else "nagios"


def generate(seed: int, *, most: int = 6, quick: bool = False, without: Collection[str] = ()) -> Round:
    """The round of that seed: up to ``most`` events. ``quick``: none after which a quiet takes long.

    The same arguments give the same round on every machine (``random.Random`` keeps that for ``choices``).
    """
    dice, world, events = random.Random(seed), World(), []
    for left in reversed(range(dice.randint(2, most))):
        found = possible(world)
        names = [name for name in found if name not in without and not (quick and KINDS[name].slow)]
        while names:
            name = dice.choices(names, [KINDS[name].weight for name in names])[0]
            event = dice.choices(found[name], [_weight(world, event) for event in found[name]])[0]
            event = replace(event, quiet=not left or dice.random() < QUIET)
            after = apply(world, event)
            if not ("last resort" in without and last_resort(after)):
                events.append(event)
                world = settle(after) if event.quiet else after
                break
            names.remove(name)
    if events:
        events[-1] = replace(events[-1], quiet=True)
    return Round(seed, core(seed), tuple(events))


def _weight(world: World, event: Event) -> int:
    """A fault of the server that serves is worth more rounds than one of the other."""
    targets = world.at[event.what] if event.what in world.at else frozenset().union(*world.at.values())
    return 3 if event.server in targets else 1
