"""The pages of incidents: for ``failoverctl history --report``, and in a directory that the site's web server shows.

``failoverctl reports`` brings ``[monitoring] report_dir`` up to date once: ``ID.html`` for each flip and each refused
fail-over, ``NAME.html`` with the list of a service's. With ``--follow`` it stays: the redirector tells it of what
happens, and it looks again later, when texts have left and their receipts have come. It runs as a user of its own
(failover-report.service), who may read evidence and the log of texts and write to that directory only: the process that
steers makes no HTML. It removes nothing but pages of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from check_failover import control
from check_failover.admin import incident
from check_failover.config import Config
from check_failover.control import ControlError
from check_failover.notify import log_to_stderr
from check_failover.records import JournalEntry, journal_entries
from check_failover.story import page_name

log = logging.getLogger("failover-report")

KEPT = 100  # pages of incidents
HISTORY = 1000  # entries of the journal that are looked at
LATER = (0.5, 5.0, 60.0, 600.0, 3600.0)  # seconds after an event: its line is in the journal; texts; receipts
PAUSE = 2.0  # seconds between two tries while the redirector is away
PAGE = re.compile(r"\d{8}T\d{6}-[A-Za-z][A-Za-z0-9_-]*-\d+\.html")  # as the redirector numbers its entries


class ReportsError(Exception):
    """The pages cannot be written: one line."""


def evidence_base(config: Config, entry: JournalEntry) -> Path | None:
    """Where the sniffer kept the evidence of the verdict behind an attempt."""
    number = None if entry.facts is None else entry.facts.evidence
    return None if number is None else config.controller.state_dir / "sniffer/evidence" / f"{entry.service}-{number}"


def page(config: Config, entry: JournalEntry, journal: Sequence[JournalEntry]) -> str:
    """One incident's page, with what can be read of evidence and SMS log; what cannot be is missing from it."""
    base, evidence, at = evidence_base(config, entry), None, None
    if base is not None:
        with contextlib.suppress(OSError, ValueError):
            path = base.with_suffix(".json")
            evidence, at = json.loads(path.read_text("utf-8")), path.stat().st_mtime
    texts: list[dict[str, Any]] = []
    for name in ("log.jsonl.1", "log.jsonl"):
        with contextlib.suppress(OSError, ValueError):
            lines = (config.controller.state_dir / "spool" / name).read_text("utf-8").splitlines()
            texts += [json.loads(line) for line in lines]
    return incident.page(entry, journal, evidence, at, texts)


def publish(config: Config) -> None:
    """Bring the directory up to date. Raises ReportsError or ControlError."""
    directory = config.monitoring.get("report_dir")
    if directory is None:
        raise ReportsError(f"{config.path}: $.monitoring.report_dir: needed here: where are the pages written to?")
    reply = control.ask(config.controller.redirector_socket, {"verb": "history", "limit": HISTORY}, 20.0)
    journal = journal_entries(reply.get("entries"))
    incidents = [e for e in journal if PAGE.fullmatch(page_name(e) or "")][-KEPT:]
    try:
        for entry in incidents:
            path = Path(directory) / str(page_name(entry))
            if time.time() - entry.at <= incident.AFTER or not path.exists():
                _write(path, page(config, entry, journal))
        for old in sorted(path for path in Path(directory).iterdir() if PAGE.fullmatch(path.name))[:-KEPT]:
            old.unlink()
        for service in config.services:
            own = [entry for entry in incidents if entry.service == service.name]
            _write(Path(directory) / f"{service.name}.html", incident.index(service.name, own))
    except OSError as error:
        raise ReportsError(f"{error.filename or directory}: {error.strerror}: may this user write there?") from None


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and only what is news."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text("utf-8") == text:
            return
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, "utf-8")
    new.replace(path)


def follow(config: Config) -> None:
    """For ever. What goes wrong is said once in the log and tried again."""
    log_to_stderr("failover-report")
    complained = ""
    while True:
        try:
            _follow(config)
        except (ReportsError, ControlError) as error:
            if str(error) != complained:
                log.warning("%s", error)
                complained = str(error)
        time.sleep(PAUSE)


def _follow(config: Config) -> None:
    """Until the redirector is gone. Raises ControlError then, ReportsError where the pages cannot be written."""
    sock, _ = control.subscribe(config.controller.redirector_socket)
    with sock:
        due = [time.monotonic()]
        while True:
            wait = max(0.0, due[0] - time.monotonic()) if due else None
            if select.select([sock], [], [], wait)[0]:
                if not sock.recv(65536):
                    raise ControlError(f"{config.controller.redirector_socket}: the redirector is gone")
                now = time.monotonic()
                due = sorted([*due[:1], *(now + later for later in LATER)])
            if due and due[0] <= time.monotonic():
                publish(config)
                due = [moment for moment in due if moment > time.monotonic()]
