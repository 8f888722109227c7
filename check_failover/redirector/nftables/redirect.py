"""The nftables redirect: it changes its own table, ``inet check_failover``, and no other table.

What changes while the rules stay (``ruleset`` says how a packet reaches its service's chains)::

    set  on_standby4, on_standby6  the services whose target is the standby: a flip adds or removes one element
    set  dead          servers that were just left, by ct mark: what stranded clients send is answered with a RST
    set  refusing      servers whose refusals of new connections reach the clients, by ct mark; else they are withheld
    set  drill_NAME    a drill's test client, which goes to the standby until its time is over

and counters of each service: requests_NAME (packets that demand an answer), replies_NAME, refusals_NAME (withheld).

Source: nft(8); which packets a refused SYN gets: RFC 9293, 3.10.7.1.
"""

import ipaddress
import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping

from check_failover.config import Config
from check_failover.model import Endpoint, Service, Target
from check_failover.records import Activity
from check_failover.redirector import Change, RedirectError, Wiring
from check_failover.redirector.nftables import nft, ruleset
from check_failover.redirector.nftables.conntrack import Conntrack, Entry
from check_failover.redirector.nftables.poke import Poker
from check_failover.redirector.nftables.table import Table

log = logging.getLogger(__name__)


def ct_marks(services: Iterable[Service]) -> dict[str, int]:
    """A ct mark for each service: from its name, so that it survives a change of the config's order."""
    marks: dict[str, int] = {}
    for service in services:
        number = zlib.crc32(service.name.encode()) % ruleset.MOST_SERVICES + 1
        while number << 22 in marks.values():
            number = number % ruleset.MOST_SERVICES + 1
        marks[service.name] = number << 22
    return marks


class Nftables:
    """See ``redirector.Redirect``."""

    cuts = True
    drills = True

    def __init__(self, config: Config) -> None:
        self._services = {service.name: service for service in config.services}
        self._marks = ct_marks(config.services)
        self._clients = config.controller.client_interfaces
        self._chains = ruleset.counts(config.services, self._marks, self._clients)
        self._shared = ruleset.shared_counts(config.services, self._marks)
        self._signatures = ruleset.signatures(config.services, self._marks, self._clients)
        self._table = Table(ruleset.TABLE.split()[1])
        self._conntrack = Conntrack()
        self._poker = Poker()
        self._finished = Conntrack()  # of its own, because the kernel takes long to forget many

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
                nft.run(ruleset.update(gone, changed, services, marks, targets, installed))
                if self.whole():
                    return
            except RedirectError as error:
                log.warning("%s: loading the whole table", error)
        nft.run(ruleset.ruleset(services, marks, targets, self._clients))

    def wired(self, services: Iterable[Service]) -> dict[str, Wiring]:
        try:
            on_standby = {key for version in (4, 6) for key in self._table.elements(f"on_standby{version}")}
            dead, refusing = set(self._table.elements("dead")), set(self._table.elements("refusing"))
        except RedirectError:
            return {}
        found = {}
        for service in services:
            target = Target.STANDBY if service_key(service) in on_standby else Target.PRIMARY
            left, heard = ([each for each in Target if self._key(service, each) in keys] for keys in (dead, refusing))
            withheld = not heard if len(heard) != 1 else None  # one of two: another hand, so neither is right
            found[service.name] = Wiring(target, left[0] if left else None, withheld)
        return found

    def whole(self) -> bool:
        try:
            rules = self._table.rules()
            return all(rules[name] >= number for name, number in self._chains.items()) and all(
                len(self._table.elements(name)) >= number for name, number in self._shared.items()
            )
        except RedirectError:
            return False

    def wire(self, service: Service, wiring: Wiring) -> None:
        where = (f"on_standby{service.address.family}", service_key(service))
        wanted = {where: wiring.target is Target.STANDBY}
        for server in Target:
            key = self._key(service, server)
            wanted |= {("dead", key): server is wiring.dead, ("refusing", key): not wiring.withheld}
        present = [element for element, there in wanted.items() if there]
        self._table.change(add=present, remove=[element for element in wanted if element not in present])

    def watch(self, changed: Callable[[Change], None]) -> bool:
        try:
            self._table.watch(changed)
        except RedirectError as error:
            log.warning("%s: the rules are read every few seconds instead", error)
            return False
        return True

    def forget_unanswered(self, service: Service, old: Target) -> int:
        """A UDP flow has no end of its own, so the kernel forgets all of them at once."""
        halves = self._open(service, old, unassured=True)
        if service.protocol == "udp":
            self._flush(self._conntrack, service, old, ruleset.CT_SERVER)
        else:
            self._conntrack.delete_all([entry for entry in halves if not entry.established])
        return sum(entry.unanswered for entry in halves)

    def free_stranded(self, service: Service, old: Target) -> int:
        """Poke the clients that only wait; a client that sends meets the reject rule without a poke."""
        found = self._open(service, old)
        self._conntrack.delete_all([entry for entry in found if not entry.established])
        return self._poker.poke(service, [entry.client for entry in found if entry.established])

    def sweep_finished(self, service: Service, old: Target) -> None:
        self._flush(self._finished, service, old, ruleset.CT_SERVER | ruleset.FINISHED, ruleset.FINISHED)

    def sweep(self, service: Service, old: Target) -> None:
        self._flush(self._conntrack, service, old, ruleset.CT_SERVER)

    def open_connections(self, servers: Mapping[str, Target]) -> dict[str, int]:
        """One dump for all; the kernel filters by the bits in which their marks agree."""
        marks = {self._mark(self._services[name], server): name for name, server in servers.items()}
        mask, some, left = ruleset.CT_SERVER | ruleset.FINISHED, next(iter(marks), 0), dict.fromkeys(servers, 0)
        for mark in marks:
            mask &= ~(mark ^ some)
        for family in {self._services[name].address.family for name in servers}:
            for entry in self._conntrack.dump(some & mask, mask, family):
                name = marks.get(entry.mark & (ruleset.CT_SERVER | ruleset.FINISHED))
                if name is not None and entry.open:
                    left[name] += 1
        return left

    def elsewhere(self, service: Service, target: Target) -> list[Endpoint]:
        return [entry.client for entry in self._open(service, target.other) if entry.open]

    def cut(self, service: Service, old: Target) -> int:
        cut = self.open_connections({service.name: old})[service.name]
        self.forget_unanswered(service, old)
        self.free_stranded(service, old)
        return cut

    def _mark(self, service: Service, server: Target) -> int:
        """Of the service's connections to that server, unless they are finished."""
        return self._marks[service.name] | (ruleset.ON_STANDBY if server is Target.STANDBY else 0)

    def _key(self, service: Service, server: Target) -> bytes:
        return struct.pack("=I", self._mark(service, server))

    def _open(self, service: Service, server: Target, *, unassured: bool = False) -> list[Entry]:
        """Entries that are not finished; ``unassured``: without those that have carried data both ways."""
        mark, mask, family = self._mark(service, server), ruleset.CT_SERVER | ruleset.FINISHED, service.address.family
        return self._conntrack.dump(mark, mask, family, unassured=unassured)

    def _flush(self, conntrack: Conntrack, service: Service, server: Target, mask: int, also: int = 0) -> None:
        conntrack.flush(self._mark(service, server) | also, mask, service.address.family)

    def activity(self, services: Iterable[Service]) -> dict[str, Activity]:
        count, what = self._table.counter, ("requests", "replies")
        return {one.name: Activity(*(count(f"{which}_{one.name}") for which in what)) for one in services}

    def forget(self, service: Service, client: str, port: int) -> bool:
        entry = self._conntrack.find(service, Endpoint(client, port))
        if entry is None:  # conntrack deletes an entry whose first reply is a RST
            return True
        if not entry.unanswered:
            return False
        self._conntrack.delete_all([entry])
        return True

    def send_to_standby(self, service: Service, client: str | None, seconds: float) -> None:
        name = f"drill_{service.name}"
        add = [(name, ipaddress.ip_address(client).packed)] if client else []
        self._table.change(flush=[name], add=add, seconds=seconds)

    def answered(self, service: Service, client: str) -> frozenset[tuple[Target, int]]:
        found = self._conntrack.dump(self._marks[service.name], ruleset.CT_MASK, service.address.family)
        return frozenset(
            (Target.STANDBY if entry.mark & ruleset.ON_STANDBY else Target.PRIMARY, entry.client.port)
            for entry in found
            if entry.client.address == client and not entry.unanswered
        )

    def _installed(self) -> dict[str, str]:
        """Service -> the signature chain that our table has for it (``ruleset.signatures``); empty: no table."""
        try:
            return dict(found for name in self._table.chains() if (found := ruleset.signed(name)) is not None)
        except RedirectError:
            return {}


def service_key(service: Service) -> bytes:
    """Protocol, address and port as the kernel stores them in a concatenation: each fills whole registers."""
    protocol = {"tcp": 6, "udp": 17}[service.protocol]
    return struct.pack("!B3x", protocol) + service.address.packed + struct.pack("!H2x", service.address.port)
