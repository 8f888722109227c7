"""The nftables redirect: one table of our own, ``inet check_failover``; nobody else's is ever touched.

What each service has (``ruleset`` says how the shared chains reach it)::

    map     target_NAME    service address . port -> server . port: the redirect; a flip replaces its one element
    set     dead_NAME      a server that is gone: what its stranded clients send is answered with a RST
    set     withheld_NAME  the servers whose refusals of new connections are withheld while it is undecided
    set     drill_NAME     a drill's test client, which goes to the standby until its time is over
    counter requests_NAME, replies_NAME, refusals_NAME    packets that demand an answer, answers, withheld refusals

A map per service, because a map element cannot be replaced in place: ``flush map`` and ``add element`` go into one
transaction, and services stay independent of each other. The ct mark tells a service's connections from all others;
it lives in the upper 12 bits and leaves the lower 20 to the site's own rules.

Source: nft(8); which packets a refused SYN gets: RFC 9293, 3.10.7.1.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from check_failover.config import Config
from check_failover.model import Endpoint, Service, Target
from check_failover.records import Activity
from check_failover.redirector import RedirectError
from check_failover.redirector.nftables.conntrack import Conntrack, Entry
from check_failover.redirector.nftables.nft import Nft
from check_failover.redirector.nftables.poke import Poker
from check_failover.redirector.nftables.ruleset import CT_MASK, TABLE, counts, pair, ruleset, signatures, signed, update

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
        """Right rules are left alone; where only services differ, only these are replaced; else the whole table."""
        services, marks, installed = self._services.values(), self._marks, self._installed()
        changed = [service for name, service in self._services.items() if self._wrong(name, installed, targets)]
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

    def _wrong(self, name: str, installed: Mapping[str, str], targets: Mapping[str, Target]) -> bool:
        return installed.get(name) != self._signatures[name] or self.current(self._services[name]) is not targets[name]

    def current(self, service: Service) -> Target | None:
        try:
            objects = self._nft.list(f"map {TABLE} target_{service.name}")
        except RedirectError:
            return None
        elements: list[Any] = next((entry["map"].get("elem", []) for entry in objects if "map" in entry), [])
        if len(elements) != 1:
            return None
        try:
            key, server = (Endpoint(*part["concat"]) for part in elements[0])
        except (KeyError, TypeError, ValueError):
            return None  # not as we write it: another hand's, with a comment, say
        if key != service.address:
            return None
        return next((target for target in Target if service.server(target) == server), None)

    def whole(self) -> bool:
        try:
            objects = self._nft.list(f"table {TABLE}")
        except RedirectError:
            return False
        found = Counter(entry["rule"]["chain"] for entry in objects if "rule" in entry)
        for entry in objects:
            for one in (entry.get("map"), entry.get("set")):
                if one is not None and one["name"] in self._counts:
                    found[one["name"]] = len(one.get("elem", []))
        return all(found[name] >= number for name, number in self._counts.items())

    def set(self, service: Service, target: Target, *, drain: bool = False) -> None:
        name, old = service.name, service.server(target.other)
        dead = "" if drain else f"add element {TABLE} dead_{name} {{ {pair(old)} }}\n"
        self._nft.run(
            f"flush map {TABLE} target_{name}\n"
            f"add element {TABLE} target_{name} {{ {pair(service.address)} : {pair(service.server(target))} }}\n"
            f"flush set {TABLE} dead_{name}\n{dead}"
        )

    def forget_unanswered(self, service: Service, old: Target) -> int:
        """One dump serves both halves of the repair: it takes 15 ms, because the kernel walks its whole table."""
        ours = self._entries(service, old)
        self._waiting[service.name] = [entry.client for entry in ours if entry.established]
        rest = [entry for entry in ours if not entry.established]  # finished ones too: their ports are used again
        self._conntrack.delete_all(rest)
        return sum(entry.unanswered for entry in rest)

    def free_stranded(self, service: Service, old: Target) -> int:
        """Poke those who only wait; who sends something meets the reject rule without us."""
        return self._poker.poke(service, self._waiting.pop(service.name, []))

    def sweep(self, service: Service, old: Target) -> int:
        return self._conntrack.delete_all(self._entries(service, old))

    def open_connections(self, service: Service, server: Target) -> int:
        return sum(entry.open for entry in self._entries(service, server))

    def elsewhere(self, service: Service, target: Target) -> list[Endpoint]:
        found = self._conntrack.dump(self._marks[service.name], CT_MASK, service.address.family)
        return [entry.client for entry in found if entry.open and entry.server != service.server(target)]

    def cut(self, service: Service, old: Target) -> int:
        self._nft.run(f"add element {TABLE} dead_{service.name} {{ {pair(service.server(old))} }}\n")
        cut = self.open_connections(service, old)
        self.forget_unanswered(service, old)
        self.free_stranded(service, old)
        return cut

    def _entries(self, service: Service, server: Target) -> list[Entry]:
        wanted = service.server(server)
        found = self._conntrack.dump(self._marks[service.name], CT_MASK, service.address.family)
        return [entry for entry in found if entry.server == wanted]

    def withhold(self, service: Service, on: bool) -> None:
        servers = ", ".join(pair(service.server(target)) for target in Target) if on else ""
        add = f"add element {TABLE} withheld_{service.name} {{ {servers} }}\n" if on else ""
        self._nft.run(f"flush set {TABLE} withheld_{service.name}\n{add}")

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
        if entry is None:  # a RST that is the first reply has conntrack forget by itself
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
