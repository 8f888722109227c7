"""What must be true of acknowledged writes: each one is where clients find it, or in a place that was named. Pure.

A fail-over by itself loses what was not yet copied, as the serving server shows it. Such a write lies on the other
server, must be reported as soon as a run looks at it, and must stay there until a person decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from check_failover.syncstate import DIVIDED, Refusal

OTHER = {"primary": "standby", "standby": "primary"}
REPORTED = (*DIVIDED, Refusal.STILL_REACHED)


@dataclass(frozen=True)
class Found:
    """After a run in the direction of the serving server, which no client writes to any more."""

    serving: str
    acknowledged: frozenset[int]
    on: Mapping[str, Collection[int]]  # server -> what clients find there
    code: int  # exit code of that run
    line: str
    status: str  # of failoverctl after it
    kept: Mapping[str, Collection[int]] = field(default_factory=dict)  # place that was named -> what it has

    @property
    def put_aside(self) -> frozenset[int]:
        return frozenset().union(*self.kept.values())


def judge(found: Found) -> list[str]:
    """What is not as promised. Empty: no write was lost in silence."""
    here, there = (frozenset(found.on[server]) for server in (found.serving, OTHER[found.serving]))
    lost = found.acknowledged - here - there - found.put_aside
    problems = [f"lost: {numbers(lost)} are on neither server and in no place that was named"] if lost else []
    missing = found.acknowledged - here - found.put_aside - lost
    reported = any(f"[{reason}]" in found.line for reason in REPORTED)
    if found.code == 0:
        if missing:
            problems.append(f"in silence: the run says OK; {numbers(missing)} are on the {OTHER[found.serving]} only")
        if (
            uneven := (here ^ there) & found.acknowledged
        ):  # a write without an answer may arrive whenever TCP repeats it
            problems.append(f"the run says OK; only on one server: {numbers(uneven)}")
    elif not reported:
        problems.append(f"the run neither ends well nor reports a write: {found.line}")
    elif missing:
        if OTHER[found.serving] not in found.line:
            problems.append(f"{numbers(missing)} are on the {OTHER[found.serving]}, which the run does not name")
        if "sync: OK" in found.status:
            problems.append(f"{numbers(missing)} are on the {OTHER[found.serving]}; failoverctl status: sync: OK")
    return problems


def decided(found: Found) -> list[str]:
    """After ``--take`` of the serving server: both are in step, and what went is in a place that was named."""
    return [*judge(found), *([] if found.code == 0 else [f"a person's decision was not carried out: {found.line}"])]


def numbers(found: Collection[int]) -> str:
    """For people: at most ten of them."""
    first = ", ".join(map(str, sorted(found)[:10]))
    return f"{len(found)} writes ({first}{', …' if len(found) > 10 else ''})"
