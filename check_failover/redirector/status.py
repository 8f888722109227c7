"""How a service stands: what the redirector answers to ``status``. Asks the kernel for rule, counters, connections."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from check_failover.damping import decayed
from check_failover.decide import FAIL_BACK, checklist
from check_failover.model import Service
from check_failover.redirector import Redirect, RedirectError
from check_failover.redirector.order import Order, situation
from check_failover.redirector.state import ServiceState
from check_failover.redirector.store import StateStore


def status(redirect: Redirect, store: StateStore, fail_back: Order) -> dict[str, Any]:
    """See ``control``. ``fail_back``: an order to fail back, with what is known of the primary."""
    service, state = fail_back.service, store.state[fail_back.service.name]
    kernel = redirect.current(service)
    activity: dict[str, int] | None = None
    drain: dict[str, Any] | None = None if state.drain is None else {**asdict(state.drain), "left": None}
    problem = next(iter(store.problems[service.name].values()), None)
    try:
        activity = asdict(redirect.activity(service))
        if drain is not None and state.drain is not None:
            drain["left"] = redirect.open_connections(service, state.drain.old)
    except RedirectError as error:
        problem = problem or str(error)
    if kernel is not state.target and problem is None:
        problem = f"the kernel's rule says {kernel or 'nothing'}, not {state.target}"
    age = store.age(service.name)
    asked = situation(fail_back, state, age)
    return {
        "target": state.target,
        "kernel": kernel,
        "since": state.since,
        "hold": None if state.hold is None else asdict(state.hold),
        "pending": state.pending,
        "drain": drain,
        "downtime": list(state.downtime),
        "auto_fail_back": _automatic(service, state, time.time()),
        "hold_down_left": 0.0 if age is None else max(0.0, round(service.policy.hold_down - age, 1)),
        "problem": problem,
        "activity": activity,
        "protocol": service.protocol,
        "address": str(service.address),
        "primary": str(service.primary),
        "standby": str(service.standby),
        "fail_back": [
            [str(reason), why] for reason, why in checklist(FAIL_BACK, fail_back.facts, service.policy, asked)
        ],
        "last": store.last.get(service.name),
        "flip": store.flip.get(service.name),
    }


def _automatic(service: Service, state: ServiceState, now: float) -> dict[str, Any] | None:
    """How the automatic fail-back stands; None where it is off."""
    policy = service.policy
    if not policy.auto_fail_back:
        return None
    penalty = decayed(state.damping, now, policy.damping_half_life)
    return {"penalty": round(penalty), "locked": state.damping.locked, "moved_by_person": state.moved_by_person}
