"""Rounds of data: a seed, and the sequence of events that it stands for. Pure.

Each round begins with both servers in step and the redirect at the primary, so that it can be run again alone. Seeds
from 10001 on are rounds with files, those below with LDAP; those divisible by 3 have a second controller.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

SERVERS = ("primary", "standby")
FILES = 10001  # the first seed of a round with files
PAUSES = (0.0, 0.2, 0.5, 1.0, 1.5)  # seconds that clients go on after an event
SYNCS = ("sync", "reverse")
PHASES = ("prepare", "transfer", "switch", "restart")  # the last: the link has moved, the service works on the old copy
SIDES = ("controller", "primary", "standby")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens. ``what``: a server, or how a run goes. ``pause``: seconds until the next event."""

    kind: str
    what: str = ""
    pause: float = 0.0

    def __str__(self) -> str:
        return " ".join(word for word in (self.kind, self.what) if word) + f" +{self.pause:g}"

    @staticmethod
    def parse(text: str) -> Event:
        """From the words that ``str`` makes of it. Raises ValueError."""
        words, _, pause = text.strip().partition(" +")
        for kind in KINDS:
            for what in KINDS[kind].whats:
                if " ".join(word for word in (kind, what) if word) == words:
                    return Event(kind, what, float(pause or 0.0))
        raise ValueError(f"no event {text.strip()!r}")


@dataclass(frozen=True)
class Scene:
    """What a sequence has brought about, as far as it chooses the next event by it."""

    faults: frozenset[tuple[str, str]] = frozenset()  # kind, server
    marks: frozenset[str] = frozenset()  # pair, split, held, late, asleep, running (a sync in the background)
    away: bool = False  # the standby may serve
    back: bool = False  # a reverse run may have brought the data back


@dataclass(frozen=True, slots=True)
class Kind:
    """``weight`` and ``effect`` get the scene and ``what``; weight 0: not now."""

    whats: tuple[str, ...]
    weight: Callable[[Scene, str], int]
    effect: Callable[[Scene, str], Scene]


@dataclass(frozen=True, slots=True)
class Round:
    """What ``seed`` stands for."""

    seed: int
    events: tuple[Event, ...]

    @property
    def kind(self) -> str:
        return "files" if self.seed >= FILES else "ldap"

    @property
    def pair(self) -> bool:
        return self.seed % 3 == 0

    @property
    def scene(self) -> Scene:
        """Before the first event."""
        return Scene(marks=frozenset({"pair"} if self.pair else ()))

    def __str__(self) -> str:
        return "; ".join(map(str, self.events))


def generate(seed: int, most: int = 7) -> Round:
    """The round of that seed: up to ``most`` events."""
    dice, scene, events = random.Random(seed), Round(seed, ()).scene, []
    for _ in range(dice.randint(2, most)):
        found = {
            Event(name, what): kind.weight(scene, what) for name, kind in sorted(KINDS.items()) for what in kind.whats
        }
        event = dice.choices(list(found), list(found.values()))[0]
        events.append(replace(event, pause=dice.choice(PAUSES)))
        scene = KINDS[event.kind].effect(scene, event.what)
    return Round(seed, tuple(events))


# ------------------------------------------------------------ the kinds of events


def _fault(kind: str) -> Kind:
    def weight(scene: Scene, server: str) -> int:
        if any(where == server for _, where in scene.faults):
            return 0
        return 8 if (server == "standby") == scene.away else 2

    def effect(scene: Scene, server: str) -> Scene:
        return replace(scene, faults=scene.faults | {(kind, server)}, away=scene.away or server == "primary")

    return Kind(SERVERS, weight, effect)


def _heal(scene: Scene, server: str) -> Scene:
    return replace(scene, faults=frozenset(fault for fault in scene.faults if fault[1] != server))


def _mark(mark: str, *, on: bool, weight: int) -> Kind:
    def effect(scene: Scene, _what: str) -> Scene:
        return replace(scene, marks=scene.marks | {mark} if on else scene.marks - {mark})

    return Kind(("",), lambda scene, _what: weight * ((mark in scene.marks) is not on), effect)


def _away(weight: int) -> Kind:
    return Kind(
        ("",),
        lambda scene, _: weight * (not scene.away) * (1 + ("asleep" in scene.marks)),
        lambda scene, _: replace(scene, away=True),
    )


def _sync(kind: str) -> Kind:
    reverse = kind == "reverse"

    def weight(scene: Scene, what: str) -> int:
        if what == "in background" and "running" in scene.marks:
            return 0
        weight = 14 if what == "" else 8
        return weight * (1 + ("asleep" in scene.marks)) if scene.away is reverse else 1

    def effect(scene: Scene, what: str) -> Scene:
        marks = scene.marks | {"running"} if what == "in background" else scene.marks
        return replace(scene, marks=marks, back=reverse and scene.away)

    return Kind(("", "in background"), weight, effect)


def _killed(kind: str) -> Kind:
    whats = tuple(f"in {phase} at {side}" for phase in PHASES for side in SIDES)

    def weight(scene: Scene, what: str) -> int:
        fits = "asleep" in scene.marks if kind == "take" else scene.away is (kind == "reverse")
        return fits * (4 if "restart" in what else 2 if "switch" in what else 1)

    return Kind(whats, weight, lambda scene, _what: scene)


def _split(scene: Scene, _what: str) -> int:
    return 25 * ("pair" in scene.marks and "split" not in scene.marks)


def _other(kind: str, whats: tuple[str, ...]) -> Kind:
    """What a person or the timer does at the second controller."""

    def weight(scene: Scene, _what: str) -> int:
        return (20 if "split" in scene.marks else 5) * ("pair" in scene.marks) // len(whats)

    def effect(scene: Scene, what: str) -> Scene:
        if kind == "other order" and "split" not in scene.marks:
            return replace(scene, away=what != "fail-back")
        return replace(scene, marks=scene.marks | {"running"}) if what == "in background" else scene

    return Kind(whats, weight, effect)


KINDS: dict[str, Kind] = {
    "split": Kind(("", "noted"), _split, lambda scene, _what: replace(scene, marks=scene.marks | {"split"})),
    "split over": _mark("split", on=False, weight=8),
    **{f"other {kind}": _other(f"other {kind}", ("", "in background")) for kind in SYNCS},
    "other order": _other("other order", ("drain", "fail-over", "fail-back")),
    "write": Kind(("",), lambda _scene, _what: 4, lambda scene, _what: scene),
    "clients sleep": _mark("asleep", on=True, weight=10),  # with their connections open
    "clients wake": _mark("asleep", on=False, weight=8),
    **{kind: _fault(kind) for kind in ("crash", "hang", "blackhole")},
    "heal": Kind(SERVERS, lambda scene, server: 20 * any(where == server for _, where in scene.faults), _heal),
    "fail-over": _away(6),
    "drain": _away(8),
    "drain and cut": _away(4),
    "fail-back": Kind(
        ("",), lambda scene, _: (30 if scene.back else 4) * scene.away, lambda s, _: replace(s, away=False, back=False)
    ),
    "hold": _mark("held", on=True, weight=3),
    "release": _mark("held", on=False, weight=8),
    "late": _mark("late", on=True, weight=6),  # the primary's first SYN-ACK of each connection is lost
    "late over": _mark("late", on=False, weight=10),
    "take": Kind(SERVERS, lambda scene, _what: 6 * ("asleep" in scene.marks), lambda scene, _what: scene),
    "wait for run": _mark("running", on=False, weight=8),
    **{kind: _sync(kind) for kind in SYNCS},
    **{f"{kind} killed": _killed(kind) for kind in (*SYNCS, "take")},
}
