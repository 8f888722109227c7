"""check_failover_sync: is the standby's data good enough to be served?

Reads the record of failover-sync: the sync age, the result of the last run, and why a run was refused. For LDAP it
compares both servers: contextCSN and the number of entries. With --differences it also compares the files, by a dry
run of failover-sync, which reads all files. -w and -c are ranges for the sync age in seconds; by default the policy's
max_sync_age is critical, and two thirds of it a warning.
"""

import argparse
import json
import os
import pwd
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from check_failover import programs, syncstate
from check_failover.checks import QueryError, plugin
from check_failover.checks.plugin import CheckError, Outcome, Perf, judge, worst
from check_failover.config import DEFAULT_PATH, Config, load
from check_failover.model import Service, State, Target
from check_failover.syncstate import SyncState, duration

_RESERVE = 0.5  # seconds of -t kept for saying what happened
SUDO = next((p for p in ("/usr/bin/sudo", "/usr/local/bin/sudo") if Path(p).exists()), "/usr/bin/sudo")


def check(argv: Sequence[str]) -> Outcome:
    made = plugin.parser("check_failover_sync", __doc__, timeout=30.0)
    made.set_defaults(config=DEFAULT_PATH)
    arguments = made.parse_args(argv)
    end = time.monotonic() + arguments.timeout
    plugin.deadline(arguments.timeout + _RESERVE, "comparison")
    config = load(arguments.config, quick=True)
    service = config.service(arguments.service)
    if service.sync is None:
        raise CheckError(f"{config.path}: service {service.name!r} has no [service.sync]")
    record = syncstate.read(config.controller.state_dir, service.name)
    parts = [age(record, service, arguments)]
    if service.check.type == "ldap" and not arguments.no_ldap:
        parts.append(directories(service, record, arguments, end))
    if arguments.differences and service.sync.method == "rsync":
        parts.append(differences(config, service, arguments, end))
    return plugin.together(parts)


def age(record: SyncState, service: Service, arguments: argparse.Namespace) -> Outcome:
    """The sync age: judged like failover-sync does, or by the ranges of -w and -c."""
    now = time.time()
    warn, crit = syncstate.limits(service)
    seconds = record.age(now)
    state, text = syncstate.judge(record, now, warn, crit)
    ranges = (f"{warn:.0f}", f"{crit:.0f}")
    if arguments.warning is not None or arguments.critical is not None:
        ranges = (arguments.warning or "", arguments.critical or "")
        if record.problem is None and seconds is not None:
            state = judge(seconds, arguments.warning, arguments.critical)
        elif not record.standby_serves(now, crit) and record.damaged is None:
            state = worst(state, judge(seconds, arguments.warning, arguments.critical))
    perf = [] if seconds is None else [Perf("sync_age", round(seconds), "s", *ranges, "0")]
    size, details = record.size, ""
    if size is not None:
        details = f"last good run ({record.direction}): {size.files} files, {size.bytes} bytes"
        details += f", {size.entries} entries" if size.entries is not None else ""
        details += f"; {record.differed_files} files differed before it, {record.sent} bytes sent, {record.took:.1f} s"
        perf += [Perf("files", size.files, minimum="0"), Perf("bytes", size.bytes, "B", minimum="0")]
    if record.running is not None:
        details += f"\nrunning: {record.running.phase} for {duration(max(0.0, now - record.running.since))}"
    return Outcome(state, text, tuple(perf), details.strip())


def directories(service: Service, record: SyncState, arguments: argparse.Namespace, end: float) -> Outcome:
    """contextCSN and entries of both LDAP servers."""
    from check_failover.checks import replication  # ldap3 weighs 20 MiB

    warn, crit = syncstate.limits(service)
    serving = Target.STANDBY if record.standby_serves(time.time(), crit) else Target.PRIMARY
    try:
        found = replication.compare(service, serving, end - time.monotonic() - _RESERVE, count=not arguments.no_entries)
    except QueryError as error:
        # while the standby serves, another check reports a primary that is down
        known = serving is Target.STANDBY and error.target is Target.PRIMARY
        return Outcome(State.OK if known else State.CRITICAL, f"the {error}")
    ranges = (arguments.warning_lag or f"{warn:.0f}", arguments.critical_lag or f"{crit:.0f}")
    lag_ranges = ranges if serving is Target.PRIMARY else ("", "")
    counts = found.entries or {}
    perf = [] if found.lag is None else [Perf("csn_lag", found.lag, "s", *lag_ranges, "0")]
    perf += [Perf(f"entries_{target}", count, minimum="0") for target, count in sorted(counts.items())]
    if serving is Target.STANDBY:
        return Outcome(State.OK, "", tuple(perf))
    state, texts = judge(found.lag, *lag_ranges), []
    if found.missing:
        state = State.CRITICAL
        texts.append(f"the standby has no contextCSN of server {', '.join(found.missing)}")
    elif found.lag:
        texts.append(f"contextCSN {duration(found.lag)} behind")
    here, there = counts.get(Target.PRIMARY), counts.get(Target.STANDBY)
    if here is not None and there is not None:
        state = worst(state, judge(abs(here - there), arguments.warning_entries, arguments.critical_entries))
        if there == 0 < here:
            state = State.CRITICAL
        texts.append(f"{here} entries" if here == there else f"{here} entries, standby {there}")
    return Outcome(state, ", ".join(texts), tuple(perf))


def differences(config: Config, service: Service, arguments: argparse.Namespace, end: float) -> Outcome:
    """Files and bytes that differ now, counted by ``failover-sync --dry-run``; it runs as the owner of the records."""
    limit = end - time.monotonic()
    beside = Path(sys.executable).with_name("failover-sync")  # this interpreter may belong to a virtual environment
    found = str(beside) if beside.exists() else shutil.which("failover-sync")
    program = [found] if found else [sys.executable, "-m", "check_failover.sync.run"]
    argv = [*_as_owner(config), *program, "--config", str(config.path), "--dry-run", "--json", service.name]
    try:
        done = programs.run(argv, max(0.1, limit), env=os.environ)
        reply = json.loads(done.out)
        files, size = int(reply["differed_files"]), int(reply["differed_bytes"])
    except programs.LateError:
        return Outcome(State.UNKNOWN, f"files not compared within {limit:.0f} s, give more with -t")
    except OSError as error:
        raise CheckError(f"{argv[0]}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        said = programs.last_line(done.out) or done.said()
        return Outcome(State.UNKNOWN, f"files not compared: {said.partition(': ')[2] or said}")
    state = judge(files, arguments.warning_files, arguments.critical_files)
    text = f"{files} files differ ({size} bytes)" if files else "no file differs"
    perf = Perf("differing_files", files, "", arguments.warning_files or "", arguments.critical_files or "", "0")
    return Outcome(state, text, (perf, Perf("differing_bytes", size, "B", minimum="0")))


def _as_owner(config: Config) -> list[str]:
    """The sudo prefix that makes us the owner of the records, whose key the servers accept; empty if not needed."""
    try:
        owner = syncstate.directory(config.controller.state_dir).stat().st_uid
        if os.geteuid() in (0, owner):
            return []  # as root, failover-sync becomes the owner by itself
        return [SUDO, "-n", "-u", pwd.getpwuid(owner).pw_name]
    except (OSError, KeyError):
        return []
