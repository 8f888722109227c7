"""failover-redirector: the only program that touches NAT. Restores the targets, then answers its socket's verbs.

A resident program and not sudo: fixed verbs only, one writer, milliseconds instead of a Python start, and the target
restored at boot before the first packet is forwarded. SO_PEERCRED decides who may say what (``RIGHTS``). On SIGTERM the
rules stay: a stopped redirector must not take the service with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import grp
import logging
import pwd
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from check_failover import __version__, control, syncstate
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.control import ControlError, Message, Peer, RefusedError, Server
from check_failover.model import Detector, Facts, Service, Target
from check_failover.notify import log_to_stderr, notify
from check_failover.redirector import REDIRECTS, RedirectError
from check_failover.redirector.report import Report, redirect_state
from check_failover.redirector.state import StateError
from check_failover.redirector.steering import Order, Steering

log = logging.getLogger("failover-redirector")

HEAL_EVERY = 2.0  # seconds between two looks at the kernel's rules
_EVERYONE, _CORE, _SNIFFER, _OPERATORS = "everyone", "core", "sniffer", "operators"

# verb -> who may say it; root may say everything
RIGHTS: dict[str, frozenset[str]] = {
    "status": frozenset({_EVERYONE}),
    "history": frozenset({_EVERYONE}),
    "subscribe": frozenset({_EVERYONE}),
    "fail-over": frozenset({_CORE, _SNIFFER, _OPERATORS}),
    "recovered": frozenset({_CORE, _SNIFFER}),
    "evidence": frozenset({_SNIFFER}),
    "forget": frozenset({_SNIFFER}),
    "drain": frozenset({_OPERATORS}),
    "fail-back": frozenset({_CORE, _OPERATORS}),
    "downtime": frozenset({_CORE, _OPERATORS}),
    "hold": frozenset({_OPERATORS}),
    "release": frozenset({_OPERATORS}),
}


class Verbs:
    """What the socket's verbs do. One method per verb would only repeat the table in ``control``."""

    def __init__(self, config: Config, steering: Steering, report: Report) -> None:
        self._config, self._steering, self._report = config, steering, report
        self._started = time.monotonic()

    def authorise(self, verb: str, peer: Peer) -> str | None:
        """None, or why not."""
        roles = {_EVERYONE, *self._roles(peer)}
        if peer.uid == 0 or RIGHTS[verb] & roles:
            return None
        return f"not for user {_user_name(peer.uid)}; allowed are: {', '.join(sorted(RIGHTS[verb]))} and root"

    def handle(self, message: Message, peer: Peer) -> Message:
        verb = str(message["verb"])
        if verb == "status":
            return {"services": {service.name: self.status(service) for service in self._config.services}}
        if verb == "history":
            return {"entries": self._history(message)}
        by = str(message.get("by") or _user_name(peer.uid))[:200]
        try:
            if verb == "downtime":
                return self._downtime(message, by, peer)
            service = self._service(message)
            return self._act(verb, service, by, message, peer)
        except (RedirectError, StateError) as error:
            raise RefusedError(str(error)) from None

    def status(self, service: Service) -> dict[str, Any]:
        """The steering's status, with the state and the line that "NAME redirect" shows for it."""
        order = None
        if self._steering.targets()[service.name] is Target.STANDBY:
            health = self._health(service, Target.PRIMARY)
            order = self._fail_back(Order(service, "fail-back", "", self._facts(service, {})), health.get("ok"), health)
        status = self._steering.status(service.name, order)
        state, text = redirect_state(status)
        return {**status, "state": int(state), "text": text}

    def _act(self, verb: str, service: Service, by: str, message: Message, peer: Peer) -> Message:
        name = service.name
        if verb in ("fail-over", "drain", "fail-back"):
            order = self._order(verb, service, by, message, peer)
            entry = self._steering.order(order)
            self._report.attempt(service, entry, self.status(service))
            return _answer(entry)
        if verb == "evidence":
            acted = self._steering.evidence(name, self._facts(service, message))
            if acted is None:
                return {"flipped": False, "text": "nothing pending, or nothing new"}
            self._report.attempt(service, acted, self.status(service))
            return _answer(acted)
        if verb == "recovered":
            return {"text": self._steering.recovered(name)}
        if verb == "forget":
            client, port = _client(message)
            return {"forgotten": self._steering.forget(name, client, port)}
        act = self._steering.hold if verb == "hold" else None
        reason = str(message.get("reason") or "")[:500]
        text = act(name, by, reason) if act else self._steering.release(name, by)
        self._report.state(service, self.status(service))
        return {"text": text}

    def _downtime(self, message: Message, by: str, peer: Peer) -> Message:
        """A downtime of the primary begins or ends. The end moves nothing: it is an item of the fail-back checklist."""
        host, description = str(message.get("host") or ""), str(message.get("description") or "")
        begin, said = bool(message.get("begin")), []
        for service in self._config.services:
            if not _of_primary(service, host, description):
                continue
            of = f"{description} on {host}" if description else host
            self._steering.downtime(service.name, of, by, begin=begin)
            if begin and service.policy.downtime == "drain":
                order = self._order("drain", service, by, {}, peer)
                entry = self._steering.order(dataclasses.replace(order, why=f"downtime of {of}"))
                self._report.attempt(service, entry, self.status(service))
                said.append(entry["line"])
            else:
                self._report.state(service, self.status(service))
                said.append(f"{service.name}: downtime {'began' if begin else 'ended'}")
        return {"text": "; ".join(said) or "no primary's downtime"}

    def _order(self, verb: str, service: Service, by: str, message: Message, peer: Peer) -> Order:
        manual = bool(message.get("manual"))
        if manual and peer.uid != 0 and _OPERATORS not in self._roles(peer):
            raise RefusedError(f"{verb}: only operators and root may order by hand")
        facts, deadline = self._facts(service, message), _deadline(service, message)
        if verb == "fail-over" and facts.detector is None and not (facts.probes or facts.blind or manual):
            facts = self._confirm(service, facts)
        if facts.standby_ok is None:
            facts = dataclasses.replace(facts, standby_ok=self._probe(service, Target.STANDBY))
        order = Order(service, verb, by, facts, manual=manual, peer={"pid": peer.pid, "uid": peer.uid})
        if verb == "fail-over":
            return order
        # Nobody waits for a standby that died: then a fail-back is a flip like a fail-over.
        drain = verb == "drain" or facts.standby_ok is not False
        order = dataclasses.replace(order, drain=drain, deadline=deadline)
        if verb == "drain":
            return order
        health = self._health(service, Target.PRIMARY)
        return self._fail_back(order, self._probe(service, Target.PRIMARY), health)

    def _fail_back(self, order: Order, primary_ok: bool | None, health: dict[str, Any]) -> Order:
        """The order with what its checklist asks about the primary."""
        return dataclasses.replace(
            order,
            manual=True,
            primary_ok=primary_ok,
            primary_passes=int(health.get("passes") or 0),
            primary_good_for=float(health.get("good_for") or 0.0),
            synced_back=self._synced_back(order.service),
        )

    def _facts(self, service: Service, message: Message) -> Facts:
        """The asker's facts, with the sync record as it is now: nobody can make the data look fresher."""
        return syncstate.known(self._config.controller.state_dir, service, _facts(message), time.time())

    def _synced_back(self, service: Service) -> bool | None:
        if service.sync is None or service.sync.sync_back != "required" or service.sync.method != "rsync":
            return None
        record = syncstate.read(self._config.controller.state_dir, service.name)
        since = self._steering.status(service.name)["since"]
        return record.brought_back(since, time.time(), service.sync.sync_back_valid)

    def _confirm(self, service: Service, facts: Facts) -> Facts:
        """An order without facts, e.g. CRITICAL from a freshness check that could not run: look before believing it."""
        outcomes = [self._probe(service, Target.PRIMARY) for _ in range(2)]
        if None in outcomes:
            return facts
        return dataclasses.replace(
            facts, detector=Detector.CORE, probes=len(outcomes), probes_failed=outcomes.count(False)
        )

    def _probe(self, service: Service, target: Target) -> bool | None:
        """Ask the sniffer, which has the probes and no privilege to lose. None: nobody could look."""
        try:
            reply = control.ask(
                self._config.controller.sniffer_socket,
                {"verb": "probe", "service": service.name, "target": str(target)},
                timeout=service.check.timeout + 2.0,
            )
        except ControlError as error:
            log.warning("%s: cannot probe the %s: %s", service.name, target, error)
            return None
        return bool(reply.get("passed"))

    def tend(self, service: Service) -> None:
        """Look after a drain that goes on; called every few seconds."""
        drain = self._steering.draining(service.name)
        if drain is None:
            return
        failed = self._health(service, drain.old).get("ok") is False and self._probe(service, drain.old) is False
        if self._steering.tend(service.name, old_failed=failed):
            self._report.state(service, self.status(service))

    def fail_back(self, service: Service) -> None:
        """The automatic fail-back, where it is on; called every few seconds. A restart proves nothing anew."""
        if not service.policy.auto_fail_back or self._steering.targets()[service.name] is Target.PRIMARY:
            return
        health = self._health(service, Target.PRIMARY)
        why = "automatic: the primary is proven and no item of the checklist is open"
        order = Order(service, "auto-fail-back", "redirector", self._facts(service, {}), drain=True, why=why)
        order = dataclasses.replace(
            self._fail_back(order, health.get("ok"), health), manual=False, deadline=service.policy.drain_deadline
        )
        proven = min(order.primary_good_for, time.monotonic() - self._started)
        order = dataclasses.replace(order, primary_good_for=proven)
        if self._steering.refusal(order) is None:
            order = dataclasses.replace(order, primary_ok=self._probe(service, Target.PRIMARY))
            self._report.attempt(service, self._steering.order(order), self.status(service))

    def _health(self, service: Service, target: Target) -> dict[str, Any]:
        try:
            reply = control.ask(self._config.controller.sniffer_socket, {"verb": "status"}, timeout=2.0)
        except ControlError:
            return {}
        found = reply.get("services", {}).get(service.name, {}).get(target, {})
        return found if isinstance(found, dict) else {}

    def _history(self, message: Message) -> list[dict[str, Any]]:
        limit = message.get("limit", 50)
        if not isinstance(limit, int) or not 1 <= limit <= 10000:
            raise RefusedError("history: limit must be a number from 1 to 10000")
        return self._steering.history(limit)

    def _service(self, message: Message) -> Service:
        name = message.get("service")
        for service in self._config.services:
            if service.name == name:
                return service
        known = ", ".join(service.name for service in self._config.services)
        raise RefusedError(f"no service {name!r}; configured are: {known}")

    def _roles(self, peer: Peer) -> set[str]:
        controller = self._config.controller
        roles = set()
        if peer.uid == _uid(controller.core_user):
            roles.add(_CORE)
        if peer.uid == _uid(controller.sniffer_user):
            roles.add(_SNIFFER)
        if _gid(controller.operators) in peer.gids:
            roles.add(_OPERATORS)
        return roles


def _of_primary(service: Service, host: str, description: str) -> bool:
    """Whether the core's object stands for that service's primary: its host, or "NAME primary"."""
    if description:
        return host == service.host and description == f"{service.name} primary"
    return host in (service.host, service.primary_host)


def _answer(entry: dict[str, Any]) -> Message:
    keys = ("flipped", "reason", "text", "line", "id", "took", "left", "error")
    return {key: entry[key] for key in keys if key in entry}


def _facts(message: Message) -> Facts:
    """The facts of an order: as fields (sniffer), or as perfdata (the core's handler)."""
    raw = message.get("facts")
    if isinstance(raw, dict):
        try:
            detector = raw.get("detector")
            return Facts(**{**raw, "detector": None if detector is None else Detector(detector)})
        except (TypeError, ValueError) as error:
            raise RefusedError(f"facts: {error}") from None
    perfdata = str(message.get("perfdata") or "")
    facts = Facts.parse(perfdata)
    return dataclasses.replace(facts, downtime=bool(message.get("downtime")))


def _deadline(service: Service, message: Message) -> float | None:
    """Seconds until a drain cuts what is left: the order's own, or the policy's."""
    deadline = message.get("deadline")
    if deadline is None:
        return service.policy.drain_deadline
    if not isinstance(deadline, int | float) or not 0 <= deadline < float("inf"):
        raise RefusedError("deadline: want a number of seconds, 0 or more")
    return float(deadline)


def _client(message: Message) -> tuple[str, int]:
    client, port = message.get("client"), message.get("port")
    if not isinstance(client, str) or not isinstance(port, int) or not 0 < port < 65536:
        raise RefusedError("forget: want client (an IP address) and port")
    return client, port


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return -1


def _gid(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return -1


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def run(config: Config, stop: threading.Event) -> None:
    """Serve until ``stop``. Raises RedirectError or ControlError when it cannot begin."""
    published: list[Server] = []
    steering = Steering(config, REDIRECTS[config.controller.redirect](config), lambda e: published[0].publish(e))
    steering.restore()
    report = Report(config)
    verbs = Verbs(config, steering, report)
    server = Server(
        config.controller.redirector_socket,
        control.REDIRECTOR_VERBS,
        verbs.handle,
        verbs.authorise,
        hello=lambda: {"targets": {name: str(target) for name, target in steering.targets().items()}},
    )
    published.append(server)
    server.start()
    notify("READY=1")
    for line in (f"{name}: {target}" for name, target in steering.targets().items()):
        log.info("started, %s", line)
    while not stop.wait(0.0 if report.nothing_yet else HEAL_EVERY):
        steering.heal()
        for service in config.services:
            verbs.tend(service)
            verbs.fail_back(service)
            report.look(service, verbs.status(service))
    notify("STOPPING=1")
    server.close()
    report.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="failover-redirector", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=DEFAULT_PATH, type=Path, help="default: %(default)s")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    log_to_stderr()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(load(arguments.config), stop)
    except (ConfigError, ControlError, RedirectError, StateError) as error:
        sys.exit(f"failover-redirector: {error}")


if __name__ == "__main__":
    main()
