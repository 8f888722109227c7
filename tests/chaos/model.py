"""Which targets are possible after a sequence of faults: its words, the world they make, what follows. Pure.

A *world* is what stands at one moment: faults of servers, parts of the controller that are down, holds, and for each
service the set of targets that its redirect may have. ``apply`` takes an event into it; ``settle`` tells what must be
true once nothing has happened for a while (a *quiet*). Between two quiets each flip that some moment's facts allow may
have been made, or not; so the worlds since the last quiet are kept (``past``), and the sets only grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

SERVICES = ("ldap", "web", "dns")
SERVERS = ("primary", "standby")
OTHER = {"primary": "standby", "standby": "primary"}
AT_ONCE = ", at once"
Targets = frozenset[str]


class Health(IntEnum):
    """Of one service on one server. POOR (half of the packets are lost) may be judged either way."""

    BAD = 0
    POOR = 1
    GOOD = 2


class May(IntEnum):
    """Whether the controller moves a service by itself. MAYBE: nothing says that it must or must not."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens. ``what``: a service or a part of the controller. ``quiet``: a look at all follows it."""

    kind: str
    what: str = ""
    server: str = ""
    quiet: bool = True

    def __str__(self) -> str:
        words = " ".join(word for word in (self.kind, self.what, self.server) if word)
        return words if self.quiet else f"{words}{AT_ONCE}"

    @staticmethod
    def parse(text: str) -> Event:
        """From the words that ``str`` makes of it. Raises ValueError."""
        words = text.strip().removesuffix(AT_ONCE)
        for kind in sorted(KINDS, key=len, reverse=True):
            for what in KINDS[kind].whats:
                for server in KINDS[kind].servers:
                    if " ".join(word for word in (kind, what, server) if word) == words:
                        return Event(kind, what, server, not text.endswith(AT_ONCE))
        raise ValueError(f"no event {text.strip()!r}")


@dataclass(frozen=True)
class World:
    """See the module."""

    faults: frozenset[tuple[str, str, str]] = frozenset()  # kind, service ("" for the whole host), server
    down: Mapping[str, str] = field(default_factory=dict)  # redirector, sniffer, core -> dead | frozen
    marks: frozenset[str] = frozenset()  # disk full, clients cut, servers cut, tampered, handlers off, handlers broken
    held: frozenset[str] = frozenset()
    downtime: frozenset[str] = frozenset()
    at: Mapping[str, Targets] = field(default_factory=lambda: dict.fromkeys(SERVICES, frozenset({"primary"})))
    past: tuple[World, ...] = ()

    def up(self, part: str) -> bool:
        return part not in self.down

    def health(self, service: str, server: str) -> Health:
        kinds = {kind for kind, what, where in self.faults if where == server and what in ("", service)}
        if "servers cut" in self.marks or kinds - {"loss"}:
            return Health.BAD
        return Health.POOR if kinds else Health.GOOD

    def moves(self, service: str) -> May:
        """Whether a complete evidence leads to a flip now."""
        if service in self.held or not (self.up("redirector") and self.up("sniffer")) or "clients cut" in self.marks:
            return May.NO
        if "handlers off" in self.marks:  # on purpose: told loudly, and the core's silence is then no reason to act
            return May.NO if self.up("core") else May.MAYBE
        return May.MAYBE if "disk full" in self.marks or service in self.downtime else May.YES

    @property
    def moments(self) -> tuple[World, ...]:
        """All since the last quiet: what was true at any of them may be what a decision was made on."""
        return (*self.past, self)


# ------------------------------------------------------------ what follows


def reachable(world: World, service: str, targets: Targets) -> Targets:
    """These targets and those that a decision on the moments since the last quiet may have led to.

    A verdict may be older than the probe of where to go, which is made with it or after it; never the other way round.
    """
    found = set(targets)
    if all(moment.moves(service) is May.NO for moment in world.moments):
        return targets
    for target in targets:
        failed = False
        for moment in world.moments:
            failed = failed or moment.health(service, target) is not Health.GOOD
            if failed and moment.health(service, OTHER[target]) is not Health.BAD:
                found.add(OTHER[target])
    return frozenset(found)


def forced(world: World, service: str, target: str) -> Targets:
    """Where a service that is at ``target`` comes to rest in this world."""
    here, there, moves = world.health(service, target), world.health(service, OTHER[target]), world.moves(service)
    if moves is May.NO or here is Health.GOOD or there is Health.BAD:
        return frozenset({target})
    if moves is May.YES and here is Health.BAD and there is Health.GOOD:
        return frozenset({OTHER[target]})
    return frozenset(SERVERS)


def settle(world: World) -> World:
    """The world after a quiet.

    While packets are lost no quiet is quite one: an investigation may be going on at its end, which found the other
    server well before the next event. So such a world counts among the moments until the next quiet.
    """
    at = {name: frozenset().union(*(forced(world, name, target) for target in world.at[name])) for name in SERVICES}
    marks = world.marks - {"tampered"} if world.up("redirector") else world.marks
    after = replace(world, at=at, marks=marks, past=())
    lossy = any(kind == "loss" for kind, _, _ in world.faults)
    return replace(after, past=(after,) if lossy else ())


def must_be_served(world: World, service: str) -> bool:
    """After a quiet: whether clients get their answers wherever the redirect may be."""
    if world.marks & {"clients cut", "servers cut", "tampered"}:
        return False
    return all(world.health(service, target) is Health.GOOD for target in world.at[service])


def tempted(world: World) -> bool:
    """Whether something might move that must not: from a failed server to a good one, with a hold or so in the way."""
    return world.up("redirector") and any(
        world.moves(name) is May.NO
        and any(
            world.health(name, t) is Health.BAD and world.health(name, OTHER[t]) is Health.GOOD for t in world.at[name]
        )
        for name in SERVICES
    )


def apply(world: World, event: Event) -> World:
    """The world right after an event."""
    kind = KINDS[event.kind]
    after = replace(
        kind.effect(world, event.what, event.server), past=tuple(replace(moment, past=()) for moment in world.moments)
    )
    return replace(after, at={name: reachable(after, name, targets) for name, targets in after.at.items()})


def last_resort(world: World) -> bool:
    """Whether a service may have to leave a failing standby for its primary without a person."""
    return any(
        "standby" in targets
        and any(moment.health(name, "standby") is not Health.GOOD for moment in world.moments)
        and any(moment.health(name, "primary") is not Health.BAD for moment in world.moments)
        for name, targets in world.at.items()
    )


# ------------------------------------------------------------ the kinds of events


@dataclass(frozen=True, slots=True)
class Kind:
    """``possible`` and ``effect`` get the world, ``what`` and ``server``."""

    weight: int
    whats: tuple[str, ...]
    servers: tuple[str, ...]
    possible: Callable[[World, str, str], bool]
    effect: Callable[[World, str, str], World]
    slow: bool = False  # takes more than a few seconds until all is quiet


def _fault(kind: str) -> Callable[[World, str, str], World]:
    return lambda world, what, server: replace(world, faults=world.faults | {(kind, what, server)})


def _faultless(world: World, what: str, server: str) -> bool:
    """No fault of that service on that server; for a host: no fault of the host."""
    return not any(fault[1:] == (what, server) for fault in world.faults)


def _heal(world: World, what: str, server: str) -> World:
    return replace(world, faults=frozenset(f for f in world.faults if f[1:] != (what, server)))


def _down(how: str) -> Callable[[World, str, str], World]:
    return lambda world, what, _server: replace(world, down={**world.down, what: how})


def _up(world: World, what: str, _server: str) -> World:
    return replace(world, down={part: how for part, how in world.down.items() if part != what})


def _is(how: str | None) -> Callable[[World, str, str], bool]:
    return lambda world, what, _server: world.down.get(what) == how


def _mark(mark: str) -> Callable[[World, str, str], World]:
    return lambda world, _what, _server: replace(world, marks=world.marks | {mark})


def _unmark(mark: str) -> Callable[[World, str, str], World]:
    return lambda world, _what, _server: replace(world, marks=world.marks - {mark})


def _marked(mark: str, *, wanted: bool) -> Callable[[World, str, str], bool]:
    return lambda world, _what, _server: (mark in world.marks) is wanted


def _same(world: World, _what: str, _server: str) -> World:
    return world


def _always(_world: World, _what: str, _server: str) -> bool:
    return True


def _can_order(world: World, _what: str, _server: str) -> bool:
    return world.up("redirector") and "disk full" not in world.marks


def _restartable(world: World, what: str, _server: str) -> bool:
    return world.up(what)


def _core_steered(world: World, _what: str, _server: str) -> bool:
    return world.up("core") and not world.marks & {"handlers off", "handlers broken"}


def _ordered(world: World, service: str, start: str, *, sure: bool) -> World:
    """A person orders a service away from ``start``. ``sure``: at once, and with failoverctl's own probe if need be."""
    goal, targets = OTHER[start], world.at[service]
    if start not in targets or service in world.held:
        return world
    if all(moment.health(service, goal) is Health.BAD for moment in world.moments):
        return world  # refused: that server fails its probe
    if not sure and not world.up("sniffer"):
        return world  # refused: nobody has probed it
    certain = sure and world.health(service, goal) is Health.GOOD and not world.past
    moved = targets - {start} | {goal} if certain else targets | {goal}
    return replace(world, at={**world.at, service: frozenset(moved)})


def _tampered(world: World, _what: str, _server: str) -> World:
    return replace(world, marks=world.marks | {"tampered"})


ALL, DAEMONS, PARTS = ("",), ("redirector", "sniffer"), ("redirector", "sniffer", "core")

KINDS: dict[str, Kind] = {
    "crash": Kind(6, SERVICES, SERVERS, _faultless, _fault("crash")),
    "hang": Kind(6, SERVICES, SERVERS, _faultless, _fault("hang")),
    "apperror": Kind(4, SERVICES, SERVERS, _faultless, _fault("apperror")),
    "blackhole": Kind(4, ALL, SERVERS, _faultless, _fault("blackhole")),
    "loss": Kind(2, ALL, SERVERS, _faultless, _fault("loss"), slow=True),
    "heal": Kind(12, (*SERVICES, ""), SERVERS, lambda w, what, s: any(f[1:] == (what, s) for f in w.faults), _heal),
    "kill": Kind(3, PARTS, ALL, _is(None), _down("dead")),
    "stop": Kind(2, PARTS, ALL, _is(None), _down("dead")),
    "freeze": Kind(3, PARTS, ALL, _is(None), _down("frozen"), slow=True),
    "start": Kind(8, PARTS, ALL, _is("dead"), _up),
    "thaw": Kind(8, PARTS, ALL, _is("frozen"), _up),
    "restart": Kind(4, PARTS, ALL, _restartable, _same),
    "clock ahead": Kind(1, ALL, ALL, lambda w, _what, _s: w.up("redirector"), _same),
    "clock back": Kind(1, ALL, ALL, lambda w, _what, _s: w.up("redirector"), _same),
    "hold": Kind(
        3, SERVICES, ALL, lambda w, what, s: _can_order(w, what, s) and what not in w.held,
        lambda w, what, _s: replace(w, held=w.held | {what}),
    ),
    "release": Kind(
        6, SERVICES, ALL, lambda w, what, s: _can_order(w, what, s) and what in w.held,
        lambda w, what, _s: replace(w, held=w.held - {what}),
    ),
    "downtime": Kind(
        2, SERVICES, ALL, lambda w, what, _s: w.up("core") and what not in w.downtime,
        lambda w, what, _s: replace(w, downtime=w.downtime | {what}),
    ),
    "downtime over": Kind(
        6, SERVICES, ALL, lambda w, what, _s: w.up("core") and what in w.downtime,
        lambda w, what, _s: replace(w, downtime=w.downtime - {what}),
    ),
    "fail-over": Kind(2, SERVICES, ALL, _can_order, lambda w, what, _s: _ordered(w, what, "primary", sure=True)),
    "fail-back": Kind(4, SERVICES, ALL, _can_order, lambda w, what, _s: _ordered(w, what, "standby", sure=False)),
    "drain": Kind(2, SERVICES, ALL, _can_order, lambda w, what, _s: _ordered(w, what, "primary", sure=False)),
    "drain and cut": Kind(2, SERVICES, ALL, _can_order, lambda w, what, _s: _ordered(w, what, "primary", sure=False)),
    "delete table": Kind(2, ALL, ALL, _always, _tampered),
    "change element": Kind(2, SERVICES, ALL, _marked("tampered", wanted=False), _tampered),
    "flush conntrack": Kind(2, ALL, ALL, _always, _same),
    "fill conntrack": Kind(
        1, ALL, ALL, lambda w, _what, _s: not w.marks & {"clients cut", "servers cut"}, _same, slow=True
    ),
    "fill disk": Kind(2, ALL, ALL, _marked("disk full", wanted=False), _mark("disk full")),
    "free disk": Kind(6, ALL, ALL, _marked("disk full", wanted=True), _unmark("disk full")),
    "cut clients": Kind(1, ALL, ALL, _marked("clients cut", wanted=False), _mark("clients cut")),
    "join clients": Kind(6, ALL, ALL, _marked("clients cut", wanted=True), _unmark("clients cut")),
    "cut servers": Kind(1, ALL, ALL, _marked("servers cut", wanted=False), _mark("servers cut")),
    "join servers": Kind(6, ALL, ALL, _marked("servers cut", wanted=True), _unmark("servers cut")),
    "handlers off": Kind(1, ALL, ALL, _core_steered, _mark("handlers off")),
    "handlers on": Kind(
        6, ALL, ALL, lambda w, _what, _s: w.up("core") and "handlers off" in w.marks, _unmark("handlers off")
    ),
    "break handlers": Kind(1, ALL, ALL, _core_steered, _mark("handlers broken"), slow=True),
    "mend handlers": Kind(6, ALL, ALL, _marked("handlers broken", wanted=True), _unmark("handlers broken")),
}  # fmt: skip


def possible(world: World) -> dict[str, list[Event]]:
    """Every event that may come now, by its kind."""
    found = {
        name: [Event(name, what, server) for what in kind.whats for server in kind.servers
               if kind.possible(world, what, server)]
        for name, kind in KINDS.items()
    }  # fmt: skip
    return {name: events for name, events in found.items() if events}
