"""The event handler: sends the core's decision as an order to failover-redirector.

It acts on HARD CRITICAL only: SOFT problems, WARNING, UNKNOWN and a stale result never move traffic. The state type
decides, not the attempt: while the host is DOWN, the first CRITICAL is already HARD. OK withdraws a pending order.
With ``--fail-back`` it handles the service "NAME fail-back", for which a person submits OK in the web UI. With
``--drill`` it reports to the redirector that the core ran it, which moves nothing. With ``--notice`` it is a
notification command that reports the begin or end of a downtime to the redirector.

All facts are arguments, so a run is one interpreter start and one request over a Unix socket. Repeating an order is
harmless: the redirector answers "already there". While the redirector does not answer (during its restart) the handler
tries again for ``--patience`` seconds; Nagios kills it after 30 (``event_handler_timeout``). nagios.log shows the
output of a handler with a non-zero exit code only.
"""

from __future__ import annotations

import sys
import time

from check_failover.control import ControlError, UnreachableError, ask
from check_failover.handlers.arguments import ANSWERED, UsageError, answered, drill_id, one_line, parse
from check_failover.places import REDIRECTOR_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


OPTIONS = dict.fromkeys(
    ("service", "state", "state-type", "attempt", "perfdata", "output", "standby-state", "standby-checked", "host"), ""
) | {"notice": "", "description": "", "downtime": "0", "host-downtime": "0", "by": "nagios", "patience": "10"}
OPTIONS |= {"socket": REDIRECTOR_SOCKET}
STATES = {"0": "OK", "1": "WARNING", "2": "CRITICAL", "3": "UNKNOWN"}
# Notification types of Nagios and Icinga; True: a downtime begins
DOWNTIME_NOTICES = {"DOWNTIMESTART": True, "DOWNTIMEEND": False, "DOWNTIMECANCELLED": False, "DOWNTIMEREMOVED": False}
STANDBY_BELIEVED = 900.0  # seconds for which the standby's last check is valid
REPLY_TIMEOUT = 12.0  # seconds; the redirector may probe a server before it decides
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5  # seconds between two attempts
OWN_FAIL_BACK_RESULT = "OK: on the primary"  # how the redirector's own result for "NAME fail-back" begins


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``failover_event``: prints one line for one event, returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, "failover_event"):
        return ANSWERED
    try:
        options = parse(argv, OPTIONS, flags=("fail-back", "own-check", "drill"))
        patience = float(options["patience"])
        request, why_not = _request(options)
    except (UsageError, ValueError) as error:
        print(f"failover_event: {one_line(str(error))}")
        return ANSWERED
    service = options["service"] or options["host"]
    if request is None:
        print(f"{service}: nothing to do: {why_not}")
        return 0
    try:
        reply = _ask(options["socket"], request, patience)
    except ControlError as error:
        print(f"{service}: {request['verb']} NOT DONE: {one_line(str(error))}")
        return 1
    print(f"{service}: {request['verb']}: {_outcome(reply)}")
    return 0


def _request(options: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """The request to the redirector, or None and the reason. Raises UsageError."""
    if options["notice"]:
        return _downtime(options)
    state, state_type = _state(options)
    if "drill" in options:
        return _drill(options, state)
    return (_fail_back if "fail-back" in options else _fail_over)(options, state, state_type)


def _downtime(options: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    if not options["host"]:
        raise UsageError("--host is missing or empty")
    begin = DOWNTIME_NOTICES.get(options["notice"].upper())
    if begin is None:
        return None, f"{options['notice']}, only a downtime's begin and end are reported"
    by = options["by"] or OPTIONS["by"]
    names = {"host": options["host"], "description": options["description"]}
    return {"verb": "downtime", **names, "begin": begin, "by": by}, ""


def _state(options: Mapping[str, str]) -> tuple[str, str]:
    for name in ("service", "state", "state-type"):
        if not options[name]:
            raise UsageError(f"--{name} is missing or empty")
    state = STATES.get(options["state"], options["state"].upper())
    if state not in STATES.values():
        raise UsageError(f"--state {options['state']}: not one of {', '.join(STATES.values())}")
    state_type = options["state-type"].upper()
    if state_type not in ("SOFT", "HARD"):
        raise UsageError(f"--state-type {options['state-type']}: not SOFT or HARD")
    return state, state_type


def _fail_over(options: Mapping[str, str], state: str, state_type: str) -> tuple[dict[str, Any] | None, str]:
    service = {"service": options["service"], "by": options["by"]}
    if state == "OK":
        return {"verb": "recovered", **service}, ""
    if state != "CRITICAL" or state_type != "HARD":
        return None, f"{state} {state_type}, only CRITICAL HARD moves traffic"
    downtime = any(_number(options[name]) > 0 for name in ("downtime", "host-downtime"))
    request: dict[str, Any] = {"verb": "fail-over", **service, "downtime": downtime}
    if "probes=" in options["perfdata"]:
        request["perfdata"] = options["perfdata"]
    elif "own-check" in options:
        request["facts"] = {"detector": "core", "standby_ok": _standby_ok(options), "downtime": downtime}
    return request, ""


def _fail_back(options: Mapping[str, str], state: str, _state_type: str) -> tuple[dict[str, Any] | None, str]:
    if state != "OK":
        return None, f"{state}, only OK submitted by a person fails back"
    if options["output"].startswith(OWN_FAIL_BACK_RESULT):
        # A result kept while the core did not answer may arrive late: it reports a fail-back, and must not order one.
        return None, "the redirector's own result"
    return {"verb": "fail-back", "service": options["service"], "by": options["by"]}, ""


def _drill(options: Mapping[str, str], state: str) -> tuple[dict[str, Any] | None, str]:
    number = drill_id(options["output"])
    if state != "CRITICAL" or number is None:
        return None, f"{state}, only a drill's CRITICAL is reported"
    return {"verb": "drilled", "service": options["service"], "id": number, "part": "handler"}, ""


def _standby_ok(options: Mapping[str, str]) -> bool | None:
    """The standby's state from the core's check; None if that check never ran, or too long ago.

    Nagios's macros show OK for a service that was never checked, so the time of the check is needed too.
    """
    if options["standby-checked"]:
        checked = _number(options["standby-checked"])
        if not 0 <= time.time() - checked <= STANDBY_BELIEVED:
            return None
    state = STATES.get(options["standby-state"], options["standby-state"].upper())
    return {"OK": True, "WARNING": True, "CRITICAL": False}.get(state)


def _number(text: str) -> float:
    """The number in a macro; 0 if the core did not expand the macro (``$...$`` without its dollars)."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _ask(path: str, request: Mapping[str, Any], patience: float) -> dict[str, Any]:
    """Ask until the redirector answers. Raises ControlError: refused, or no answer within ``patience`` seconds."""
    end = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        try:
            return ask(path, request, timeout=REPLY_TIMEOUT)
        except UnreachableError:
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _outcome(reply: Mapping[str, Any]) -> str:
    text = one_line(str(reply.get("text", "")))
    if reply.get("flipped"):
        return f"done: {text}"
    if "reason" not in reply:
        return text or "understood"
    return f"not done ({reply['reason']}): {text}"
