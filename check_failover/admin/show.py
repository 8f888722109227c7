"""``failoverctl``'s output: status, history and config as lines of text. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from check_failover import decide, reach, story
from check_failover.config import Config
from check_failover.damping import SUPPRESS
from check_failover.model import Service, State, Target
from check_failover.records import Drain, JournalEntry, ServiceStatus, to_json
from check_failover.story import moment

SCREENFUL = 20  # services; of more, those that are well share a line
UNKNOWN = "the redirector does not know it: restart failover-redirector"
_URGENCY = (State.CRITICAL, State.UNKNOWN, State.WARNING)


def shortened(texts: Sequence[str]) -> str:
    """``ldap-1, ldap-2 and 198 more``."""
    return ", ".join(texts) if len(texts) <= 3 else f"{', '.join(texts[:2])} and {len(texts) - 2} more"


def brief(service: Service, redirect: ServiceStatus | None, more: Sequence[tuple[State, str]]) -> tuple[State, str]:
    """The worst state of a service, and its line: all that a person must look at. ``more``: others' findings."""
    found: list[tuple[State, object]] = [(State.UNKNOWN, UNKNOWN)]
    if redirect is not None:
        found = [
            (redirect.state, redirect.text),
            (State.WARNING, redirect.hold and redirect.target is Target.STANDBY and f"held by {redirect.hold.by}"),
            (State.CRITICAL, redirect.refused and f"fail-over refused, {redirect.refused}"),
            (State.WARNING, redirect.drain and "drains"),
            (State.WARNING, redirect.withheld is False and f"withholding is off, {story.unwithheld(redirect)}"),
        ]
    shown = [(state, text) for state, text in (*found, *more) if text]
    worst = next((state for state in _URGENCY if any(one is state for one, _ in shown)), State.OK)
    return worst, f"{service.name}: {worst.name}: {'; '.join(str(text) for _, text in shown)}"


def seen(sniffer: Mapping[str, Any] | None) -> list[tuple[State, str]]:
    """What a person must look at in the sniffer's status of a service."""
    if sniffer is None:
        return [(State.UNKNOWN, "the sniffer does not know it: restart failover-sniffer")]
    try:
        verdict, other = sniffer["verdict"], Target(sniffer["target"]).other
        level = {"suspect": State.WARNING, "failed": State.CRITICAL}.get(verdict)
        found = [(level, f"verdict on the {sniffer['target']}: {verdict}: {sniffer['text']}")] if level else []
        if sniffer["blind"]:
            found.append((State.UNKNOWN, f"blind: {sniffer['blind']}"))
        if sniffer[other]["ok"] is False:
            found.append((State.WARNING, f"the {other} fails its probe: {sniffer[other]['text']}"))
    except (KeyError, TypeError, ValueError):  # of another version
        return [(State.UNKNOWN, "the sniffer's answer is not understood: restart failover-sniffer")]
    return found


def briefs(found: Sequence[tuple[State, str]], *, every: bool) -> list[str]:
    """The lines of all services, the most urgent first; those of many that are well are summed up unless ``every``."""
    lines = [text for level in _URGENCY for state, text in found if state is level]
    well = [text for state, text in found if state is State.OK]
    if len(found) > SCREENFUL and len(well) > 1 and not every:
        well = [f"{len(well)} services: all well, on the primary"]
    return lines + well


def status(
    service: Service, redirect: ServiceStatus, sniffer: Mapping[str, Any] | None, away: str | None, now: float
) -> list[str]:
    """One service: a summary line, then the details."""
    lines = [f"{service.name}: {redirect.state.name}: {redirect.text}"]
    lines.append(f"  {service.protocol} {service.address} -> {redirect.target} {service.server(redirect.target)}")
    hold, going_on = redirect.hold, redirect.drain
    details = [
        service.policy.shadow and "mode: shadow: decides and reports, never flips",
        hold and f"held by {hold.by} since {moment(hold.at)}: {hold.reason or 'no reason given'}",
        going_on and drain(service.name, going_on).removeprefix(f"{service.name}: "),
        reach.line(redirect.reached, redirect.target, now),
        redirect.withheld is False and f"withholding is off, {story.unwithheld(redirect)}",
        redirect.dead and f"open connections to the {redirect.dead} are reset",
        redirect.downtime and f"in downtime: {', '.join(redirect.downtime)}",
        redirect.hold_down_left and f"hold-down: {redirect.hold_down_left:.0f} s left",
    ]
    lines += [f"  {detail}" for detail in details if detail]
    lines += _traffic(sniffer, away)
    if redirect.target is Target.STANDBY:
        lines.append("  fail-back:")
        lines += [f"    {item}" for item in decide.items(redirect.fail_back)]
        if redirect.auto_fail_back is not None:
            how = redirect.auto_fail_back
            locked = "locked, a person must fail back" if how.locked else "on"
            word = "not after a person's order" if how.moved_by_person else locked
            lines.append(f"  automatic fail-back: {word}; penalty {how.penalty}, locks at {SUPPRESS:.0f}")
    if redirect.last is not None:
        lines.append(f"  last: {line(redirect.last)}")
    return lines


def _traffic(sniffer: Mapping[str, Any] | None, away: str | None) -> list[str]:
    if sniffer is None:
        return [f"  sniffer: away: {away or 'it does not know this service'}"]
    try:
        stats = sniffer["stats"]
        p99 = "" if stats["p99"] is None else f", 99 % of replies within {1000 * stats['p99']:.1f} ms"
        lines = [f"  traffic: {stats['request_rate']:.1f} requests/s{p99}, {stats['unanswered']} unanswered"]
        if sniffer["blind"]:
            lines.append(f"  sniffer: blind: {sniffer['blind']}")
        for server in ("primary", "standby"):
            word = {True: "passes: ", False: "fails: ", None: ""}[sniffer[server]["ok"]]
            lines.append(f"  {server}: {word}{sniffer[server]['text']}")
    except (KeyError, TypeError, ValueError):  # of another version
        return ["  sniffer: its answer is not understood: restart failover-sniffer"]
    return lines


def drain(name: str, going_on: Drain) -> str:
    """A drain's progress."""
    deadline = going_on.deadline
    until = "" if deadline is None else f", cut at {moment(deadline)}"
    left = "an unknown number of" if going_on.left is None else going_on.left
    return f"{name}: {left} open connections left on the {going_on.old}{until}"


def drains(names: Sequence[str], going_on: Mapping[str, Drain]) -> str:
    """The progress of the drains of these services."""
    if not going_on:
        return f"{shortened(names)}: no open connection is left to wait for"
    if len(going_on) == 1:
        return drain(*next(iter(going_on.items())))
    left = sum(one.left or 0 for one in going_on.values())
    return f"{shortened([*going_on])}: {left} open connections left in all"


def line(entry: JournalEntry) -> str:
    """One line of the journal."""
    took = "" if entry.took is None else f", {1000 * entry.took:.0f} ms"
    return f"{moment(entry.at)} {entry.line} (by {entry.by}{took}) {entry.id}"


def entry(found: JournalEntry) -> list[str]:
    """All fields of one journal entry."""
    lines = [line(found)]
    for key, value in to_json(found).items():
        if key in ("line", "at"):
            continue
        if isinstance(value, Mapping):
            lines += [f"  {key}.{inner}: {value[inner]}" for inner in value if value[inner] is not None]
        elif value is not None:
            lines.append(f"  {key}: {value}")
    return lines


def evidence(kept: Mapping[str, Any]) -> list[str]:
    """The sniffer's evidence: traffic and probes."""
    known = {key: value for key, value in kept["traffic"].items() if value is not None}
    return [
        f"  evidence: {kept['verdict']}",
        *(f"    {line}" for line in story.seen(kept)),
        "    traffic: " + ", ".join(f"{key} {value}" for key, value in known.items()),
    ]


_WRITES = {
    "primary": "clients write to the serving server alone, so only reads are rescued before a verdict",
    "replicated": "the servers replicate by themselves, so any connection may be rescued",
    "none": "clients only read, so any connection may be rescued",
}


def config(config: Config) -> list[str]:
    """A config's meaning in a few lines."""
    controller = config.controller
    interfaces = ", ".join(controller.client_interfaces) or "none (the sniffer will not start)"
    lines = [
        f"{config.path}: good",
        f"  redirect by {controller.redirect}, clients seen on {interfaces}",
        f"  results through {config.monitoring['transport']}",
        *([f"  pair with {controller.peer}"] if controller.peer else []),
        f"  SMS through {config.sms['gateway']}" if config.sms else "  no SMS",
    ]
    for service in config.services:
        policy = service.policy
        lines.append(f"  {service.name}: {service.protocol} {service.address} on host {service.host}")
        lines.append(f"    primary {service.primary}, standby {service.standby}, probed by {service.check.type}")
        stale = "no criterion" if policy.max_sync_age is None else f"{policy.max_sync_age:.0f} s ({policy.sync})"
        lines.append(f"    writes {service.writes}: {_WRITES[service.writes]}")
        lines.append(f"    hold-down {policy.hold_down:.0f} s, sync age {stale}" + ", shadow" * policy.shadow)
    return lines
