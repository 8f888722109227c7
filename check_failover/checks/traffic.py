"""check_failover_traffic: do clients' requests get answers? It reads the traffic's numbers and sends no probe.

While failover-sniffer runs, the check shows its numbers: request rate, reply gap p50 and p99, error share. Otherwise it
compares two readings of the NAT's counters, ``--interval`` seconds apart: requests without a single answer
are CRITICAL. ``-w`` and ``-c`` are ranges for the reply gap's p99 in seconds; ``--warning-errors`` and
``--critical-errors`` for the error share in percent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from check_failover import control
from check_failover.checks import plugin
from check_failover.checks.plugin import CheckError, Outcome, Perf, judge, number, socket_of, worst
from check_failover.control import ControlError
from check_failover.model import State

if TYPE_CHECKING:
    from check_failover.records import Activity

T = TypeVar("T")
MIN_PACKETS = 3  # packets that demand an answer; with fewer, no answer is no evidence


def check(argv: Sequence[str]) -> Outcome:
    arguments = plugin.parser("check_failover_traffic", __doc__).parse_args(argv)
    plugin.deadline(arguments.timeout, "failover-sniffer and failover-redirector")
    why = "not asked"
    if not arguments.counters:
        try:
            status = _service("sniffer", arguments, lambda reply: reply.get("services", {}))
            return from_sniffer(status, arguments)
        except ControlError as error:
            why = str(error)
    try:
        first = _activity(arguments)
        time.sleep(arguments.interval)
        second = _activity(arguments)
    except ControlError as error:
        raise CheckError(f"neither the sniffer ({why}) nor the redirector can be asked: {error}") from None
    return from_counters(first, second, arguments.interval)


def from_sniffer(status: Mapping[str, Any], arguments: argparse.Namespace) -> Outcome:
    """The worse of the sniffer's condition and the thresholds."""
    stats = status["stats"]
    share = 100 * stats["error_share"]
    state = {"ok": State.OK, "suspect": State.WARNING, "failed": State.CRITICAL}.get(status["verdict"], State.UNKNOWN)
    text = f"{number(round(stats['request_rate'], 1))} requests/s to the {status['target']}"
    if stats["p99"] is not None:
        text += f", 99 % answered in {number(round(stats['p99'], 3))} s"
    if stats.get("share", 1) > 1:
        text += f", one of {stats['share']} connections watched"
    if stats["unanswered"]:
        text += f", {stats['unanswered']} unanswered for {number(round(stats['oldest_unanswered'], 1))} s"
    if stats["rescued"]:
        text += f", {stats['rescued']} rescued"
    if status["blind"]:
        text = f"blind: {status['blind']}"
    elif state is State.CRITICAL:
        text = f"{text}; {status['text']}"
    state = worst(
        state,
        judge(stats["p99"], arguments.warning, arguments.critical),
        judge(share, arguments.warning_errors, arguments.critical_errors),
    )
    perf = (
        Perf("requests", stats["request_rate"], "", "", "", "0"),
        Perf("replies", stats["reply_rate"], "", "", "", "0"),
        Perf("unanswered", stats["unanswered"], "", "", "", "0"),
        Perf("gap_p50", stats["p50"], "s", "", "", "0"),
        Perf("gap_p99", stats["p99"], "s", arguments.warning or "", arguments.critical or "", "0"),
        Perf("errors", share, "%", arguments.warning_errors or "", arguments.critical_errors or "", "0", "100"),
        Perf("rescued", stats["rescued"], "c", "", "", "0"),
        Perf("drops", stats["drops"], "c", "", "", "0"),
        Perf("sampling", stats.get("share", 1), "", "", "", "1"),
    )
    return Outcome(state, text, perf)


def from_counters(first: Activity, second: Activity, interval: float) -> Outcome:
    """Judge two readings of the counters. Raises CheckError when they were reset in between."""
    asked, answered = second.asked - first.asked, second.answered - first.answered
    if asked < 0 or answered < 0:
        raise CheckError("the NAT's counters were reset in between; the next run will tell")
    perf = (Perf("asked", asked / interval, "", "", "", "0"), Perf("answered", answered / interval, "", "", "", "0"))
    rates = f"{asked} packets asked, {answered} answered in {number(interval)} s (NAT's counters)"
    if asked >= MIN_PACKETS and not answered:
        return Outcome(State.CRITICAL, f"no answer: {rates}", perf)
    return Outcome(State.OK, rates if asked else f"no traffic in {number(interval)} s (NAT's counters)", perf)


def _service(daemon: str, arguments: argparse.Namespace, read: Callable[[Mapping[str, Any]], Mapping[str, T]]) -> T:
    """The service in a daemon's status. Raises ControlError, CheckError."""
    path = socket_of(arguments.config, f"{daemon}.sock")
    known = read(control.ask(path, {"verb": "status", "service": arguments.service}, arguments.timeout / 2))
    if arguments.service not in known:
        raise CheckError(f"no service {arguments.service!r}; configured are: {', '.join(sorted(known)) or 'none'}")
    return known[arguments.service]


def _activity(arguments: argparse.Namespace) -> Activity:
    from check_failover.records import service_statuses  # its msgspec costs 10 ms, and the sniffer is asked first

    found = _service("redirector", arguments, service_statuses)
    if found.activity is None:
        raise CheckError(f"the redirector cannot read the counters: {found.problem or 'no reason given'}")
    return found.activity
