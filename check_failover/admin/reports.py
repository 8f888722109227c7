"""The pages of incidents: for ``failoverctl history --report``, and in a directory that the site's web server shows.

``failoverctl reports`` updates ``[monitoring] report_dir`` once: ``ID.html`` for each flip and each refused fail-over,
``NAME.html`` with a service's list. With ``--follow`` it keeps running: it subscribes to the redirector's events and
updates again later, when texts and receipts have followed. It runs as a separate user (failover-report.service), who
may read evidence and the SMS log and write to that directory only, so that the redirector makes no HTML. It removes
only its own pages.
"""

import contextlib
import logging
import re
import select
import time
from collections.abc import Sequence
from pathlib import Path

from check_failover import control
from check_failover.admin import FailedError, incident
from check_failover.admin.finding import journal
from check_failover.admin.incident import Sms
from check_failover.config import Config
from check_failover.control import ControlError
from check_failover.notify import log_to_stderr
from check_failover.records import JournalEntry, RecordError, read_json
from check_failover.story import page_name
from check_failover.syncstate import LIMIT, read_file

log = logging.getLogger("failover-report")

MAX_PAGES = 100  # pages of incidents
HISTORY = 1000  # entries of the journal that are read
DELAYS = (0.5, 5.0, 60.0, 600.0, 3600.0)  # seconds after an event, for the journal's line, texts and receipts
RETRY_EVERY = 2.0  # seconds, while the redirector is away
PAGE = re.compile(r"\d{8}T\d{6}-[A-Za-z][A-Za-z0-9_-]*-\d+\.html")  # ID as the redirector makes it


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
        return incident.page(entry, entries, evidence, at, texts)
    except (KeyError, TypeError, ValueError):  # evidence of another version, or damaged
        return incident.page(entry, entries, None, None, texts)


def publish(config: Config) -> None:
    """Bring the directory up to date. Raises FailedError or ControlError."""
    directory = config.monitoring.get("report_dir")
    if directory is None:
        raise FailedError(f"{config.path}: $.monitoring.report_dir: missing: set it to the pages' directory")
    entries = journal(config, HISTORY)
    incidents = [e for e in entries if PAGE.fullmatch(page_name(e) or "")][-MAX_PAGES:]
    try:
        for entry in incidents:
            path = Path(directory) / str(page_name(entry))
            if time.time() - entry.at <= incident.AFTER or not path.exists():
                _write(path, page(config, entry, entries))
        for old in sorted(path for path in Path(directory).iterdir() if PAGE.fullmatch(path.name))[:-MAX_PAGES]:
            old.unlink()
        for service in config.services:
            own = [entry for entry in incidents if entry.service == service.name]
            _write(Path(directory) / f"{service.name}.html", incident.index(service.name, own))
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
                due = [moment for moment in due if moment > time.monotonic()]
