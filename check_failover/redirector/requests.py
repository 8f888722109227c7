"""The verbs of the redirector's socket: makes an order of a message, and an answer and a report of its outcome."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

from check_failover.config import Config
from check_failover.control import HISTORY_PAGE, MAX_HISTORY, Message
from check_failover.damping import decayed, proof
from check_failover.decide import Reason
from check_failover.listening import RequestRefusedError
from check_failover.model import Facts, Service, Target
from check_failover.peer import Peer
from check_failover.records import Caller, DrillStatus, JournalEntry, ServiceStatus, to_json
from check_failover.redirector import RedirectError, inquiry, messages, peer_record
from check_failover.redirector.afterwards import Afterwards
from check_failover.redirector.drill import Drills
from check_failover.redirector.elsewhere import Elsewhere
from check_failover.redirector.order import Order
from check_failover.redirector.report import CoreReports, detail_lines, redirect_state
from check_failover.redirector.state import StateError, outranks
from check_failover.redirector.steering import Steering
from check_failover.rights import by_hand, user_name

log = logging.getLogger(__name__)


class RedirectorRequests:
    """Handles the socket's verbs. The table in ``control`` describes them."""

    def __init__(self, config: Config, steering: Steering, report: CoreReports, drills: Drills) -> None:
        self._config, self._services, self._controller = config, config.services, config.controller
        self._steering, self._report, self._drills = steering, report, drills
        self._report_url: str | None = config.monitoring.get("report_url")
        self._started = time.monotonic()
        self._looked_at: dict[str, object] = {}  # what ``look`` saw last
        self._afterwards = Afterwards()
        self._elsewhere = Elsewhere(steering.elsewhere)

    def handle(self, message: Message, peer: Peer) -> Message:
        verb = str(message["verb"])
        if verb == "status":
            chosen = [one for one in self._services if one.name == message.get("service")] or self._services
            return {"services": {name: to_json(status) for name, status in self.statuses(chosen).items()}}
        if verb == "history":
            return self._history(message)
        if verb == "state":
            states = {name: asdict(state) for name, state in self._steering.states().items()}
            return {"state": states, "sync": peer_record.ours(self._config), "heard": peer_record.heard(self._config)}
        by = messages.words(message.get("by") or user_name(peer.uid))[:200]
        try:
            if verb == "downtime":
                return self._downtime(message, by, peer)
            if verb == "follow":
                return self._follow(message)
            if verb == "activity":
                found = self._steering.activity(one for one in self._services if one.name in messages.names(message))
                return {"services": {name: astuple(counted) for name, counted in found.items()}}
            return self._act(verb, self._service(message), by, message, peer)
        except (RedirectError, StateError) as error:
            raise RequestRefusedError(str(error)) from None

    def status(self, service: Service) -> ServiceStatus:
        """Of one service."""
        return self.statuses((service,))[service.name]

    def statuses(self, services: Sequence[Service]) -> dict[str, ServiceStatus]:
        """The steering's statuses, with the state and the lines of "NAME redirect"."""
        targets, orders = self._steering.targets(), []
        away = [service for service in services if targets[service.name] is Target.STANDBY]
        known = inquiry.primaries(self._controller, away) if away and not self._afterwards.closing else {}
        for service in services:
            order = Order(service, "fail-back", "", Facts())
            if targets[service.name] is Target.STANDBY:
                order = replace(order, facts=inquiry.synced(self._controller, service, Facts()), manual=True)
                order = self._with_primary(order, known.get(service.name, {}))
            orders.append(order)
        found = self._steering.statuses(orders)
        for service in services:
            status = found[service.name]
            state, text = redirect_state(status)
            lines = tuple(detail_lines(service, status, self._report_url))
            status = replace(status, state=state, text=text, story=lines, drill=self._drill(service))
            found[service.name] = status
        return found

    def _drill(self, service: Service) -> DrillStatus | None:
        try:
            return self._drills.status(service)
        except RedirectError as error:
            log.warning("%s: drill: %s", service.name, error)
            return None

    def _act(self, verb: str, service: Service, by: str, message: Message, peer: Peer) -> Message:
        name = service.name
        if verb in ("fail-over", "drain", "fail-back"):
            return messages.answer(self._do(self._order(verb, service, by, message, peer)))
        if verb == "facts":
            facts = self._confirmed("fail-over", service, message)  # they may have waited in the sniffer
            order = self._with_health(Order(service, "fail-over", by, facts))
            acted = self._steering.facts(self._with_sync(order))
            if acted is None:
                return {"flipped": False, "text": "nothing pending, or nothing new"}
            return messages.answer(self._reported(service, acted))
        if verb == "recovered":
            return {"text": self._steering.recovered(name)}
        if verb == "drilled":
            return self._drills.report(service, message, peer)
        if verb in ("drill", "drill-end"):
            return (self._drills.begin if verb == "drill" else self._drills.end)(service, message, by)
        if verb == "forget":
            client, port = messages.client(message)
            if service.writes == "primary" and message.get("reads") is not True:
                return {"forgotten": False, "reason": "the client may write"}
            facts = inquiry.synced(self._controller, service, Facts())
            refusal = self._steering.refusal(Order(service, "rescue", by, facts))
            if refusal is not None:
                return {"forgotten": False, "reason": str(refusal.reason)}
            return {"forgotten": self._steering.forget(name, client, port, reads=message.get("reads") is True)}
        if verb == "elsewhere":
            return self._elsewhere.page(name, str(message.get("after") or ""))
        if verb == "decided":
            caller = Caller(peer.pid, peer.uid)
            return {"id": self._steering.note(name, verb, by, messages.decision(message), peer=caller).id}
        if verb == "hold":
            text = self._steering.hold(name, by, messages.words(message.get("reason") or "")[:500])
        else:
            text = self._steering.release(name, by)
        self._report_state(service)
        return {"text": text}

    def _do(self, order: Order) -> JournalEntry:
        """Execute and report an order; returns the journal's entry."""
        return self._reported(order.service, self._steering.order(self._with_sync(order)))

    def _reported(self, service: Service, entry: JournalEntry) -> JournalEntry:
        """Report an attempt after the answer, except ``already-there``: a core may repeat an order many times."""
        if entry.reason != Reason.ALREADY:
            self._afterwards.submit(lambda: self._report.attempt(service, entry, self.status(service)))
        return entry

    def _report_state(self, service: Service) -> None:
        self._afterwards.submit(lambda: self._report.state(service, self.status(service)))

    def _downtime(self, message: Message, by: str, peer: Peer) -> Message:
        """A downtime of the primary begins or ends. Its end flips nothing, but lifts a refusal of a fail-back."""
        host, description = str(message.get("host") or ""), str(message.get("description") or "")
        begin, said = bool(message.get("begin")), []
        for service in self._services:
            if not messages.of_primary(service, host, description):
                continue
            of = f"{description} on {host}" if description else host
            self._steering.downtime(service.name, of, by, begin=begin)
            if begin and service.policy.downtime == "drain":
                order = self._order("drain", service, by, {}, peer)
                said.append(self._do(replace(order, why=f"downtime of {of}")).line)
            else:
                self._report_state(service)
                said.append(f"{service.name}: downtime {'began' if begin else 'ended'}")
        return {"text": "; ".join(said) or "no primary's downtime"}

    def _follow(self, message: Message) -> Message:
        states, mine = messages.states(message), self._steering.states()
        peer_record.keep(self._config, message.get("sync"))
        failed = [
            service.name
            for service in self._services
            if (theirs := states.get(service.name)) is not None
            and theirs.target is not mine[service.name].target
            and outranks(theirs, mine[service.name])
            and inquiry.health(self._controller, service, theirs.target).get("ok") is False
            and inquiry.probe(self._controller, service, theirs.target) is False
        ]
        followed = self._steering.follow(states, failed)
        self._steering.reaching.told(message.get("heard"))
        for service in self._services:
            if service.name in followed:
                self._report_state(service)
        return {"followed": followed}

    def _order(self, verb: str, service: Service, by: str, message: Message, peer: Peer) -> Order:
        manual = bool(message.get("manual"))
        if manual and not by_hand(self._controller, peer):
            raise RequestRefusedError(f"{verb}: only operators and root may order by hand")
        deadline = messages.deadline(service, message)
        facts = self._confirmed(verb, service, message, manual=manual)
        note = messages.words(message.get("note") or "")[:200]
        order = Order(service, verb, by, facts, manual=manual, note=note, peer=Caller(peer.pid, peer.uid))
        if verb == "fail-over":
            return self._with_health(order)
        # Connections to a dead standby cannot finish: then a fail-back drains nothing.
        order = replace(order, drain=verb == "drain" or facts.standby_ok is not False, deadline=deadline)
        if verb == "drain":
            return order
        order = self._with_primary(order, inquiry.health(self._controller, service, Target.PRIMARY))
        return replace(order, manual=True, primary_ok=inquiry.probe(self._controller, service, Target.PRIMARY))

    def _confirmed(self, verb: str, service: Service, message: Message, *, manual: bool = False) -> Facts:
        """A message's facts, as far as they hold now."""
        facts, since = messages.facts(message), self._steering.states()[service.name].since
        return inquiry.with_missing_facts(self._controller, service, verb, facts, manual=manual, since=since)

    def _with_sync(self, order: Order) -> Order:
        """The order with the sync record as it is now: a run may have begun to switch since the probes."""
        return replace(order, facts=inquiry.synced(self._controller, order.service, order.facts))

    def _with_health(self, order: Order) -> Order:
        """A fail-over with the facts that its table needs about the other server, from the sniffer's probes."""
        service = order.service
        if order.manual:
            return order
        if order.facts.server is Target.STANDBY:
            return self._with_primary(order, inquiry.health(self._controller, service, Target.PRIMARY))
        damping = self._steering.states()[service.name].damping
        if proof(decayed(damping, time.time(), service.policy.damping_half_life), 1.0) > 0:  # flapping
            health = inquiry.health(self._controller, service, Target.STANDBY)
            return replace(order, standby_good_for=float(health.get("good_for") or 0.0))
        return order

    def _with_primary(self, order: Order, health: dict[str, Any]) -> Order:
        """The order with the facts that its checklist needs about the primary."""
        since, planned = self._steering.states()[order.service.name].since, order.verb != "fail-over"
        back, undecided = inquiry.synced_back(self._controller, order.service, since, planned=planned)
        return replace(
            order,
            primary_ok=health.get("ok"),
            primary_passes=int(health.get("passes") or 0),
            primary_good_for=float(health.get("good_for") or 0.0),
            synced_back=back,
            undecided=undecided,
        )

    # ------------------------------------------------------------ every few seconds

    def advance(self, service: Service) -> None:
        """Advance a running drain or drill."""
        try:
            self._drills.advance(service)
        except RedirectError as error:
            log.warning("%s: drill: %s", service.name, error)
        drain = self._steering.drains.draining(service.name)
        if drain is None:
            return
        health = inquiry.health(self._controller, service, drain.old)
        failed = health.get("ok") is False and inquiry.probe(self._controller, service, drain.old) is False
        if self._steering.drains.advance(service, old_failed=failed):
            self._report_state(service)

    def look(self) -> None:
        """Report the states after a change, or as a heartbeat."""
        self._afterwards.submit(self._look, only="look")

    def _look(self) -> None:
        chosen = []
        for service in self._services:
            now = self._steering.shown(service.name)
            same, self._looked_at[service.name] = self._looked_at.get(service.name) == now, now
            # A drain's and the checklist's facts change without the state.
            if same and now[0].target is Target.PRIMARY and now[0].drain is None and not self._report.due(service):
                continue
            chosen.append(service)
        found = self.statuses(chosen) if chosen else {}
        for service in chosen:
            self._report.look(service, found[service.name])

    def close(self) -> None:
        """Send the waiting reports."""
        self._afterwards.close()

    def fail_back(self, service: Service) -> None:
        """The automatic fail-back, if it is on. A restart begins the proof of the primary anew."""
        if not service.policy.auto_fail_back or self._steering.targets()[service.name] is Target.PRIMARY:
            return
        health = inquiry.health(self._controller, service, Target.PRIMARY)
        facts = inquiry.synced(self._controller, service, Facts())
        why = "automatic: the primary is proven and no item of the checklist is open"
        deadline = service.policy.drain_deadline
        order = Order(service, "auto-fail-back", "redirector", facts, drain=True, deadline=deadline, why=why)
        order = self._with_primary(order, health)
        order = replace(order, primary_good_for=min(order.primary_good_for, time.monotonic() - self._started))
        if self._steering.refusal(order) is None:
            self._do(replace(order, primary_ok=inquiry.probe(self._controller, service, Target.PRIMARY)))

    # ------------------------------------------------------------ messages

    def _history(self, message: Message) -> Message:
        limit, before = message.get("limit", 50), message.get("before")
        if not isinstance(limit, int) or not 1 <= limit <= MAX_HISTORY or not isinstance(before, str | None):
            raise RequestRefusedError(f"history: want limit, a number from 1 to {MAX_HISTORY}, and before, an ID")
        found = self._steering.journal.read(min(limit, HISTORY_PAGE), before)
        return {"entries": [to_json(entry) for entry in found], "more": len(found) == HISTORY_PAGE < limit}

    def _service(self, message: Message) -> Service:
        name = message.get("service")
        for service in self._services:
            if service.name == name:
                return service
        known = ", ".join(service.name for service in self._services)
        raise RequestRefusedError(f"no service {name!r}; configured are: {known}")
