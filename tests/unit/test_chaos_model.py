"""The model of tests.chaos: which targets are possible after which events; and the sequences it is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.ground import DO
from tests.chaos.model import KINDS, SERVICES, Event, World, apply, last_resort, must_be_served, settle, tempted
from tests.chaos.run import mending
from tests.chaos.sequence import generate

P, S, BOTH = frozenset({"primary"}), frozenset({"standby"}), frozenset({"primary", "standby"})


def after(text: str) -> World:
    """The world after the events of ``text``; each must be possible when it comes."""
    world = World()
    for one in filter(None, (part.strip() for part in text.split(";"))):
        said = Event.parse(one)
        assert KINDS[said.kind].possible(world, said.what, said.server), one
        world = apply(world, said)
        if said.quiet:
            world = settle(world)
    return world


@pytest.mark.parametrize(
    ("events", "targets"),
    [
        ("", P),
        # a fault and a healthy standby: it moves, whatever the fault
        ("crash ldap primary", S),
        ("hang ldap primary", S),
        ("apperror ldap primary", S),
        ("blackhole primary", S),
        ("crash ldap standby", P),
        ("crash web primary", P),
        ("loss primary", BOTH),
        ("hold ldap; loss primary; release ldap", BOTH),
        # nothing healthy to go to; then there is
        ("crash ldap standby; crash ldap primary", P),
        ("cut servers", P),
        ("crash ldap standby; crash ldap primary; heal ldap standby", S),
        # nothing goes back by itself, unless the standby fails
        ("crash ldap primary; heal ldap primary", S),
        ("crash ldap primary; heal ldap primary; crash ldap standby", P),
        ("crash ldap primary; crash ldap standby", S),
        ("crash ldap primary; heal ldap primary; hold ldap; crash ldap standby", S),
        # before all was quiet: the flip may have been made, or not
        ("crash ldap primary, at once; heal ldap primary", BOTH),
        ("crash ldap primary, at once; heal ldap primary; hang ldap primary", S),
        ("crash ldap primary, at once; hold ldap", BOTH),
        ("hold ldap, at once; crash ldap primary", BOTH),
        ("crash ldap standby; crash ldap primary, at once; heal ldap primary, at once; heal ldap standby", BOTH),
        # what forbids a flip, and its end
        ("hold ldap; crash ldap primary", P),
        ("hold web; crash ldap primary", S),
        ("hold ldap; crash ldap primary; release ldap", S),
        ("kill sniffer; crash ldap primary", P),
        ("kill sniffer; crash ldap primary; start sniffer", S),
        ("freeze sniffer; crash ldap primary; thaw sniffer", S),
        ("stop redirector; crash ldap primary", P),
        ("freeze redirector; crash ldap primary; heal ldap primary; thaw redirector", P),
        ("stop redirector; crash ldap primary; start redirector", S),
        ("cut clients; crash ldap primary", P),
        ("cut clients; crash ldap primary; join clients", S),
        ("fill disk; crash ldap primary", BOTH),
        ("fill disk; crash ldap primary; free disk", S),
        # a core that is away is no reason to leave clients alone; handlers that a person switched off are one
        ("stop core; crash ldap primary", S),
        ("freeze core; crash ldap primary", S),
        ("freeze core; crash ldap primary; heal ldap primary; fail-back ldap; thaw core", BOTH),
        ("break handlers; crash ldap primary", S),
        ("handlers off; crash ldap primary", P),
        ("handlers off; crash ldap primary; handlers on", S),
        ("handlers off; stop core; crash ldap primary", BOTH),
        # a downtime inhibits, but a core that is away cannot tell of it
        ("downtime ldap; crash ldap primary", BOTH),
        ("downtime ldap; crash ldap primary; downtime over ldap", S),
        # restarts, clocks and other hands move nothing
        ("restart redirector; restart sniffer; restart core; clock ahead; clock back", P),
        ("crash ldap primary; heal ldap primary; restart redirector; clock back; kill sniffer; start sniffer", S),
        ("delete table; change element ldap; flush conntrack", P),
        # a person
        ("fail-over ldap", S),
        ("crash ldap standby; fail-over ldap", P),
        ("crash ldap standby, at once; fail-over ldap", P),
        ("loss standby; fail-over ldap", BOTH),
        ("hold ldap; fail-over ldap", P),
        ("kill sniffer; fail-over ldap", S),
        ("kill sniffer; drain ldap", P),
        ("drain ldap", BOTH),
        ("crash ldap primary; fail-back ldap", S),
        ("crash ldap primary; heal ldap primary; fail-back ldap", BOTH),
        ("crash ldap primary; heal ldap primary; hold ldap; fail-back ldap", S),
    ],
)
def test_possible_targets(events: str, targets: frozenset[str]) -> None:
    """After these events, where may LDAP's redirect be?"""
    assert after(events).at["ldap"] == targets


@pytest.mark.parametrize(
    ("events", "served"),
    [
        ("", True),
        ("crash ldap primary", True),
        ("crash ldap primary; crash ldap standby", False),
        ("hold ldap; crash ldap primary", False),
        ("hold ldap", True),
        ("kill sniffer", True),
        ("kill sniffer; crash ldap primary", False),
        ("stop redirector", True),
        ("delete table", True),
        ("stop redirector; delete table", False),
        ("stop redirector; delete table; start redirector", True),
        ("cut clients", False),
        ("cut clients; join clients", True),
        ("loss primary", False),
        ("fill disk", True),
        ("crash ldap primary, at once; heal ldap primary", True),
    ],
)
def test_who_must_be_served(events: str, served: bool) -> None:
    """Clients are promised an answer wherever the redirect may be, and only there."""
    assert must_be_served(after(events), "ldap") is served


@pytest.mark.parametrize(
    ("events", "is_tempted"),
    [
        ("", False),
        ("hold ldap", False),
        ("hold ldap; crash ldap primary", True),
        ("hold ldap; crash ldap primary; crash ldap standby", False),
        ("handlers off; crash ldap primary", True),
        ("stop redirector; crash ldap primary", False),
        ("crash ldap primary", False),
    ],
)
def test_what_must_be_watched_longer(events: str, is_tempted: bool) -> None:
    """Where a server fails and only a hold or so keeps the redirect there, a late flip would be wrong."""
    assert tempted(after(events)) is is_tempted


def test_a_quiet_with_loss_is_none() -> None:
    """An investigation may go on at its end, with the standby still well; one quiet later it has ended."""
    world = settle(apply(World(), Event("loss", "", "primary")))
    world = replace(world, at=World().at)  # where it was found
    dark = apply(world, Event("blackhole", "", "standby"))
    assert dark.at["ldap"] == BOTH
    found = replace(settle(dark), at=World().at)
    assert apply(found, Event("flush conntrack")).at["ldap"] == P


def test_a_quiet_forgets_what_was() -> None:
    """Decisions after a quiet are made on what stands then: a fault long over is no excuse for a flip."""
    world = after("hold ldap; crash ldap primary; heal ldap primary; release ldap")
    assert world.at["ldap"] == P
    assert world.past == ()


def test_a_sequence_is_its_seed() -> None:
    """The same seed, the same round; every event is possible when it comes; all is looked at in the end."""
    seen = set()
    for seed in range(600):
        this, world = generate(seed), World()
        assert this == generate(seed)
        assert this.events[-1].quiet
        for one in this.events:
            assert KINDS[one.kind].possible(world, one.what, one.server)
            world = settle(apply(world, one)) if one.quiet else apply(world, one)
            assert all(world.at[name] for name in SERVICES)
            seen.add(one.kind)
    assert seen == set(KINDS)
    assert {this.core for this in map(generate, range(20))} == {"nagios", "icinga2"}


def test_what_is_left_out_is_left_out() -> None:
    """Neither kinds that are named, nor slow ones in a quick round, nor a last resort that is not wanted."""
    left_out, resorts = ("fill disk", "last resort"), 0
    for seed in range(300):
        for wanted in (True, False):
            world = World()
            for one in generate(seed, quick=True, without=() if wanted else left_out).events:
                world = apply(world, one)
                resorts += wanted and last_resort(world)
                assert not KINDS[one.kind].slow
                assert wanted or (one.kind != "fill disk" and not last_resort(world))
                world = settle(world) if one.quiet else world
    assert resorts > 10, "it can be told"


def test_everything_is_mended() -> None:
    """Whatever a round did, the events that end it leave a world without faults."""
    for seed in range(300):
        world = World()
        for one in generate(seed).events:
            world = settle(apply(world, one)) if one.quiet else apply(world, one)
        for one in mending(world):
            assert KINDS[one.kind].possible(world, one.what, one.server), one
            world = apply(world, one)
        assert replace(settle(world), at=World().at) == World()


def test_every_kind_can_be_done() -> None:
    """What the model knows the ground can do (healing needs the world, and is done there)."""
    assert set(DO) | {"heal"} == set(KINDS)
