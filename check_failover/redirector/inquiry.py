"""The redirector's questions to the sniffer before a decision. The sniffer probes, because it has fewer privileges.

While the sniffer is away, a process without capabilities probes for an order (``checks.apart``).
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from check_failover import control, syncstate
from check_failover.checks import ProbeError, apart
from check_failover.config import Controller
from check_failover.control import ControlError, SilentError
from check_failover.model import Detector, Facts, Service, Target
from check_failover.records import RecordError, from_json

RECENT = 1.0  # seconds from the verdict to the order; usually below 0.1

log = logging.getLogger(__name__)
STATUS_TIMEOUT = 0.5  # seconds, where a person waits for a status and nothing is decided
ORDER_TIMEOUT = 0.4  # seconds, where an order has facts of its own
LATE_TIMEOUT = 3.0  # seconds, where these facts are late
SILENT_FOR = 3.0  # seconds for which no further status asks a sniffer that hangs: one of fifty services asks it often
_silent_until = float("-inf")
_apart = ThreadPoolExecutor(8, "probe")  # so many processes at once; no thread of it starts anything else
_running: dict[tuple[str, Target], Future[list[bool]]] = {}
_lock = threading.Lock()


def probe(controller: Controller, service: Service, target: Target, *, quick: bool = False) -> bool | None:
    """Whether that server passes a probe now. None: the sniffer could not probe.

    ``quick``: with the timeout of the sniffer's own probes, which is learned from the traffic.
    """
    request = {"verb": "probe", "service": service.name, "target": str(target), "quick": quick}
    try:
        reply = control.ask(controller.sniffer_socket, request, timeout=service.check.timeout + 2.0)
    except ControlError as error:
        log.warning("%s: cannot probe the %s: %s", service.name, target, error)
        return None
    return bool(reply.get("passed"))


def health(controller: Controller, service: Service, target: Target) -> dict[str, Any]:
    """The sniffer's latest probe results of a server; empty if the sniffer does not answer."""
    return _part(_sniffer(controller, service), target)


def primaries(controller: Controller, services: Sequence[Service]) -> dict[str, dict[str, Any]]:
    """The same of the primaries of these services, by one question, where a person waits for a status."""
    found = _ask(controller, services[0].name if len(services) == 1 else None, STATUS_TIMEOUT)
    return {service.name: _part(_part(found, service.name), Target.PRIMARY) for service in services}


def with_missing_facts(
    controller: Controller, service: Service, verb: str, facts: Facts, *, manual: bool, since: float | None
) -> Facts:
    """The facts of an order, as the sniffer's verdict or probes confirm them now.

    An order's own facts may be late, or invented: who may submit a passive result writes its perfdata. They count only
    if the sniffer is away, perhaps by the same fault, and the redirector cannot have the servers probed itself, for
    example because it must not read the password. Even then they do not count if they are

    - missing: CRITICAL from a freshness check that could not run, or from a core whose NRPE can carry fixed words only;
    - older than the last flip (``since``): the transport kept the result while the core was away.

    Facts older than ``RECENT`` (core or redirector were stopped or are slow): the standby is probed anew, and the other
    server too unless the sniffer's last probe of it is recent.
    """
    if verb == "fail-over" and not manual:
        unknown = facts.detector is None and not (facts.probes or facts.blind)
        measured = None if facts.evidence is None else facts.evidence / 1000
        before = measured is not None and since is not None and measured < since
        late = measured is not None and abs(time.time() - measured) > RECENT
        # Late facts may move clients off a server that is well again, so a slow sniffer is waited for.
        if known := _sniffer(controller, service, LATE_TIMEOUT if late else ORDER_TIMEOUT):
            facts = _ask_for_facts(controller, service, facts, known, late=late)
            if late and facts.server is Target.PRIMARY:
                facts = replace(facts, standby_ok=None)
        else:
            facts = _without_sniffer(service, facts, believed=not (unknown or before))
    if facts.standby_ok is None:
        facts = replace(facts, standby_ok=probe(controller, service, Target.STANDBY))
    return facts


def _without_sniffer(service: Service, facts: Facts, *, believed: bool) -> Facts:
    """The order's facts, where our own probes do not contradict them; not ``believed``: the probes alone."""
    found = Facts(server=facts.server, downtime=facts.downtime, handlers_off=facts.handlers_off)
    try:
        *outcomes, other = _probed_apart(service, facts.server)
    except ProbeError as error:
        log.warning("%s: the sniffer is away, and no probe can be made here: %s", service.name, error)
        return facts if believed else found
    failed = outcomes.count(False)
    standby_ok = facts.standby_ok is not False and (other if facts.server is Target.PRIMARY else failed < 2)
    if not believed:
        facts = replace(found, detector=Detector.CORE)
    if not believed or failed < 2:
        facts = replace(facts, probes=2, probes_failed=failed)
    return replace(facts, standby_ok=standby_ok)


def _probed_apart(service: Service, server: Target) -> list[bool]:
    """Two probes of a server and one of the other; orders that come together share them. Raises ProbeError."""
    key, servers = (service.name, server), [service.server(each) for each in (server, server, server.other)]
    with _lock:
        running = _running.get(key)
        if running is None or running.done():
            running = _running[key] = _apart.submit(apart.ask, service.check, servers)
    return running.result()


def _ask_for_facts(
    controller: Controller, service: Service, facts: Facts, known: dict[str, Any], *, late: bool
) -> Facts:
    """The sniffer's present verdict; without one, two probes of the server that the order is about."""
    found = Facts(server=facts.server, downtime=facts.downtime, handlers_off=facts.handlers_off)
    if known.get("blind"):
        return replace(found, blind=True)
    verdict = known.get("facts")
    try:
        said = from_json(Facts, verdict) if isinstance(verdict, dict) else Facts()
    except RecordError as error:  # another version of it
        log.warning("%s: the sniffer's facts are not understood: %s", service.name, error)
        said = Facts()
    if said.detector is not None:
        said = replace(said, downtime=facts.downtime, handlers_off=facts.handlers_off)
        last = known.get(str(said.server), {})
        seen = last.get("ok") is False and last.get("ago", RECENT) < RECENT
        if late and not seen and probe(controller, service, said.server, quick=True):
            said = replace(said, probes=1, probes_failed=0)
        return said
    outcomes = [probe(controller, service, facts.server) for _ in range(2)]
    if None not in outcomes:
        found = replace(found, detector=Detector.CORE, probes=2, probes_failed=outcomes.count(False))
    return found


def _sniffer(controller: Controller, service: Service, timeout: float = 2.0) -> dict[str, Any]:
    """The sniffer's status of a service (see ``control``); empty if the sniffer does not answer within ``timeout``."""
    return _part(_ask(controller, service.name, timeout), service.name)


def _ask(controller: Controller, name: str | None, timeout: float) -> dict[str, Any]:
    """The same for all services, or for the one of that name."""
    global _silent_until
    if timeout == STATUS_TIMEOUT and time.monotonic() < _silent_until:
        return {}
    try:
        message = {"verb": "status", **({"service": name} if name else {})}
        return _part(control.ask(controller.sniffer_socket, message, timeout=timeout), "services")
    except SilentError:
        if timeout == STATUS_TIMEOUT:
            _silent_until = time.monotonic() + SILENT_FOR
        return {}
    except ControlError:
        return {}


def _part(found: dict[str, Any], key: str) -> dict[str, Any]:
    inner = found.get(key)
    return inner if isinstance(inner, dict) else {}


def synced(controller: Controller, service: Service, facts: Facts) -> Facts:
    """The facts with the sync record as it is now, so that an order cannot claim fresher data."""
    return syncstate.known(controller.state_dir, service, facts, time.time())


def synced_back(
    controller: Controller, service: Service, since: float | None, *, planned: bool
) -> tuple[bool | None, str]:
    """Whether the primary has the standby's changes ``since`` the flip; None: the fail-back need not wait for them.

    With it, what a person must decide about clients' writes before they can be brought back; empty: nothing.

    Only a ``planned`` fail-back waits for servers that replicate themselves: failover-sync cannot compare them while
    the standby fails, and replication brings the changes later.
    """
    if service.sync is None or service.sync.sync_back != "required":
        return None, ""
    if service.sync.method == "syncrepl" and not planned:
        return None, ""
    record = syncstate.read(controller.state_dir, service.name)
    return record.brought_back(since, time.time(), service.sync.sync_back_valid), record.undecided
