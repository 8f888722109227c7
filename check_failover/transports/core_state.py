"""What the core says of "NAME primary" now: in a downtime? are its event handlers switched off?

The sniffer asks before it orders a fail-over in place of a core that does not, so that it respects what a person set in
the core. Nagios answers by ``status.dat``, which it writes every ``status_update_interval`` seconds (10); the answer is
as old as that file. Icinga 2 answers by its API. Cores behind ``nsca`` and ``nrdp`` cannot be asked.

Source: Nagios Core, xdata/xsddefault.c (the file's blocks); Icinga 2 documentation, "Icinga 2 API", objects and status.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from check_failover.model import Service
from check_failover.transports import TransportError

LIMIT, LIMIT_AWAY = 1.0, 0.2  # seconds for an answer, because clients wait; of a core that took no result
OLDEST = 60.0  # seconds; an older status.dat is what a dead core left behind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CoreState:
    """``age``: seconds since it was so. The host's and the primary's own downtimes count as the service's."""

    downtime: bool
    service_handler: bool  # of "NAME primary"
    handlers: bool  # of all services
    age: float

    @property
    def handlers_off(self) -> bool:
        return not (self.service_handler and self.handlers)


Question: TypeAlias = Callable[[Service], CoreState]


class CoreQuestion:
    """Asks in a thread of its own, which a hanging file system or API may keep. ``options``: ``[monitoring]``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        make = QUESTIONS.get(options["transport"])
        self._question = None if make is None else make(options)
        self._thread: threading.Thread | None = None

    def ask(self, service: Service, limit: float = LIMIT) -> CoreState | None:
        """None: unknown, for example because there is no answer within ``limit`` seconds, or no permission."""
        question = self._question
        if question is None or (self._thread is not None and self._thread.is_alive()):
            return None
        answers: list[CoreState] = []

        def run() -> None:
            try:
                answers.append(question(service))
            except (OSError, LookupError, TypeError, ValueError, TransportError) as error:
                log.info("%s: the core's own settings are not known: %s", service.name, error)

        self._thread = threading.Thread(target=run, name="core", daemon=True)
        self._thread.start()
        self._thread.join(limit)
        return answers[0] if answers else None


def status_file(nagios_cfg: Path) -> Path:
    """Where this Nagios writes its state. Raises OSError, LookupError."""
    for line in nagios_cfg.read_text("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "status_file":
            return Path(value.strip())
    raise LookupError(f"{nagios_cfg}: no status_file")


def _nagios(options: Mapping[str, Any]) -> Question:
    def ask(service: Service) -> CoreState:
        path = status_file(Path(options["nagios_cfg"]))
        age, text = time.time() - path.stat().st_mtime, path.read_bytes()
        if age > OLDEST:
            raise LookupError(f"{path}: written {age:.0f} s ago: does the core run?")
        primary = {"host_name": service.host, "service_description": f"{service.name} primary"}
        own, program = _block(text, "servicestatus", primary), _block(text, "programstatus", {})
        hosts = [_block(text, "hoststatus", {"host_name": host}) for host in _hosts(service)]
        return CoreState(
            downtime=any(int(block.get("scheduled_downtime_depth", 0)) for block in (own, *hosts)),
            service_handler=own["event_handler_enabled"] != "0",
            handlers=program["enable_event_handlers"] != "0",
            age=age,
        )

    return ask


def _block(text: bytes, kind: str, names: Mapping[str, str]) -> dict[str, str]:
    """The fields of the block that begins with these names; empty without one. A search, because the file is large."""
    head = "".join([f"\n{kind} {{\n", *(f"\t{key}={value}\n" for key, value in names.items())]).encode()
    start = text.find(head)
    if start < 0:
        return {}
    body = text[start : text.find(b"\n\t}", start + len(head) - 1)].decode(errors="replace")
    return dict(line.strip().split("=", 1) for line in body.splitlines() if "=" in line)


def _hosts(service: Service) -> list[str]:
    return [service.host, *([service.primary_host] if service.primary_host else [])]


def _icinga2(options: Mapping[str, Any]) -> Question:
    from check_failover.transports.icinga2 import Icinga2

    api = Icinga2(options)

    def ask(service: Service) -> CoreState:
        own = api.query("objects/services", {"service": f"{service.host}!{service.name} primary"})["attrs"]
        handlers, downtime = True, bool(own["downtime_depth"])
        try:  # with fewer permissions the service's own settings count
            app = api.query("status/IcingaApplication", {})["status"]["icingaapplication"]["app"]
            handlers = bool(app["enable_event_handlers"])
            for host in _hosts(service):
                downtime |= bool(api.query("objects/hosts", {"host": host})["attrs"]["downtime_depth"])
        except TransportError as error:
            log.info("%s: not all of the core's own settings are known: %s", service.name, error)
        return CoreState(downtime, bool(own["enable_event_handler"]), handlers, 0.0)

    return ask


QUESTIONS: dict[str, Callable[[Mapping[str, Any]], Question]] = {"command_file": _nagios, "icinga2": _icinga2}
