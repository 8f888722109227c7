"""The pages of incidents: for ``failoverctl history --report``, and in a directory that the site's web server shows.

``failoverctl reports`` updates ``[monitoring] report_dir`` once: ``ID.html`` for each flip and each refused fail-over,
``NAME.html`` with a service's list. With ``--follow`` it keeps running: it subscribes to the redirector's events and
updates again later, when texts and receipts have followed. It runs as a separate user (failover-report.service), who
may read evidence and the SMS log and write to that directory only, so that the redirector makes no HTML. It removes
only its own pages.

A page explains an incident (``html``, pure). It is self-contained (no external script, font or picture), so it can be
mailed and printed. All text from outside (replies of servers, names, reasons) is escaped.
"""

import contextlib
import logging
import re
import select
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from check_failover import control
from check_failover.admin import FailedError
from check_failover.admin.finding import journal
from check_failover.config import Config
from check_failover.control import ControlError
from check_failover.notify import log_to_stderr
from check_failover.records import JournalEntry, Moment, RecordError, read_json, to_json
from check_failover.story import headline, moment, page_name
from check_failover.syncstate import LIMIT, read_file

log = logging.getLogger("failover-report")

MAX_PAGES = 100  # pages of incidents
HISTORY = 1000  # entries of the journal that are read
DELAYS = (0.5, 5.0, 60.0, 600.0, 3600.0)  # seconds after an event, for the journal's line, texts and receipts
RETRY_EVERY = 2.0  # seconds, while the redirector is away
NAME = re.compile(r"\d{8}T\d{6}-[A-Za-z][A-Za-z0-9_-]*-\d+\.html")  # ID as the redirector makes it
BEFORE, AFTER = 60.0, 86400.0  # seconds around the order that belong to the incident
WIDTH, LEFT, STEP = 960, 20, 26  # of the picture, in pixels

PAGE = Path(__file__).with_name("incident.html").read_text("utf-8")


def evidence_base(config: Config, entry: JournalEntry) -> Path | None:
    """The path, without suffix, of the sniffer's evidence for an attempt."""
    number = None if entry.facts is None else entry.facts.evidence
    return None if number is None else config.controller.state_dir / "sniffer/evidence" / f"{entry.service}-{number}"


def page(config: Config, entry: JournalEntry, entries: Sequence[JournalEntry]) -> str:
    """One incident's page, without the parts of evidence and SMS log that cannot be read."""
    base, evidence, at = evidence_base(config, entry), None, None
    if base is not None:
        with contextlib.suppress(OSError, ValueError, ControlError):
            evidence, at = control.parse(read_file(path := base.with_suffix(".json"))), path.stat().st_mtime
    texts: list[Sms] = []
    for name in ("log.jsonl.1", "log.jsonl"):
        with contextlib.suppress(OSError, ValueError):
            for line in read_file(config.controller.state_dir / "spool" / name, 4 * LIMIT).splitlines():
                with contextlib.suppress(RecordError):  # a line of something else hides no other
                    texts.append(read_json(Sms, line))
    try:
        return html(entry, entries, evidence, at, texts)
    except (KeyError, TypeError, ValueError):  # evidence of another version, or damaged
        return html(entry, entries, None, None, texts)


def publish(config: Config) -> None:
    """Bring the directory up to date. Raises FailedError or ControlError."""
    directory = config.monitoring.get("report_dir")
    if directory is None:
        raise FailedError(f"{config.path}: $.monitoring.report_dir: missing: set it to the pages' directory")
    entries = journal(config, HISTORY)
    incidents = [e for e in entries if NAME.fullmatch(page_name(e) or "")][-MAX_PAGES:]
    try:
        for entry in incidents:
            path = Path(directory) / str(page_name(entry))
            if time.time() - entry.at <= AFTER or not path.exists():
                _write(path, page(config, entry, entries))
        for old in sorted(path for path in Path(directory).iterdir() if NAME.fullmatch(path.name))[:-MAX_PAGES]:
            old.unlink()
        for service in config.services:
            own = [entry for entry in incidents if entry.service == service.name]
            _write(Path(directory) / f"{service.name}.html", index(service.name, own))
    except OSError as error:
        raise FailedError(f"{error.filename or directory}: {error.strerror}: may this user write there?") from None


def _write(path: Path, text: str) -> None:
    """Replace the file atomically if its text changed."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text("utf-8") == text:
            return
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, "utf-8")
    new.replace(path)


def follow(config: Config) -> None:
    """Update for ever. An error is logged once, and the update is retried."""
    log_to_stderr("failover-report")
    complained = ""
    while True:
        try:
            _follow(config)
        except (FailedError, ControlError) as error:
            if str(error) != complained:
                log.warning("%s", error)
                complained = str(error)
        time.sleep(RETRY_EVERY)


def _follow(config: Config) -> None:
    """Update until the redirector is gone (ControlError) or the pages cannot be written (FailedError)."""
    sock, _ = control.subscribe(config.controller.redirector_socket)
    with sock:
        due = [time.monotonic()]
        while True:
            wait = max(0.0, due[0] - time.monotonic()) if due else None
            if select.select([sock], [], [], wait)[0]:
                if not sock.recv(65536):
                    raise ControlError(f"{config.controller.redirector_socket}: the redirector is gone")
                now = time.monotonic()
                due = sorted([*due[:1], *(now + later for later in DELAYS)])
            if due and due[0] <= time.monotonic():
                publish(config)
                due = [at for at in due if at > time.monotonic()]


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


def html(
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
