"""What people are told of an incident, line by line: the further lines of services, and what ``failoverctl`` prints.

What was seen and probed comes from the sniffer's evidence of a verdict, what was done from an entry of the journal.
Pure but for the time zone. The further lines are bounded: with first line and perfdata they stay below what the
narrowest way to a core carries (``transports.wording.SIZE``; Nagios itself takes 8 KiB), so that the last line, how to
go back, is never the one that is cut off.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from check_failover.model import Facts
    from check_failover.records import JournalEntry

LINES, LINE = 14, 160  # of one service's further lines: how many, and bytes of each

# What a flip did for clients, as the journal has it.
_REPAIRS = {
    "freed": "open connections reset: {}",
    "forgotten": "forgotten, in the making or closed: {}",
    "left": "open connections left to finish: {}",
}


def moment(at: object) -> str:
    """Local time to the second."""
    if not isinstance(at, int | float):
        return "?"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "?"


def further(lines: Iterable[str]) -> str:
    """Lines as a result's further lines: bounded, none of them empty, without the ``|`` that would begin perfdata."""
    kept = [" ".join(line.replace("|", "/").split()) for line in lines]
    kept = [line.encode()[:LINE].decode(errors="ignore") for line in kept if line]
    return "\n".join(kept if len(kept) <= LINES else [*kept[: LINES - 2], "...", kept[-1]])


def seen(evidence: Mapping[str, Any]) -> list[str]:
    """What the sniffer saw, and each probe, of one verdict."""
    suspicion = evidence["suspicion"]
    lines = [
        f"suspicion: {suspicion['detector']}: {suspicion['text']}",
        f"from the first victim to the verdict: {evidence['seconds_from_the_first_victim']:.3f} s",
    ]
    for probe in evidence["probes"]:
        word = "passed" if probe["passed"] else "failed"
        lines.append(f"probe of the {probe['of']}: {word} after {probe['seconds']:.3f} s: {probe['text']}")
    return lines


def refusal(entry: JournalEntry, age: str = "") -> str:
    """A refused order in one line; ``age``: of the standby's data, said early."""
    return f"{entry.verb} refused, {entry.reason}{age}: {entry.text}"


def headline(entry: JournalEntry) -> str:
    """An entry of the journal in one line, a refusal with its reason."""
    if not entry.flipped and entry.reason not in (None, "error", entry.verb):
        return refusal(entry)
    return entry.line


def done(entry: JournalEntry) -> list[str]:
    """What was ordered, on which facts, and what became of it."""
    lines = [f"{moment(entry.at)} {headline(entry)}"]
    took = "" if entry.took is None else f", took {1000 * entry.took:.0f} ms"
    repairs = [text.format(getattr(entry, name)) for name, text in _REPAIRS.items() if getattr(entry, name)]
    lines.append(f"ordered by {entry.by}{took}{''.join(f', {text}' for text in repairs)}")
    if entry.error:
        lines.append(f"not all of it: {entry.error}")
    facts = [] if entry.facts is None else _facts(entry.facts)
    return [*lines, *facts, f"more: failoverctl history --show {entry.id}"]


def page_name(entry: JournalEntry) -> str | None:
    """File name of the incident's page (``failoverctl reports``); None for what is none: neither moved nor refused."""
    incident = entry.flipped or (entry.verb == "fail-over" and entry.reason != "already-there")
    return f"{entry.id}.html" if incident else None


def _facts(facts: Facts) -> list[str]:
    """What the decision was made on; nothing of what nobody looked at."""
    lines = []
    if facts.requests:
        unanswered = facts.requests - facts.replies
        lines.append(f"seen: no useful reply to {unanswered} of {facts.requests} requests ({facts.detector})")
    probed = []
    if facts.probes:
        probed.append(f"the primary failed {facts.probes_failed} of {facts.probes} probes")
    if facts.standby_ok is not None:
        probed.append(f"the standby {'passed' if facts.standby_ok else 'failed'} its probe")
    if probed:
        lines.append(", ".join(probed))
    if facts.sync_age is not None:
        lines.append(f"the standby's data was {facts.sync_age:.0f} s old")
    return lines


def way_back(name: str) -> str:
    """The last line while the standby serves."""
    return f'back: failoverctl fail-back {name}, or submit OK for "{name} fail-back", once that says it is ready'
