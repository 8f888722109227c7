"""The ipfilter redirect, for FreeBSD, NetBSD and illumos: one ``rdr`` rule per service and client interface.

The kernel has no transaction for two rules, but it appends, and of two equal rules the older one wins. So a flip is

1. add the new rule: it waits behind the old one
2. the file that the system loads at boot (``ipfilter_file``)
3. remove the old rule and, unless draining, exactly its sessions (``ipnat -r -p``): from here the new one works
4. read back

At every moment there is a rule. Killed in between, both are there, the old one works, and the next ``install`` or
``wire`` finishes the job. Removing first loses connections (measured: 200 of 1,200 in 40 flips, against none).

Own rules carry a tag, ``cfo.NAME``; all others are the site's and are never touched. IPFilter 4 (illumos) has no tags
and cannot remove single sessions: own rules are then those whose address, port and servers are in the config.

Sources: ipnat(5), ipnat(8), IPFilter 5.1.2 on FreeBSD 14.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from check_failover.config import Config
from check_failover.model import Endpoint, Service, Target
from check_failover.records import Activity
from check_failover.redirector import Change, RedirectError, Wiring, current
from check_failover.redirector.ipfilter.file import BootFile
from check_failover.redirector.ipfilter.poke import poke
from check_failover.redirector.ipfilter.rules import MARK, Rdr, Rule, lines, rdr, same_line, serving, source_map, tag_of
from check_failover.redirector.ipfilter.sessions import Listing, Meter, Session
from check_failover.redirector.ipfilter.settings import Settings
from check_failover.redirector.ipfilter.tool import Ipnat

log = logging.getLogger(__name__)


class Ipfilter:
    """See ``redirector.Redirect``."""

    cuts = False
    drills = False

    def __init__(self, config: Config) -> None:
        self._settings = Settings.of(config)
        self._services = {service.name: service for service in config.services}
        self._ipnat = Ipnat(self._settings.ipnat, self._settings.modern, self._settings.timeout)
        self._file = BootFile(self._settings.rules)
        self._targets: dict[str, Target] = {}  # as they should be: what the file at boot says
        self._unsaved: RedirectError | None = None
        self._left: dict[str, list[Session]] = {}  # the old server's sessions at the last flip
        self._meters = {name: Meter() for name in self._services}
        self._metering = threading.Lock()

    # ------------------------------------------------------------ the rules

    def install(self, targets: Mapping[str, Target]) -> None:
        """Install every service that can be installed, then raise the first error."""
        before = self._ipnat.read(verbose=True)
        self._targets = dict(targets)
        self._save()
        maps = [rule for name in targets for rule in self._maps(self._services[name])]
        faults: list[str] = []
        for rule in _missing(maps, before.rules):
            with _told_later(faults):
                self._ipnat.add(rule)
        for name, target in targets.items():
            service = self._services[name]
            self._targets[name] = self._served(service, before.rules) or target  # until it is done
            with _told_later(faults):
                self._add(service, target, before.rules)
                self._finish(service, target, before, drain=False)
                self._targets[name] = target
        with _told_later(faults):
            self._remove_left_over(before.rules, maps)
        if faults:
            self._save()
            raise RedirectError("; ".join(dict.fromkeys(faults)))

    def whole(self) -> bool:
        """The redirect's rule of a service is all that there is, and ``wired`` reads it."""
        return True

    def wired(self, services: Iterable[Service]) -> dict[str, Wiring]:
        """IPFilter cannot tell a refusal of a new connection from other RSTs: clients see it until the flip."""
        try:
            rules = self._ipnat.read().rules
        except RedirectError:
            return {}
        served = ((service.name, self._served(service, rules)) for service in services)
        return {name: Wiring(target, withheld=None) for name, target in served if target is not None}

    def wire(self, service: Service, wiring: Wiring) -> None:
        """The old server's sessions go with its rule, unless it drains: none counts as dead afterwards."""
        target, drain = wiring.target, wiring.dead is None
        before = self._ipnat.read(verbose=True)
        served = {name: self._served(other, before.rules) for name, other in self._services.items()}
        were = {name: one for name, one in served.items() if one} | self._targets
        self._add(service, target, before.rules)
        self._targets = were | {service.name: target}
        self._save()
        try:
            self._finish(service, target, before, drain=drain)
        except RedirectError:
            self._targets = were
            self._take_back(service, target.other)
            raise

    # ------------------------------------------------------------ connections

    def forget_unanswered(self, service: Service, old: Target) -> int:
        """``wire`` removed them with the rule, all at once; here they are counted."""
        unanswered = [session for session in self._left.get(service.name, []) if not session.answered]
        if unanswered and not self._settings.modern:
            raise RedirectError(f"{len(unanswered)} connections in the making stay with the old server: {_BY_HAND}")
        return len(unanswered)

    def sweep(self, service: Service, old: Target) -> None:
        """Nothing: the sessions went with the rule."""

    sweep_finished = sweep

    def watch(self, changed: Callable[[Change], None]) -> bool:
        """IPFilter tells nothing."""
        return False

    def free_stranded(self, service: Service, old: Target) -> int:
        """The sessions went with the rule, so the new server resets a client that sends. Clients that only wait are
        poked, so that they send."""
        clients = [session.client for session in self._left.pop(service.name, []) if session.answered]
        if clients and not self._settings.modern:
            raise RedirectError(f"{len(clients)} open connections stay with the old server: {_BY_HAND}")
        poked = 0
        if clients and service.protocol == "tcp":
            try:
                poked = poke((service.address, client) for client in clients)
            except OSError as error:
                raise RedirectError(
                    f"{service.name}: cannot wake {len(clients)} clients that only wait: {error.strerror}: raw sockets "
                    f"are root's, and {service.address.address} must be an address of this machine"
                ) from None
        if self._unsaved:
            raise self._unsaved
        return poked

    def open_connections(self, servers: Mapping[str, Target]) -> dict[str, int]:
        """Sessions as the NAT's table has them: a closed one stays for some minutes."""
        sessions = self._ipnat.read(verbose=True).sessions if servers else ()
        wanted = {name: (self._services[name], self._services[name].server(one)) for name, one in servers.items()}
        return {name: sum(s.of(of) and s.server == server for s in sessions) for name, (of, server) in wanted.items()}

    def elsewhere(self, service: Service, target: Target) -> list[Endpoint]:
        wanted = service.server(target)
        sessions = self._ipnat.read(verbose=True).sessions
        return [one.client for one in sessions if one.of(service) and one.server != wanted]

    def cut(self, service: Service, old: Target) -> int:
        """Always RedirectError: a session whose rule is gone cannot be removed without all others."""
        raise RedirectError("ipfilter cannot cut what a drain left: 'ipnat -F' frees it, and everybody else's sessions")

    def forget(self, service: Service, client: str, port: int) -> bool:
        """Always False: IPFilter cannot remove a single session, so no single connection can be rescued."""
        return False

    def send_to_standby(self, service: Service, client: str | None, seconds: float) -> None:
        """Always RedirectError: a rule for one client would stay when its program is killed."""
        raise RedirectError("ipfilter's rules have no timeout: a drill leaves the redirect out")

    def answered(self, service: Service, client: str) -> frozenset[tuple[Target, int]]:
        """None: asked in a drill only."""
        return frozenset()

    def activity(self, services: Iterable[Service]) -> dict[str, Activity]:
        """Packets as the NAT's session table counts them, added up since this program started. All packets: the table
        does not tell those that demand an answer."""
        with self._metering:
            sessions = self._ipnat.read(verbose=True).sessions
            for name, meter in self._meters.items():
                meter.look(session for session in sessions if session.of(self._services[name]))
            meters = {service.name: self._meters[service.name] for service in services}
            return {name: Activity(meter.asked, meter.answered) for name, meter in meters.items()}

    # ------------------------------------------------------------ what should be there

    def _tag(self, service: Service) -> str | None:
        return tag_of(service.name) if self._settings.modern else None

    def _redirects(self, service: Service, target: Target) -> list[Rdr]:
        return [rdr(service, target, interface, self._tag(service)) for interface in self._settings.client_interfaces]

    def _maps(self, service: Service) -> list[Rule]:
        """For both servers, always: a flip leaves them alone."""
        interface = self._settings.server_interface
        if service.source_nat is None or interface is None:
            return []
        return [source_map(service, service.server(target), interface, self._tag(service)) for target in Target]

    def _own(self, service: Service, rule: Rule) -> bool:
        """Whether it is a redirect that we made for this service."""
        if self._settings.modern:
            return isinstance(rule, Rdr) and rule.tag == tag_of(service.name)
        return any(same_line(rule, ours) for target in Target for ours in self._redirects(service, target))

    def _served(self, service: Service, rules: Iterable[Rule]) -> Target | None:
        """The target to which our rules send every client; None where another rule is before them, or they differ."""
        found: set[Endpoint | None] = set()
        rules = tuple(rules)
        for interface in self._settings.client_interfaces:
            rule = serving(rules, interface, service.address, service.protocol)
            found.add(rule.server if rule and self._own(service, rule) else None)
        return next((target for target in Target if found == {service.server(target)}), None)

    # ------------------------------------------------------------ steps

    def _add(self, service: Service, target: Target, there: Iterable[Rule]) -> None:
        for rule in _missing(self._redirects(service, target), there):
            self._ipnat.add(rule)

    def _finish(self, service: Service, target: Target, before: Listing, *, drain: bool) -> None:
        """Remove the old rule, read the kernel back, and note the clients of the removed sessions."""
        moved = self._served(service, before.rules) is not target
        try:
            self._remove(service, target, before.rules, purge=not drain)
            if moved:
                self._confirm(service, target)
        except RedirectError:
            if current(self, service) is not target:  # otherwise the tool failed after it had done its work
                raise
        if moved:
            old = service.server(target.other)
            gone = [one for one in before.sessions if one.of(service) and one.server == old]
            self._left[service.name] = [] if drain else gone

    def _remove(self, service: Service, target: Target, there: Iterable[Rule], *, purge: bool) -> None:
        """Our redirects of that service that lead elsewhere, in the words in which the kernel printed them."""
        wanted = self._redirects(service, target)
        for rule in there:
            if self._own(service, rule) and not any(same_line(rule, right) for right in wanted):
                self._ipnat.remove(rule if self._settings.modern else self._as_added(service, rule), purge=purge)

    def _as_added(self, service: Service, rule: Rule) -> Rule:
        """Version 4 may not take back what it prints; there, own rules are those that we would write."""
        ours = (own for target in Target for own in self._redirects(service, target))
        return next((own for own in ours if same_line(own, rule)), rule)

    def _remove_left_over(self, there: Iterable[Rule], maps: list[Rule]) -> None:
        """Marked rules of services that are no longer configured, and map rules that are no longer right."""
        if not self._settings.modern:
            return
        redirects = {tag_of(name) for name in self._targets}
        for rule in there:
            left = rule.tag not in redirects if isinstance(rule, Rdr) else bool(_missing([rule], maps))
            if left and (rule.tag or "").startswith(MARK):
                self._ipnat.remove(rule, purge=isinstance(rule, Rdr))

    def _confirm(self, service: Service, target: Target) -> None:
        rules = self._ipnat.read().rules
        if self._served(service, rules) is target:
            return
        for interface in self._settings.client_interfaces:
            rule = serving(rules, interface, service.address, service.protocol)
            if rule and not self._own(service, rule):
                raise RedirectError(
                    f"{service.name}: another rule is before ours and takes the traffic: [{rule}]: remove it "
                    f"(ipnat -r -p -f -), also from {self._settings.rules}"
                )
        raise RedirectError(f"{service.name}: ipnat took the rule for the {target}, and the kernel does not have it")

    def _take_back(self, service: Service, target: Target) -> None:
        """Restore the old state as far as possible; a new rule that stays has no effect behind the old one."""
        with suppress(RedirectError):
            there = self._ipnat.read().rules
            self._add(service, target, there)
            self._remove(service, target, there, purge=True)
        self._save()

    def _save(self) -> None:
        """The file for the next boot. The kernel goes on without it: clients must not wait for a full disk."""
        rules: list[Rule] = []
        for name, target in self._targets.items():
            rules += [*self._maps(self._services[name]), *self._redirects(self._services[name], target)]
        self._unsaved = None
        try:
            self._file.write(lines(rules))
        except RedirectError as error:
            log.error("%s", error)
            self._unsaved = error


_BY_HAND = "this version of IPFilter cannot remove single sessions; 'ipnat -F' frees them, and everybody else's too"


@contextmanager
def _told_later(faults: list[str]) -> Iterator[None]:
    try:
        yield
    except RedirectError as error:
        faults.append(str(error))


def _missing(wanted: Iterable[Rule], there: Iterable[Rule]) -> list[Rule]:
    there = tuple(there)
    return [rule for rule in wanted if not any(same_line(rule, one) for one in there)]
