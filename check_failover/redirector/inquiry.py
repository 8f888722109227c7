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
from check_failover.records import RecordError, from_json

RECENT = 1.0  # seconds from the verdict to the order: usually some hundredths

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
    found = _sniffer(controller, service).get(target, {})
    return found if isinstance(found, dict) else {}


def with_missing_facts(
    controller: Controller, service: Service, verb: str, facts: Facts, *, manual: bool, since: float | None
) -> Facts:
    """Facts of an order, with what the sniffer knows or probes for what nobody looked at.

    An order without facts is looked into before it is believed: CRITICAL from a freshness check that could not run, or
    from a core on another machine, whose way back carries fixed words only. So is one whose facts are older than the
    last flip (``since``): a result that was kept while the core was away, and comes when all is long over. And so is
    one that was long on its way, because the core or the redirector was stopped; its own facts stand where the sniffer
    is away meanwhile.
    """
    if verb == "fail-over" and not manual:
        measured = None if facts.evidence is None else facts.evidence / 1000
        unknown = facts.detector is None and not (facts.probes or facts.blind)
        before = measured is not None and since is not None and measured < since
        late = measured is not None and abs(time.time() - measured) > RECENT
        if unknown or before or (late and _sniffer(controller, service)):
            facts = _found_out(controller, service, facts)
    if facts.standby_ok is None:
        facts = replace(facts, standby_ok=probe(controller, service, Target.STANDBY))
    return facts


def _found_out(controller: Controller, service: Service, facts: Facts) -> Facts:
    """The verdict that stands on the primary now; without one, two probes of it."""
    known = _sniffer(controller, service)
    found = Facts(downtime=facts.downtime, blind=bool(known.get("blind")))
    if found.blind:
        return found
    verdict = known.get("facts")
    if isinstance(verdict, dict):
        try:
            told = from_json(Facts, verdict)
            if told.detector is not None:
                return synced(controller, service, replace(told, downtime=facts.downtime))
        except RecordError as error:  # another version of it
            log.warning("%s: the sniffer's facts are not understood: %s", service.name, error)
    outcomes = [probe(controller, service, Target.PRIMARY) for _ in range(2)]
    if None in outcomes:
        return found
    failed = outcomes.count(False)
    found = replace(found, detector=Detector.CORE, probes=len(outcomes), probes_failed=failed)
    return synced(controller, service, found)


def _sniffer(controller: Controller, service: Service) -> dict[str, Any]:
    """The sniffer's status of a service (see ``control``); empty when it is away."""
    try:
        reply = control.ask(controller.sniffer_socket, {"verb": "status"}, timeout=2.0)
    except ControlError:
        return {}
    found = reply.get("services", {}).get(service.name, {})
    return found if isinstance(found, dict) else {}


def synced(controller: Controller, service: Service, facts: Facts) -> Facts:
    """The facts with the sync record as it is now: nobody can make the data look fresher."""
    return syncstate.known(controller.state_dir, service, facts, time.time())


def synced_back(controller: Controller, service: Service, since: float | None, *, planned: bool) -> bool | None:
    """Whether the standby's changes ``since`` the flip are on the primary; None where that is no question.

    Only a ``planned`` fail-back waits for servers that replicate by themselves: they cannot be compared while the
    standby fails, and replication brings its changes later.
    """
    if service.sync is None or service.sync.sync_back != "required":
        return None
    if service.sync.method == "syncrepl" and not planned:
        return None
    record = syncstate.read(controller.state_dir, service.name)
    return record.brought_back(since, time.time(), service.sync.sync_back_valid)
