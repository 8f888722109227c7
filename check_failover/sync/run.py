"""failover-sync: copies a service's data from the serving server to the other one. Read this first, then ``steps``.

Exit code and first word are those of a plugin (OK, WARNING, CRITICAL, UNKNOWN), so a timer or Nagios may run it.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from check_failover import __version__, syncstate
from check_failover.checks.plugin import Parser
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.model import Service, State, SyncSpec, Target, clean
from check_failover.sync import hosts, lineage, steps, survey
from check_failover.sync.controller_access import ControllerAccess, LocalAccess, become_owner, open_access, serve
from check_failover.sync.guard import SyncRefusedError, ends
from check_failover.sync.hosts import StoppedError, SyncStepError
from check_failover.sync.job import Job
from check_failover.syncstate import Phase, Problem, Refusal, Running, SyncDirection, SyncState

_OPTIONS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("options.toml").read_text("utf-8"))


def parser() -> argparse.ArgumentParser:
    """The command line parser."""
    about = "Copy a service's data from the serving server to the other one."
    p = Parser(prog="failover-sync", allow_abbrev=False, description=about)
    p.add_argument("name", metavar="NAME", help="name of the service in the configuration")
    for names, settings in _OPTIONS.items():
        p.add_argument(*names.split(), **settings)
    p.add_argument("--serve-home", action="store_true", help=argparse.SUPPRESS)
    p.set_defaults(config=DEFAULT_PATH)
    p.add_argument("-V", "--version", action="version", version=f"failover-sync {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code is a plugin's.

    Python's own exit code for a fault in this program is 1, a WARNING that the systemd unit takes for success.
    """
    args = parser().parse_args(argv)
    try:
        config = load(args.config)
        service = config.service(args.name)
        if service.sync is None:
            raise ConfigError(f"{config.path}: service {args.name!r} has no [service.sync]")
        return _dispatch(args, config, service, service.sync)
    except (ConfigError, SyncStepError, StoppedError) as error:
        print(f"UNKNOWN: {error}")
        return State.UNKNOWN
    except SyncRefusedError as error:
        print(f"WARNING: {error.text}")
        return State.WARNING
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = clean(f"{type(error).__name__}: {error}")
        print(f"UNKNOWN: fault in failover-sync: {what} ({os.path.basename(at.filename)}:{at.lineno})")  # noqa: PTH119
        return State.UNKNOWN


def _dispatch(args: argparse.Namespace, config: Config, service: Service, spec: SyncSpec) -> int:
    if args.take and not args.yes:
        other = Target(args.take).other
        raise ConfigError(f"--take {args.take} replaces the data of the {other}, which is put aside: add --yes")
    if args.serve_home:
        access = LocalAccess(config, service)
        with contextlib.closing(access):
            serve(access)
        return State.OK
    if args.merge and (args.take or service.check.type != "ldap" or spec.bind_dn is None):
        why = "set bind_dn and bind_password_file in [service.sync]; for LDAP only, and not with --take"
        raise ConfigError(f"{config.path}: service {service.name!r}: --merge: {why}")
    copies = args.adopt or args.dry_run or args.merge or (args.diff and spec.method != "syncrepl")
    if spec.method != "rsync" and copies:
        raise ConfigError(f"{config.path}: service {service.name!r} replicates by itself: nothing to adopt or copy")
    if args.adopt:
        return _adopt(service, spec)
    if args.dry_run:
        become_owner(config.controller.state_dir)
        return _dry_run(_job(args, config, service, spec, LocalAccess(config, service)), args.json)
    if args.detach:
        _detach()
    with _stoppable(), contextlib.closing(open_access(config, service)) as controller:
        if args.merge:
            args.reverse = controller.standing().target is Target.STANDBY
        job = _job(args, config, service, spec, controller)
        if args.diff:
            return _diff(job)
        state = run(job)
        now = controller.now()
    level, text = syncstate.judge(state, now, *syncstate.limits(service))
    if state.problem is not None:  # the run was refused: warn the caller, even if "NAME sync" is OK for Nagios
        level, text = max(level, State.WARNING), f"{text} [{state.problem.reason}]"
    else:
        text += f"; {state.differed_files} files differed, {state.sent} bytes sent, {state.took:.1f} s"
    print(f"{level.name}: {service.name}: {text} | {syncstate.perfdata(state, now, *syncstate.limits(service))}")
    return level


def run(job: Job) -> SyncState:
    """One run with its record, which includes a refusal or failure. Raises if the record cannot be written."""
    state = job.access.acquire()
    started = job.access.now()

    def enter(phase: Phase) -> None:
        until, digests = None, state.digests
        if phase is Phase.SWITCH:  # if this run is killed now, what the receiving server has is unknown
            until = job.access.now() + job.spec.after_timeout
            digests = digests.put(ends(job.direction)[1], None)
        running = Running(os.getpid(), started, job.direction, phase, until)
        job.access.record(replace(state, running=running, digests=digests))

    job.enter = enter
    try:
        enter(Phase.PREPARE)
        state = steps.sync(job, state, started)
    except SyncRefusedError as error:
        undecided = state.problem is not None and state.problem.reason in syncstate.DIVIDED
        undecided = undecided and error.reason is Refusal.TARGET_STANDBY
        if job.merge or undecided or error.reason in (Refusal.TARGET_PRIMARY, Refusal.RUNNING):
            # an operator's mistake or another run is no problem of the data; nothing hides what a person must decide
            job.access.record(replace(state, running=None, kept=job.kept or state.kept))
            raise
        state = replace(state, problem=Problem(job.access.now(), error.reason, error.text))
    except (SyncStepError, StoppedError) as error:
        state = replace(state, problem=Problem(job.access.now(), Refusal.FAILED, str(error)))
    state = replace(state, running=None, damaged=None, kept=job.kept or state.kept)
    job.access.record(state)
    try:
        job.access.tell(state)
    except SyncStepError as error:
        job.say(str(error))  # the active check reports the same a little later
    return state


def _job(args: argparse.Namespace, config: Config, service: Service, spec: SyncSpec, access: ControllerAccess) -> Job:
    reverse = args.take == Target.STANDBY if args.take else args.reverse
    direction = SyncDirection.REVERSE if reverse else SyncDirection.FORWARD
    servers = [hosts.host(spec, target) for target in Target]
    source, receiver = servers if direction is SyncDirection.FORWARD else servers[::-1]
    return Job(
        service=service,
        spec=spec,
        direction=direction,
        source=source,
        receiver=receiver,
        access=access,
        state_dir=config.controller.state_dir,
        may_chown=os.geteuid() == 0,
        accept_shrink=args.accept_shrink,
        full=args.full,
        take=args.take is not None,
        merge=args.merge,
        say=_say if args.verbose or sys.stderr.isatty() else lambda _text: None,
        progress=_progress if sys.stderr.isatty() else None,
    )


def _dry_run(job: Job, as_json: bool) -> int:
    found = survey.inspect(job)
    files, size, total = steps.differences(job, found[job.receiver].get("current"))
    if as_json:
        print(json.dumps({"files": total, "differed_files": files, "differed_bytes": size}))
    else:
        print(f"OK: {job.name}: {files} of {total} files differ ({size} bytes); nothing was changed")
    return State.OK


def _diff(job: Job) -> int:
    found = lineage.differences(job, job.access.acquire())
    level = State.WARNING if found else State.OK
    print(f"{level.name}: {job.name}: {len(found)} {'entries' if job.service.check.type == 'ldap' else 'files'} differ")
    for one in found:
        print(clean(one))
    return level


def _adopt(service: Service, spec: SyncSpec) -> int:
    done = []
    for target in Target:
        on = hosts.host(spec, target)
        if "directory" in hosts.remote(on, "inspect", spec.copy_path):
            hosts.remote(on, "adopt", spec.copy_path)
            done.append(str(on))
    how = f"adopted on {' and '.join(done)}" if done else "needs no adoption"
    print(f"OK: {service.name}: {spec.copy_path} {how}")
    return State.OK


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """On SIGTERM or SIGINT end the current step: its children are ended and the record says why."""

    def stop(number: int, _frame: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        raise StoppedError(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _detach() -> None:
    """Continue in the background; the calling process exits with OK."""
    if os.fork():
        print("OK: started; a passive result follows")
        sys.stdout.flush()
        os._exit(State.OK)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _progress(text: str) -> None:
    print(f"\r{text:<30}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
