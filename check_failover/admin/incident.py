"""``failoverctl history --report ID``: one HTML page that explains an incident. Pure.

The page is self-contained (no external script, font or picture), so it can be mailed and printed. All text from outside
(replies of servers, names, reasons) is escaped.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from check_failover.records import JournalEntry, Moment, to_json
from check_failover.story import headline, moment, page_name

BEFORE, AFTER = 60.0, 86400.0  # seconds around the order that belong to the incident
WIDTH, LEFT, STEP = 960, 20, 26  # of the picture, in pixels

PAGE = Path(__file__).with_name("incident.html").read_text("utf-8")


@dataclass(frozen=True)
class Event:
    """Something that happened; ``at`` in seconds since 1970."""

    at: float
    who: str
    text: str


@dataclass(frozen=True)
class Sms:
    """A line of the SMS log (see ``sms.spool``)."""

    at: Moment
    number: str | None = None
    text: str = ""


def page(
    entry: JournalEntry,
    journal: Iterable[JournalEntry],
    story: Mapping[str, Any] | None,
    verdict_at: float | None,
    texts: Iterable[Sms],
) -> str:
    """The page. ``story``: the sniffer's evidence from ``verdict_at``; ``texts``: lines of the SMS log."""
    at, name = entry.at, entry.service
    sent = [t for t in texts if -BEFORE <= t.at - at <= AFTER and name in t.text]
    later = [e for e in journal if e.service == name and e.id != entry.id and 0 <= e.at - at <= AFTER]
    events = [*_chain(entry, story, verdict_at), *(Event(t.at, "SMS", f"to {t.number}: {t.text}") for t in sent)]
    events.sort(key=lambda e: e.at)
    texts_sent = _table(("time", "number", "text"), [(_clock(t.at), t.number, t.text) for t in sent])
    followed = _table(("time", "who", "what"), [(moment(e.at), "redirector", e.line) for e in later])
    body = [
        "<h2>What happened when</h2>",
        _picture(events),
        _table(("time", "who", "what"), [(_clock(e.at), e.who, e.text) for e in events]),
        "<h2>Who was told</h2>",
        texts_sent if sent else "<p>No text message is on record.</p>",
        "<h2>Numbers and evidence</h2>",
        _table(("what", "value"), _numbers(entry, story)),
        "<h2>Afterwards</h2>",
        followed if later else "<p>Nothing more so far.</p>",
    ]
    title = f"{name}: {entry.verb}, {moment(at)}"
    summary = f"{entry.line} (ordered by {entry.by}, entry {entry.id})"
    return PAGE.format(title=escape(title), summary=escape(summary), body="\n".join(body))


def index(name: str, entries: Iterable[JournalEntry]) -> str:
    """The list of a service's incidents, oldest first in ``entries``, with a link to the page of each."""
    rows = [
        f'<tr><td><a href="{escape(str(page_name(entry)))}">{escape(moment(entry.at))}</a></td>'
        f"<td>{escape(entry.by)}</td><td>{escape(headline(entry))}</td></tr>"
        for entry in entries
    ]
    head = "<table>\n<tr><th>time</th><th>ordered by</th><th>what</th></tr>\n"
    body = head + "\n".join(reversed(rows)) + "\n</table>" if rows else ""
    summary = f"Flips and refused fail-overs, newest first: {len(rows)}." if rows else "None so far."
    return PAGE.format(title=f"{escape(name)}: incidents", summary=summary, body=body)


def _chain(entry: JournalEntry, story: Mapping[str, Any] | None, verdict_at: float | None) -> list[Event]:
    """From the first victim to the flip."""
    at = entry.at
    events = [Event(at, "order", f"{entry.verb} by {entry.by}")]
    if entry.flipped:
        events.append(Event(at + (entry.took or 0.0), "redirector", entry.line))
    if story is not None and verdict_at is not None:
        suspicion = story["suspicion"]
        first, noticed = (float(story[f"seconds_from_{what}"]) for what in ("the_first_victim", "suspicion"))
        events += [
            Event(verdict_at - first, "clients", "the first request that was not served"),
            Event(verdict_at - noticed, "sniffer", f"suspicion, {suspicion['detector']}: {suspicion['text']}"),
            Event(verdict_at, "sniffer", f"verdict: {story['verdict']}"),
        ]
    return events


def _numbers(entry: JournalEntry, story: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    shown = to_json(entry)
    rows = [(key, value) for key, value in shown.items() if not isinstance(value, Mapping) and key != "at"]
    rows += [(f"fact: {key}", value) for key, value in (shown["facts"] or {}).items()]
    if story is not None:
        for probe in story["probes"]:
            word = "passed" if probe["passed"] else "failed"
            rows.append((f"probe of the {probe['of']}", f"{word} after {probe['seconds']:.3f} s: {probe['text']}"))
        rows += [(f"traffic: {key}", value) for key, value in story["traffic"].items()]
    return [(key, value) for key, value in rows if value is not None]


def _picture(events: list[Event]) -> str:
    """The events on a timeline that begins with the first; events later than a minute are at its end."""
    begin = events[0].at
    span = max(0.001, max((e.at - begin for e in events if e.at - begin < 60.0), default=0.001))
    height = STEP * (len(events) + 1) + 10
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timeline" width="100%">']
    for number, event in enumerate(events, 1):
        x = LEFT + (WIDTH / 2 - LEFT) * min(1.0, (event.at - begin) / span)
        y = STEP * number
        label = escape(f"{event.at - begin:+.3f} s  {event.who}: {event.text}"[:75])
        parts.append(
            f'<line x1="{LEFT}" y1="{y}" x2="{x:.0f}" y2="{y}" stroke="#bbb"/>'
            f'<circle cx="{x:.0f}" cy="{y}" r="5" fill="#c33"/>'
            f'<text x="{x + 10:.0f}" y="{y + 4}" font-size="12">{label}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _clock(at: float) -> str:
    """Local time to the millisecond."""
    return f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03d}"
