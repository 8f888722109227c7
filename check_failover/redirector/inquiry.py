"""What the redirector finds out before it decides: the sniffer has the probes, and no privilege to lose."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from check_failover import control, syncstate
from check_failover.config import Controller
from check_failover.control import ControlError
from check_failover.model import Detector, Facts, Service, Target

log = logging.getLogger(__name__)


def probe(controller: Controller, service: Service, target: Target) -> bool | None:
    """Whether that server passes a probe now. None: nobody could look."""
    try:
        reply = control.ask(
            controller.sniffer_socket,
            {"verb": "probe", "service": service.name, "target": str(target)},
            timeout=service.check.timeout + 2.0,
        )
    except ControlError as error:
        log.warning("%s: cannot probe the %s: %s", service.name, target, error)
        return None
    return bool(reply.get("passed"))


def health(controller: Controller, service: Service, target: Target) -> dict[str, Any]:
    """What the sniffer knows of a server from the probes it made; empty when it is away."""
    try:
        reply = control.ask(controller.sniffer_socket, {"verb": "status"}, timeout=2.0)
    except ControlError:
        return {}
    found = reply.get("services", {}).get(service.name, {}).get(target, {})
    return found if isinstance(found, dict) else {}


def completed(controller: Controller, service: Service, verb: str, facts: Facts, *, manual: bool) -> Facts:
    """Facts of an order, with probes for what nobody looked at.

    An order without facts, e.g. CRITICAL from a freshness check that could not run, is looked into before it is
    believed.
    """
    if verb == "fail-over" and facts.detector is None and not (facts.probes or facts.blind or manual):
        outcomes = [probe(controller, service, Target.PRIMARY) for _ in range(2)]
        if None not in outcomes:
            failed = outcomes.count(False)
            facts = replace(facts, detector=Detector.CORE, probes=len(outcomes), probes_failed=failed)
    if facts.standby_ok is None:
        facts = replace(facts, standby_ok=probe(controller, service, Target.STANDBY))
    return facts


def synced(controller: Controller, service: Service, facts: Facts) -> Facts:
    """The facts with the sync record as it is now: nobody can make the data look fresher."""
    return syncstate.known(controller.state_dir, service, facts, time.time())


def synced_back(controller: Controller, service: Service, since: float | None) -> bool | None:
    """Whether the standby's changes ``since`` the flip are on the primary; None where that is no question."""
    if service.sync is None or service.sync.sync_back != "required" or service.sync.method != "rsync":
        return None
    record = syncstate.read(controller.state_dir, service.name)
    return record.brought_back(since, time.time(), service.sync.sync_back_valid)
