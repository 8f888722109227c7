"""failoverctl's lines about many services: their order, what is summed up, and which findings share a line."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from check_failover.admin import show
from check_failover.admin.director import basket
from check_failover.admin.doctor import shared
from check_failover.admin.finding import Finding
from check_failover.admin.objects import icinga2, nagios
from check_failover.admin.remote import WAYS, Site
from check_failover.config import load
from check_failover.model import Hold, State, Target
from check_failover.records import Drain, ServiceStatus
from tests.lab.many import blocks
from tests.unit.test_inquiry import SERVICE

WELL = ServiceStatus(Target.PRIMARY, Target.PRIMARY, state=State.OK, text="on the primary")
MOVED = replace(WELL, target=Target.STANDBY, kernel=Target.STANDBY, state=State.WARNING, text="on the standby")
SEEN: dict[str, Any] = {"target": "primary", "verdict": "ok", "blind": None, "text": "two probes failed"}
SEEN |= {"primary": {"ok": True, "text": "x"}, "standby": {"ok": True, "text": "refused"}}


@pytest.mark.parametrize(
    ("status", "state", "said"),
    [
        (WELL, State.OK, "ldap: OK: on the primary"),
        (None, State.UNKNOWN, "ldap: UNKNOWN: the redirector does not know it: restart failover-redirector"),
        (replace(WELL, drain=Drain(Target.STANDBY, 1.0)), State.WARNING, "on the primary; drains"),
        (replace(MOVED, hold=Hold("ann", 1.0, "x")), State.WARNING, "on the standby; held by ann"),
        (replace(WELL, refused="hold"), State.CRITICAL, "ldap: CRITICAL: on the primary; fail-over refused, hold"),
    ],
)
def test_a_service_in_one_line(status: ServiceStatus | None, state: State, said: str) -> None:
    """Its worst state, and all that a person must look at."""
    worst, line = show.brief(SERVICE, status, [])
    assert worst is state
    assert said in line


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({"verdict": "failed"}, State.CRITICAL, "verdict on the primary: failed: two probes failed"),
        ({"verdict": "suspect"}, State.WARNING, "verdict on the primary: suspect"),
        ({"blind": "cl0 is down"}, State.UNKNOWN, "blind: cl0 is down"),
        ({"standby": {"ok": False, "text": "refused"}}, State.WARNING, "the standby fails its probe: refused"),
        ({"target": "nowhere"}, State.UNKNOWN, "not understood"),
    ],
)
def test_what_the_sniffer_sees(changes: dict[str, Any], state: State, said: str) -> None:
    """Its findings count beside the redirector's."""
    worst, line = show.brief(SERVICE, WELL, show.seen(SEEN | changes))
    assert worst is state
    assert said in line
    assert show.seen(SEEN) == []
    assert show.seen(None)[0][0] is State.UNKNOWN


def test_the_most_urgent_first() -> None:
    """CRITICAL, UNKNOWN, WARNING, then what is well: from 21 services on in one line, unless all are wanted."""
    problems = [(State.WARNING, "w"), (State.UNKNOWN, "u"), (State.CRITICAL, "c")]
    few = [(State.OK, f"ok{n}") for n in range(17)]
    assert show.briefs([*few, *problems], every=False) == ["c", "u", "w", *(text for _, text in few)]
    many = [*few, (State.OK, "one more")]
    assert show.briefs([*many, *problems], every=False) == ["c", "u", "w", "18 services: all well, on the primary"]
    assert len(show.briefs([*many, *problems], every=True)) == 21


def test_findings_share_a_line() -> None:
    """The same about several services is one line; another level, matter or text stays as it is."""
    do = "failoverctl drill {}"
    found = [
        Finding("ok", "operators", "ann"),
        *(Finding("missing", f"s{n} standby", f"s{n} fails after {n}.5 s", do.format(f"s{n}")) for n in range(1, 6)),
        Finding("ok", "s6 standby", "passed"),
        Finding("missing", "s7 standby", "refused", "mend it"),
        Finding("missing", "s8 redirect", "refused", "mend it"),
    ]
    said = [str(one) for one in shared(found, {f"s{n}" for n in range(1, 9)})]
    assert said == [
        "ok       operators: ann",
        "missing  s1, s2 and 3 more: standby: s1 fails after 1.5 s, s2 fails after 2.5 s and 3 more: "
        "failoverctl drill s1, failoverctl drill s2 and 3 more",
        *map(str, found[6:]),
    ]
    assert [str(one) for one in shared(found[6:7], ())] == [str(found[6])]


def test_the_objects_of_two_hundred_services(tmp_path: Path) -> None:
    """Each kind of text is made in far less than a second of CPU; what grows with the square of the number is not."""
    path = tmp_path / "config.toml"
    path.write_text('[monitoring]\ncommand_file = "/x"\n' + blocks(200))
    config = load(path)
    began = time.process_time()
    assert nagios(config).count("define service {") >= 6 * 200
    assert icinga2(config).count("\nobject Service ") >= 6 * 200
    assert len(json.loads(basket(config))["ServiceSet"]) >= 200
    assert all(made(config, Site("192.0.2.1")) for way in WAYS.values() for made in way.values())
    assert time.process_time() - began < 4.0
