"""Which server clients may have reached, and when: what the sync asks before it overwrites a server's data. Pure.

The redirector keeps the records with its state, and writes them before the first packet can reach a server. A record
without an end is *open*: the server may still be reached. All times are the controller's wall clock.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from typing import TypeAlias

from check_failover.model import Target, Why
from check_failover.records import Reach

Reaches: TypeAlias = tuple[Reach, ...]
MOST = 32  # records of a service
LEASE = 60.0  # seconds for which one write to the disk covers rescues
RENEWED = 30.0  # a lease is written anew when less is left
LATELY = 3600.0  # seconds for which a status still shows a server that is not reached any more
_WORDS = {
    Why.SERVES: "serves",
    Why.DRAIN: "drain",
    Why.RESCUE: "{} rescued",
    Why.MOVE: "{} moved",
    Why.DRILL: "drill",
    Why.PEER: "by the other controller",
    Why.PEER_SILENT: "perhaps by the other controller, which is silent",
}


def derived(target: Target, since: float | None) -> Reaches:
    """Of a state that an earlier version wrote: the target serves since the last flip, the other one did until then."""
    serves = Reach(target, Why.SERVES, since or 0.0)
    return (serves,) if since is None else (Reach(target.other, Why.SERVES, 0.0, since), serves)


def opened(reached: Reaches, server: Target, why: Why, now: float) -> Reaches:
    """The server may be reached from now on; nothing changes where that is known already."""
    if any((one.server, one.why, one.end) == (server, why, None) for one in reached):
        return reached
    return merged((*reached, Reach(server, why, now)))


def closed(reached: Reaches, why: Why, now: float, server: Target | None = None) -> Reaches:
    """The end of what is open for that reason, of either server or of one; also of what was to end later."""
    return tuple(
        replace(one, end=max(one.begin, now))
        if one.why is why and server in (None, one.server) and _end(one) > now
        else one
        for one in reached
    )


def turned(reached: Reaches, target: Target, now: float, *, drain: bool, begin: float | None = None) -> Reaches:
    """A flip to ``target``; with ``drain`` the other server keeps its open connections.

    ``begin``: when the other controller of a pair did it, where this one follows ``now``.
    """
    begin = now if begin is None else begin
    reached = closed(closed(reached, Why.SERVES, now, target.other), Why.DRAIN, now)
    reached = opened(reached, target, Why.SERVES, begin)
    return opened(reached, target.other, Why.DRAIN, begin) if drain else reached


def leased(reached: Reaches, server: Target, why: Why, now: float) -> tuple[Reaches, bool]:
    """One more connection, and whether the record must be on the disk before the connection reaches the server."""
    for at, one in enumerate(reached):
        if (one.server, one.why) == (server, why) and one.end is not None and one.begin <= now < one.end:
            due = one.end - now < RENEWED
            one = replace(one, count=one.count + 1, end=now + LEASE if due else one.end)
            return (*reached[:at], one, *reached[at + 1 :]), due
    return merged((*reached, Reach(server, why, now, now + LEASE, 1))), True


def merged(reached: Reaches) -> Reaches:
    """At most ``MOST`` records, oldest first; beyond that, the two oldest of the same server and reason are merged."""
    found = sorted(reached, key=lambda one: one.begin)
    while len(found) > MOST:
        pairs = combinations(sorted(found, key=lambda one: one.end is None), 2)  # those that are over first
        one, other = next((a, b) for a, b in pairs if (a.server, a.why) == (b.server, b.why))
        end = None if one.end is None or other.end is None else max(one.end, other.end)
        both = replace(one, begin=min(one.begin, other.begin), end=end, count=one.count + other.count)
        found.remove(one)
        found.remove(other)
        found = sorted((both, *found), key=lambda one: one.begin)
    return tuple(found)


def joined(mine: Reaches, theirs: Reaches, now: float) -> Reaches:
    """``mine`` and what the other controller of a pair did beyond it. Called again with the same it changes nothing."""
    known = [one for one in mine if one.why is not Why.PEER or one.end is not None]
    told = {
        (one.server, one.begin): replace(one, why=Why.PEER)
        for one in sorted(theirs[:MOST], key=_end)  # of two that began at once the longer one counts
        if one.why not in (Why.PEER, Why.PEER_SILENT)
        and not any(w.server is one.server and w.begin <= one.begin and _end(one) <= _end(w) for w in known)
    }
    new = [one for one in known if one.why is not Why.PEER or (one.server, one.begin) not in told]
    new += [  # the other controller knows no more of them
        replace(one, end=max(one.begin, now))
        for one in mine
        if one.why is Why.PEER and one.end is None and (one.server, one.begin) not in told
    ]
    return merged((*new, *told.values()))


def _end(one: Reach) -> float:
    return math.inf if one.end is None else one.end


def since(reached: Iterable[Reach], server: Target, at: float) -> Reaches:
    """How clients may have reached the server after that moment; with the present one: how they reach it now."""
    return tuple(one for one in reached if one.server is server and _end(one) > at)


def text(reached: Iterable[Reach], now: float) -> str:
    """For people: "6 connections rescued 12:03-12:05, drain since 12:01"."""
    return ", ".join(_text(one, now) for one in reached)


def line(reached: Iterable[Reach], target: Target, now: float) -> str | None:
    """How the server that is not the target was or is reached; None: not lately."""
    lately = since(reached, target.other, now - LATELY)
    how = "still reached" if since(lately, target.other, now) else "reached lately"
    return f"{target.other} {how}: {text(lately, now)}" if lately else None


def _text(one: Reach, now: float) -> str:
    what = _WORDS[one.why].format(f"{one.count} connection{'s' * (one.count != 1)}")
    begin, end = _clock(one.begin, now), "" if one.end is None else _clock(one.end, now)
    if not one.begin:  # from the start
        return f"{what} until {end}" if end else what
    return f"{what} {begin}-{end}" if end else f"{what} since {begin}"


def _clock(at: float, now: float) -> str:
    """Local time; with its date unless it is today."""
    then = time.localtime(at)
    return time.strftime("%H:%M" if then[:3] == time.localtime(now)[:3] else "%Y-%m-%d %H:%M", then)
