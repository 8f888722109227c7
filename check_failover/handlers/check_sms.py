"""check_failover_sms: checks the SMS gateways and the spool of texts.

Tests the gateways without sending a text, and reads the spool. CRITICAL when no gateway answers or the spool cannot
store a text; WARNING when one of two gateways does not answer, or when in the last hour a gateway refused a text for
good or did not confirm its delivery. -w and -c are ranges for the age in seconds of the oldest waiting text (60, 300).

This module is among the handlers because it uses both wings ``checks`` and ``sms``, which must not import each other.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from check_failover.checks import plugin
from check_failover.checks.plugin import CheckError, Outcome, Perf
from check_failover.config import DEFAULT_PATH, ConfigError, load
from check_failover.model import State
from check_failover.sms import Gateway, GatewayError
from check_failover.sms.flush import DIGESTED, SmsSender, sender
from check_failover.sms.spool import AWAITED, FAILED, QUEUE, SENT, Spool, SpoolError, Text

RECENT = 3600.0  # seconds for which a failed or unconfirmed text is reported
SHOWN = 10  # texts in the long output


def check(argv: Sequence[str]) -> Outcome:
    made = plugin.parser("check_failover_sms", __doc__, timeout=30.0)
    made.set_defaults(config=DEFAULT_PATH, warning="60", critical="300", warning_unconfirmed="0")
    arguments = made.parse_args(argv)
    plugin.deadline(arguments.timeout, "SMS gateway")
    try:
        ready = sender(load(arguments.config, quick=True))
    except (ConfigError, GatewayError) as error:
        raise CheckError(str(error)) from None
    return plugin.together([gateways(ready.ways), room(ready.spool), texts(ready, arguments)])


def gateways(ways: Sequence[tuple[str, Gateway]]) -> Outcome:
    """The answer of each gateway. One of two gateways is enough to send texts, so one failure is WARNING."""
    down, lines = [], []
    for name, gateway in ways:
        try:
            lines.append(f"{name}: {gateway.answers()}")
        except GatewayError as error:
            down.append(f"{name}: {error}")
    state = State.OK if not down else State.CRITICAL if len(down) == len(ways) else State.WARNING
    perf = Perf("gateways", len(lines), "", "", "", "0", str(len(ways)))
    return Outcome(state, "; ".join(down or lines), (perf,), "\n".join(lines if down else ()))


def room(spool: Spool) -> Outcome:
    """Whether the spool can store a text; it is created on first use, so the nearest existing parent is tested."""
    place = next(path for path in (spool.directory / QUEUE, *(spool.directory / QUEUE).parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        return Outcome(State.CRITICAL, f"{place}: no write permission for texts: check owner and group")
    free = os.statvfs(place)
    if not free.f_bavail or (free.f_files and not free.f_favail):
        return Outcome(State.CRITICAL, f"{place}: no space for a text, the disk is full")
    return Outcome(State.OK, "")


def texts(ready: SmsSender, arguments: argparse.Namespace) -> Outcome:
    """The texts in the spool. Raises CheckError if the spool cannot be read."""
    spool, now = ready.spool, time.time()
    try:
        waiting, awaited = spool.pending(QUEUE), spool.pending(AWAITED)
        failed, sent = spool.count(FAILED, now - RECENT), spool.pending(SENT, now - RECENT)
    except SpoolError as error:
        raise CheckError(f"{error}: cannot read the spool, run this as the core's user") from None
    # no problem: texts that the second gateway or a digest sent later, or whose receipt may still come
    silent = [text for text in sent if text.gateway == ready.first[0] and text.receipt.startswith("no receipt")]
    silent += [text for text in awaited if now - text.sent_at > ready.plan.patience]
    oldest = max((now - text.at for text in waiting), default=0.0)
    state = plugin.worst(
        plugin.judge(oldest, arguments.warning, arguments.critical),
        plugin.judge(len(waiting), arguments.warning_waiting, arguments.critical_waiting),
        plugin.judge(len(silent), arguments.warning_unconfirmed, arguments.critical_unconfirmed),
        State.WARNING if failed else State.OK,
    )
    said = [f"{len(waiting)} waiting" + (f" for {plugin.number(round(oldest))} s" if waiting else "")]
    said += [f"{failed} refused"] if failed else []
    said += [f"{len(silent)} without receipt"] if silent else []
    perf = (
        Perf("waiting", len(waiting), "", arguments.warning_waiting or "", arguments.critical_waiting or "", "0"),
        Perf("oldest", round(oldest, 1), "s", arguments.warning, arguments.critical, "0"),
        Perf("awaited", len(awaited), minimum="0"),
        Perf("unconfirmed", len(silent), "", arguments.warning_unconfirmed, arguments.critical_unconfirmed or "", "0"),
        Perf("refused", failed, "", "0", "", "0"),
        Perf("sent", sum(text.gateway != DIGESTED for text in sent), minimum="0"),
    )
    return Outcome(state, ", ".join(said), perf, _details(waiting, silent, failed, spool.directory / FAILED))


def _details(waiting: Sequence[Text], silent: Sequence[Text], failed: int, place: Path) -> str:
    """The texts by number and problem, without their contents, which the web interface must not show."""
    lines = [f"waits: {text.number}, tried {text.attempts} times: {text.problem or 'not yet'}" for text in waiting]
    lines += [f"no receipt: {text.number} by {text.gateway}" for text in silent]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"]
    return "\n".join([*lines, *([f"refused for good in the last hour: see {place} and log.jsonl"] if failed else [])])


def main() -> None:
    plugin.run(check)


if __name__ == "__main__":
    main()
