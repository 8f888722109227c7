"""What the kernel must have for a service, over every state."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.config import load
from check_failover.decide import Reason
from check_failover.model import Facts, Hold, Target
from check_failover.records import Drain
from check_failover.redirector import Wiring
from check_failover.redirector.repair import wiring
from check_failover.redirector.state import ServiceState

P, S = Target.PRIMARY, Target.STANDBY
SERVICE = load(Path(__file__).parents[1] / "fixtures" / "config" / "good.toml").service("ldap")
SERVICE = replace(SERVICE, policy=replace(SERVICE.policy, rescue=True, shadow=False, max_sync_age=60.0, sync="refuse"))
FRESH = Facts(sync_age=1.0)
HELD = Hold("ada", 0.0, "new disks")

# A refusal with which the sniffer rescues nobody: its own doing, or no standby that is known to be well.
HOPELESS = {Reason.NO_HEALTHY_SERVER, Reason.STANDBY_UNKNOWN, Reason.BLIND}


def withheld(state: ServiceState, synced: Facts = FRESH, **policy: object) -> bool | None:
    service = replace(SERVICE, policy=replace(SERVICE.policy, **policy))  # type: ignore[arg-type]
    found = wiring(service, state, None, synced)
    assert (found.target, found.dead) == (state.target, None)
    return found.withheld


@pytest.mark.parametrize("reason", [*Reason, "error"])
@pytest.mark.parametrize("waits", [True, False])
def test_a_refusal_that_stands(reason: str, waits: bool) -> None:
    """Clients hear the truth where no connection can be rescued; a pending refusal and a final one are alike."""
    refused = {"pending": str(reason)} if waits else {"refused": str(reason)}
    state = ServiceState(**refused)  # type: ignore[arg-type]
    assert withheld(state) is (reason not in HOPELESS)
    assert withheld(replace(state, hold=HELD)) is False
    assert withheld(replace(state, target=S)) is False, "the rescue is the standby's work"
    assert withheld(state, rescue=False) is False
    assert withheld(state, shadow=True) is False
    assert withheld(state, Facts(sync_age=61.0)) is False
    assert withheld(state, Facts(sync_age=1.0, sync_running=True)) is False


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("hold", [None, HELD])
@pytest.mark.parametrize("drain", [None, Drain(P, 0.0), Drain(S, 0.0)])
def test_nothing_is_decided(target: Target, hold: Hold | None, drain: Drain | None) -> None:
    """No refusal stands: withheld, whatever else is the case."""
    state = ServiceState(target, hold=hold, drain=drain, moved_by_person=True, downtime=("ldap",))
    for rescue, shadow in itertools.product((True, False), repeat=2):
        assert withheld(state, Facts(sync_running=True), rescue=rescue, shadow=shadow) is True


@pytest.mark.parametrize(("target", "leaving"), [(P, S), (S, P), (P, P), (S, S), (P, None), (S, None)])
@pytest.mark.parametrize("drain", [None, Drain(P, 0.0), Drain(S, 0.0)])
def test_who_counts_as_dead(target: Target, leaving: Target | None, drain: Drain | None) -> None:
    """The server whose connections are being ended; never the one that serves, never while its connections finish."""
    dead = leaving if drain is None and leaving is target.other else None
    assert wiring(SERVICE, ServiceState(target, drain=drain), leaving, FRESH) == Wiring(target, dead, True)
