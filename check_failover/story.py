"""An incident in lines of text: the further lines of services in the core, and part of ``failoverctl``'s output.

The sniffer's evidence shows what it saw and probed; an entry of the journal shows what the redirector did. Pure, except
for the time zone. The further lines are bounded: with first line and perfdata they stay below the limit of the
narrowest transport (``transports.SIZE``; Nagios itself takes 8 KiB). So no transport cuts off the last line,
which gives the command for the fail-back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from check_failover.model import Facts
    from check_failover.records import JournalEntry, ServiceStatus

MAX_LINES, MAX_LINE_BYTES = 14, 160  # of one service's further lines

# A flip's repairs for clients: the journal's key -> text.
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
    """Lines as a result's further lines: bounded, without empty lines and without ``|``, which begins perfdata."""
    kept = [" ".join(line.replace("|", "/").split()) for line in lines]
    kept = [line.encode()[:MAX_LINE_BYTES].decode(errors="ignore") for line in kept if line]
    return "\n".join(kept if len(kept) <= MAX_LINES else [*kept[: MAX_LINES - 2], "...", kept[-1]])


def seen(evidence: Mapping[str, Any]) -> list[str]:
    """One verdict's evidence: what the sniffer saw, and each probe."""
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
    """A refused order in one line; ``age``: text with the age of the standby's data."""
    return f"{entry.verb} refused, {entry.reason}{age}: {entry.text}"


def unwithheld(status: ServiceStatus) -> str:
    """Why refusals of new connections are not withheld."""
    return (
        f"clients see refused connections: fail-over refused, {status.pending or status.refused or 'no reason known'}"
    )


def headline(entry: JournalEntry) -> str:
    """A journal entry in one line; a refusal includes its reason."""
    if not entry.flipped and entry.reason not in (None, "error", entry.verb):
        return refusal(entry)
    return entry.line


def done(entry: JournalEntry) -> list[str]:
    """The order, its facts and its outcome."""
    lines = [f"{moment(entry.at)} {headline(entry)}"]
    took = "" if entry.took is None else f", took {1000 * entry.took:.0f} ms"
    repairs = [text.format(getattr(entry, name)) for name, text in _REPAIRS.items() if getattr(entry, name)]
    lines.append(f"ordered by {entry.by}{took}{''.join(f', {text}' for text in repairs)}")
    if entry.error:
        lines.append(f"not all of it: {entry.error}")
    facts = [] if entry.facts is None else _facts(entry.facts)
    return [*lines, *facts, f"more: failoverctl history --show {entry.id}"]


def page_name(entry: JournalEntry) -> str | None:
    """File name of the incident's page (``failoverctl reports``); None if the entry is neither a flip nor a refusal."""
    incident = entry.flipped or (entry.verb == "fail-over" and entry.reason != "already-there")
    return f"{entry.id}.html" if incident else None


def _facts(facts: Facts) -> list[str]:
    """The known facts behind the decision."""
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
    if facts.sync_undecided:
        lines.append("each server has clients' writes that the other one lacks: see the service's sync")
    return lines


def way_back(name: str) -> str:
    """The last line while the standby serves."""
    return f'back: failoverctl fail-back {name}, or submit OK for "{name} fail-back", once that says it is ready'
