"""The sniffer's client of the redirector's socket: it sends orders and facts, and receives targets and refusals.

Blocking calls run in two threads of this module: one for requests, one for the subscription. The core stays the
judge: ``core_watchdog`` decides when the sniffer orders a fail-over itself.
"""

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Protocol

from check_failover import control
from check_failover.config import Config
from check_failover.control import ELSEWHERE_PAGE, MAX_ELSEWHERE, ControlError, Message, UnreachableError
from check_failover.model import Facts, Service, Target
from check_failover.sniffer.core_watchdog import ALLOWED, AWAY, SILENT, CoreWatchdog
from check_failover.sniffer.monitor import Condition, ServiceMonitor
from check_failover.sniffer.stage1.flows import FlowKey
from check_failover.transports.core_state import LIMIT, LIMIT_AWAY, CoreQuestion

log = logging.getLogger("failover-sniffer")
Counters = tuple[int, int]  # the NAT's, of one service: requests, answers


class Listener(Protocol):
    """Receives the redirector's events, in the link's thread."""

    def redirected(self, name: str, target: Target, *, replay: bool) -> None:
        """The redirect points to ``target``. ``replay``: it was flipped now, without a drain."""

    def listed_elsewhere(
        self, name: str, target: Target, flows: list[FlowKey], asked: float, *, complete: bool
    ) -> None:
        """These flows use another server than ``target``. ``asked``: when the question was sent."""

    def counted(self, counters: Mapping[str, Counters]) -> None:
        """The NAT's counters of the services that were asked for; empty: the redirector is away."""

    def order_refused(self, name: str, reason: str) -> None:
        """The redirector refused a fail-over, from the core or from the sniffer."""


class RedirectorLink:
    """One for all services. ``watchdog`` and ``order_if_core_is_silent`` belong to the loop's thread."""

    def __init__(self, config: Config, listener: Listener) -> None:
        self._socket = config.controller.redirector_socket
        self._listener = listener
        self._deadline: float = config.monitoring["core_deadline"]
        self.watchdog = CoreWatchdog(self._deadline)
        self._core = CoreQuestion(config.monitoring)
        self._asker = ThreadPoolExecutor(1, thread_name_prefix="redirector")
        self._lister = ThreadPoolExecutor(1, thread_name_prefix="elsewhere")  # a long list delays no order
        self._counter = ThreadPoolExecutor(1, thread_name_prefix="counters")
        self._stop = threading.Event()
        self._subscription: socket.socket | None = None

    def start(self) -> None:
        """Subscribe to the redirector's events, and again after each disconnect."""
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def subscribe_again(self) -> None:
        """Hear all targets once more: a new config has services that were unknown."""
        with contextlib.suppress(AttributeError, OSError):  # not subscribed at this moment
            self._subscription.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    def close(self) -> None:
        self._stop.set()
        for pool in (self._asker, self._lister, self._counter):
            pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ orders and questions

    def ask(self, message: Message) -> Message | None:
        """The reply; None when the redirector is away or refuses. Blocks for up to 10 s."""
        try:
            return control.ask(self._socket, message, timeout=10.0)
        except ControlError as error:
            log.warning("%s", error)
            return None

    def send_facts(self, service: Service, facts: Facts) -> None:
        """Send fresh facts for an order that may be pending."""
        self._asker.submit(self.ask, {"verb": "facts", "service": service.name, "facts": asdict(facts)})

    def order_if_core_is_silent(self, monitor: ServiceMonitor, now: float, *, reachable: bool) -> None:
        """Order a fail-over, or withdraw the order, as the watchdog decides. ``reachable``: the core takes results."""
        name = monitor.service.name
        self.withdraw(name, now, well=monitor.condition is Condition.OK)
        why = self.watchdog.due(name, now, failed=monitor.failed, reachable=reachable)
        facts = None if why is None else monitor.last_facts()
        if why is None or facts is None:
            return
        self._asker.submit(self._order, monitor.service, why, facts, self.watchdog.since_refusal(name, now))

    def withdraw(self, name: str, now: float, *, well: bool) -> None:
        """Withdraw the sniffer's order if the server is well, again until the redirector has heard of it."""
        if self.watchdog.must_withdraw(name, now, well=well):
            self._asker.submit(self._withdraw, name, now)

    def _withdraw(self, name: str, now: float) -> None:
        if self.ask({"verb": "recovered", "service": name, "by": "sniffer"}) is not None:
            self.watchdog.withdrawn(name, now)

    def _order(self, service: Service, why: str, facts: Facts, since_refusal: float) -> None:
        """Order a fail-over in place of the core, with what the core says of it. ``since_refusal``: seconds."""
        core = self._core.ask(service, LIMIT_AWAY if why == AWAY else LIMIT)
        if core is not None:
            facts = replace(facts, downtime=core.downtime, handlers_off=core.handlers_off)
        forbidden = facts.handlers_off or (facts.downtime and service.policy.downtime == "inhibit")
        if why == ALLOWED and (core is None or core.age >= since_refusal or forbidden):
            return
        log.warning("%s: %s; asking the redirector", service.name, why)
        message = {"verb": "fail-over", "service": service.name, "by": f"sniffer ({why})", "facts": asdict(facts)}
        if why == SILENT and not facts.handlers_off:
            does_it = "does its event handler run? failoverctl doctor"
            message["note"] = f"the core did not order within {self._deadline:g} s: {does_it}"
        self.ask(message)

    def read_counters(self, names: Sequence[str]) -> None:
        """Ask for the NAT's counters of these services; the listener gets them."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._counter.submit(self._read_counters, names)

    def _read_counters(self, names: Sequence[str]) -> None:
        reply, found = self.ask({"verb": "activity", "services": names}), dict[str, Counters]()
        try:
            for name, (asked, answered) in dict(reply["services"] if reply else {}).items():
                found[name] = (int(asked), int(answered))
        except (LookupError, TypeError, ValueError) as error:
            log.warning("the redirector's counters are not understood: %s", error)
        self._listener.counted(found)

    def ask_elsewhere(self, name: str) -> None:
        """Ask which clients of a service use another server than the target; the listener gets the list."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._lister.submit(self._list_elsewhere, name)

    def _list_elsewhere(self, name: str) -> None:
        asked, clients, after = time.monotonic(), list[FlowKey](), ""
        for _ in range(MAX_ELSEWHERE // ELSEWHERE_PAGE):
            reply = self.ask({"verb": "elsewhere", "service": name, "after": after})
            if reply is None:
                return
            try:
                for client in reply["clients"]:
                    address, _, port = str(client).rpartition(":")
                    clients.append((ipaddress.ip_address(address.strip("[]")).packed, int(port)))
                target, after, complete = Target(reply["target"]), str(reply["after"]), not reply["more"]
            except (LookupError, TypeError, ValueError) as error:
                log.warning("the redirector's list of connections is not understood: %s", error)
                return
            if not after:
                self._listener.listed_elsewhere(name, target, clients, asked, complete=complete)
                return

    # ------------------------------------------------------------ events

    def _follow(self) -> None:
        """Keep a subscription: the targets at its start, then each flip and refusal as it happens."""
        while not self._stop.is_set():
            try:
                self._listen()
            except (UnreachableError, OSError):
                pass  # the redirector restarts
            except (ControlError, LookupError, TypeError, ValueError) as error:  # malformed, or of another version
                log.warning("the redirector's events are not understood: %s", error)
            self._stop.wait(0.5)

    def _listen(self) -> None:
        sock, hello = control.subscribe(self._socket)
        self._subscription = sock
        with sock:
            sock.settimeout(None)
            for name, target in hello.get("targets", {}).items():
                self._listener.redirected(name, Target(target), replay=False)
                self.ask_elsewhere(name)
            buffer = bytearray()
            while chunk := sock.recv(65536):
                buffer += chunk
                for event in control.split_lines(buffer):
                    self._event(event)

    def _event(self, event: Message) -> None:
        if event.get("event") == "refused" and event.get("verb") == "fail-over":
            self._listener.order_refused(str(event["service"]), str(event.get("reason")))
        if event.get("event") == "flip":
            name, target = str(event["service"]), Target(event["target"])
            self._listener.redirected(name, target, replay=not event.get("drain"))
            if event.get("drain"):
                self.ask_elsewhere(name)
