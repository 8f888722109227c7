"""A service's status, which the redirector answers to ``status``. Reads rule, counters, connections from the kernel."""

import time
from dataclasses import replace
from typing import Any

from check_failover.decide import FAIL_BACK, checklist
from check_failover.records import AutoFailBack, ServiceStatus
from check_failover.redirector import Redirect, RedirectError
from check_failover.redirector.order import Order, situation
from check_failover.redirector.store import StateStore


def status(redirect: Redirect, store: StateStore, fail_back: Order) -> ServiceStatus:
    """See ``records``. ``fail_back``: an order to fail back, with the known facts about the primary."""
    service, state = fail_back.service, store.state[fail_back.service.name]
    wired = redirect.wired((service,)).get(service.name)
    kernel = None if wired is None else wired.target
    activity, drain = None, state.drain
    problem = next(iter(store.problems[service.name].values()), None)
    try:
        activity = redirect.activity(service)
        if drain is not None:
            drain = replace(drain, left=redirect.open_connections(service, drain.old))
    except RedirectError as error:
        problem = problem or str(error)
    if kernel is not state.target and problem is None:
        problem = f"the kernel's rule says {kernel or 'nothing'}, not {state.target}"
    age = store.since_move(service.name)
    asked = situation(fail_back, state, age, time.time())
    automatic = None
    if service.policy.auto_fail_back:
        automatic = AutoFailBack(round(asked.penalty), asked.locked, asked.moved_by_person)
    same: dict[str, Any] = {name: str(getattr(service, name)) for name in ("protocol", "address", "primary", "standby")}
    same |= {name: getattr(state, name) for name in ("since", "hold", "pending", "refused", "downtime", "reached")}
    return ServiceStatus(
        target=state.target,
        kernel=kernel,
        withheld=None if wired is None else wired.withheld,
        dead=None if wired is None else wired.dead,
        drain=drain,
        auto_fail_back=automatic,
        hold_down_left=0.0 if age is None else max(0.0, round(service.policy.hold_down - age, 1)),
        problem=problem,
        activity=activity,
        fail_back=tuple(
            (str(reason), why) for reason, why in checklist(FAIL_BACK, fail_back.facts, service.policy, asked)
        ),
        last=store.last_entry.get(service.name),
        flip=store.last_flip.get(service.name),
        **same,
    )
