"""The nftables redirect: it changes its own table, ``inet check_failover``, and no other table.

What each service has (``ruleset`` says how the shared chains reach it)::

    map     target_NAME    service address . port -> server . port: the redirect; a flip replaces its one element
    set     dead_NAME      the server that was just left: what its stranded clients send is answered with a RST
    set     withheld_NAME  the servers whose refusals of new connections are withheld while it is undecided
    set     drill_NAME     a drill's test client, which goes to the standby until its time is over
    counter requests_NAME, replies_NAME, refusals_NAME    packets that demand an answer, answers, withheld refusals

A map per service, because a map element cannot be replaced in place: ``flush map`` and ``add element`` go into one
transaction, and services stay independent of each other. The ct mark tells a service's connections from all others;
it lives in the upper 12 bits and leaves the lower 20 to the site's own rules.

Source: nft(8); which packets a refused SYN gets: RFC 9293, 3.10.7.1.
"""

import logging
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from check_failover.config import Config
from check_failover.model import Endpoint, Service, Target
from check_failover.records import Activity
from check_failover.redirector import RedirectError, Wiring
from check_failover.redirector.nftables.conntrack import Conntrack, Entry
from check_failover.redirector.nftables.nft import Nft
from check_failover.redirector.nftables.poke import Poker
from check_failover.redirector.nftables.ruleset import CT_MASK, TABLE, counts, pair, ruleset, signatures, signed, update

_WIRED = {"target": "map", "dead": "set", "withheld": "set"}
COUNTERS_GOOD_FOR = 0.05  # seconds: a status of all services reads them once

log = logging.getLogger(__name__)


def ct_marks(services: Iterable[Service]) -> dict[str, int]:
    """A ct mark for each service: from its name, so that it survives a change of the config's order."""
    marks: dict[str, int] = {}
    for service in services:
        number = zlib.crc32(service.name.encode()) % 0xFFE + 1
        while number << 20 in marks.values():
            number = number % 0xFFE + 1
        marks[service.name] = number << 20
    return marks


class Nftables:
    """See ``redirector.Redirect``."""

    cuts = True
    drills = True

    def __init__(self, config: Config) -> None:
        self._services = {service.name: service for service in config.services}
        self._marks = ct_marks(config.services)
        self._counts = counts(config.services, self._marks)
        self._signatures = signatures(config.services, self._marks)
        self._nft = Nft()
        self._conntrack = Conntrack()
        self._poker = Poker()
        self._counters: tuple[float, dict[str, int]] = (float("-inf"), {})
        self._waiting: dict[str, list[Endpoint]] = {}

    def install(self, targets: Mapping[str, Target]) -> None:
        """Replace the services whose rules differ; the whole table where the shared part differs; nothing otherwise."""
        services, marks, installed = self._services.values(), self._marks, self._installed()
        right = {name for name, wiring in self.wired(services).items() if wiring.target is targets[name]}
        right = {name for name in right if installed.get(name) == self._signatures[name]}
        changed = [service for name, service in self._services.items() if name not in right]
        gone = installed.keys() - self._signatures.keys()
        if installed.get("shared") == self._signatures["shared"]:
            if not changed and not gone and self.whole():
                return
            try:
                self._nft.run(update(gone, changed, services, marks, targets, installed))
                if self.whole():
                    return
            except RedirectError as error:
                log.warning("%s: loading the whole table", error)
        self._nft.run(ruleset(services, marks, targets))

    def wired(self, services: Iterable[Service]) -> dict[str, Wiring]:
        """Of one service its own objects are listed, of several the whole table, once."""
        services = tuple(services)
        lists = [f"table {TABLE}"]
        if len(services) == 1:
            lists = [f"{kind} {TABLE} {what}_{services[0].name}" for what, kind in _WIRED.items()]
        try:
            found = _elements(entry for what in lists for entry in self._nft.list(what))
        except RedirectError:
            return {}
        return {one.name: wiring for one in services if (wiring := _wiring(one, found)) is not None}

    def whole(self) -> bool:
        try:
            objects = self._nft.list(f"table {TABLE}")
        except RedirectError:
            return False
        found = Counter(entry["rule"]["chain"] for entry in objects if "rule" in entry)
        found |= {name: len(elements) for name, elements in _elements(objects).items()}
        return all(found[name] >= number for name, number in self._counts.items())

    def wire(self, service: Service, wiring: Wiring) -> None:
        name, server = service.name, service.server(wiring.target)
        dead = [wiring.dead] if wiring.dead else []
        self._nft.run(
            f"flush map {TABLE} target_{name}\n"
            f"add element {TABLE} target_{name} {{ {pair(service.address)} : {pair(server)} }}\n"
            + _filled(service, "dead", dead)
            + _filled(service, "withheld", list(Target) if wiring.withheld else [])
        )

    def forget_unanswered(self, service: Service, old: Target) -> int:
        """One dump serves both halves of the repair: it takes 15 ms, because the kernel walks its whole table."""
        ours = self._entries(service, old)
        self._waiting[service.name] = [entry.client for entry in ours if entry.established]
        rest = [entry for entry in ours if not entry.established]  # finished ones too: their ports are used again
        self._conntrack.delete_all(rest)
        return sum(entry.unanswered for entry in rest)

    def free_stranded(self, service: Service, old: Target) -> int:
        """Poke the clients that only wait; a client that sends meets the reject rule without a poke."""
        return self._poker.poke(service, self._waiting.pop(service.name, []))

    def sweep(self, service: Service, old: Target) -> int:
        return self._conntrack.delete_all(self._entries(service, old))

    def open_connections(self, service: Service, server: Target) -> int:
        return sum(entry.open for entry in self._entries(service, server))

    def elsewhere(self, service: Service, target: Target) -> list[Endpoint]:
        found = self._conntrack.dump(self._marks[service.name], CT_MASK, service.address.family)
        return [entry.client for entry in found if entry.open and entry.server != service.server(target)]

    def cut(self, service: Service, old: Target) -> int:
        cut = self.open_connections(service, old)
        self.forget_unanswered(service, old)
        self.free_stranded(service, old)
        return cut

    def _entries(self, service: Service, server: Target) -> list[Entry]:
        wanted = service.server(server)
        found = self._conntrack.dump(self._marks[service.name], CT_MASK, service.address.family)
        return [entry for entry in found if entry.server == wanted]

    def activity(self, service: Service) -> Activity:
        at, values = self._counters
        if time.monotonic() - at > COUNTERS_GOOD_FOR:
            values = {
                entry["counter"]["name"]: int(entry["counter"]["packets"])
                for entry in self._nft.list(f"counters table {TABLE}")
                if "counter" in entry
            }
            self._counters = time.monotonic(), values
        return Activity(values.get(f"requests_{service.name}", 0), values.get(f"replies_{service.name}", 0))

    def forget(self, service: Service, client: str, port: int) -> bool:
        entry = self._conntrack.find(service, Endpoint(client, port))
        if entry is None:  # conntrack deletes an entry whose first reply is a RST
            return True
        if not entry.unanswered:
            return False
        self._conntrack.delete(entry)
        return True

    def send_to_standby(self, service: Service, client: str | None, seconds: float) -> None:
        name = service.name
        add = f"add element {TABLE} drill_{name} {{ {client} timeout {seconds:.0f}s }}\n" if client else ""
        self._nft.run(f"flush set {TABLE} drill_{name}\n{add}")

    def answered(self, service: Service, client: str) -> frozenset[tuple[Target, int]]:
        return frozenset(
            (target, entry.client.port)
            for target in Target
            for entry in self._entries(service, target)
            if entry.client.address == client and not entry.unanswered
        )

    def _installed(self) -> dict[str, str]:
        """Service -> the signature chain that our table has for it (``ruleset.signatures``); empty: no table."""
        try:
            chains = self._nft.list(f"chains {TABLE.split()[0]}")
        except RedirectError:
            return {}
        names = [e["chain"]["name"] for e in chains if "chain" in e and e["chain"]["table"] == TABLE.split()[1]]
        return dict(found for name in names if (found := signed(name)) is not None)


def _filled(service: Service, what: str, servers: Iterable[Target]) -> str:
    """Commands that leave exactly these servers in one of the service's sets."""
    name, pairs = f"{what}_{service.name}", ", ".join(pair(service.server(target)) for target in servers)
    return f"flush set {TABLE} {name}\n" + (f"add element {TABLE} {name} {{ {pairs} }}\n" if pairs else "")


def _elements(objects: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Of each map and set that was listed."""
    found = (one for entry in objects for one in (entry.get("map"), entry.get("set")) if one is not None)
    return {one["name"]: one.get("elem", []) for one in found}


def _wiring(service: Service, found: Mapping[str, list[Any]]) -> Wiring | None:
    """As the kernel has it; None where another program wrote the element in another form (with a comment, say)."""
    name, both = service.name, {service.server(each): each for each in Target}
    try:
        ((key, server),) = ((Endpoint(*part["concat"]) for part in one) for one in found[f"target_{name}"])
        dead = [both[Endpoint(*one["concat"])] for one in found[f"dead_{name}"]]
        withheld = {both[Endpoint(*one["concat"])] for one in found[f"withheld_{name}"]}
        if key != service.address or len(dead) > 1 or withheld not in (set(), set(Target)):
            return None
        return Wiring(both[server], dead[0] if dead else None, bool(withheld))
    except (KeyError, TypeError, ValueError):
        return None
