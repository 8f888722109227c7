"""The services' statuses, which the redirector answers to ``status``: rules, counters, connections from the kernel."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from check_failover.decide import FAIL_BACK, checklist
from check_failover.records import AutoFailBack, ServiceStatus
from check_failover.redirector import Redirect, RedirectError, Wiring
from check_failover.redirector.order import Order, situation
from check_failover.redirector.store import StateStore


def statuses(redirect: Redirect, store: StateStore, fail_backs: Sequence[Order]) -> dict[str, ServiceStatus]:
    """See ``records``. ``fail_backs``: orders to fail back, with the known facts about the primary.

    The kernel is asked once for all services: the time to read a table hardly depends on how many are looked for.
    """
    services = [order.service for order in fail_backs]
    wired = redirect.wired(services)
    drains = {one.name: drain.old for one in services if (drain := store.state[one.name].drain) is not None}
    fault, activity, left = None, {}, {}
    try:
        activity = redirect.activity(services)
        left = redirect.open_connections(drains)
    except RedirectError as error:
        fault = str(error)
    found = {}
    for order in fail_backs:
        name = order.service.name
        lost = fault if name not in activity or name in drains else None
        status = _status(store, order, wired.get(name), lost)
        drain = None if status.drain is None else replace(status.drain, left=left.get(name))
        found[name] = replace(status, activity=activity.get(name), drain=drain)
    return found


def _status(store: StateStore, fail_back: Order, wired: Wiring | None, problem: str | None) -> ServiceStatus:
    service, state = fail_back.service, store.state[fail_back.service.name]
    kernel = None if wired is None else wired.target
    problem = next(iter(store.problems[service.name].values()), problem)
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
        drain=state.drain,
        auto_fail_back=automatic,
        hold_down_left=0.0 if age is None else max(0.0, round(service.policy.hold_down - age, 1)),
        problem=problem,
        fail_back=tuple(
            (str(reason), why) for reason, why in checklist(FAIL_BACK, fail_back.facts, service.policy, asked)
        ),
        last=store.last_entry.get(service.name),
        flip=store.last_flip.get(service.name),
        **same,
    )
