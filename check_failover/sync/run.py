"""failover-sync: bring a service's data from the serving server to the other one. Read this first, then ``steps``.

Exit code and first word are a plugin's (OK, WARNING, CRITICAL, UNKNOWN), so that Nagios may run it as well as a timer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from check_failover import __version__, syncstate
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.model import Service, State, SyncSpec, Target
from check_failover.sync import hosts, steps
from check_failover.sync.controller_access import ControllerAccess, LocalAccess, open_home, serve, settle_in
from check_failover.sync.guard import SyncRefusedError
from check_failover.sync.hosts import SyncStepError
from check_failover.sync.steps import Job
from check_failover.syncstate import Phase, Problem, Refusal, Running, SyncDirection, SyncState


class StoppedError(SyncStepError):
    """SIGTERM or SIGINT came."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A typing error is UNKNOWN, not argparse's 2, which would be CRITICAL."""
        print(f"UNKNOWN: {message}; see {self.prog} --help")
        raise SystemExit(State.UNKNOWN)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(prog="failover-sync", description="Bring a service's data from the serving server to the other one.")
    p.add_argument("name", metavar="NAME", help="service, as in the configuration")
    p.add_argument("--config", metavar="FILE", default=DEFAULT_PATH, help=f"configuration (default {DEFAULT_PATH})")
    p.add_argument("--reverse", action="store_true", help="bring the standby's data to the primary, before a fail-back")
    p.add_argument("--dry-run", action="store_true", help="only say what differs; before and after are not run")
    p.add_argument("--json", action="store_true", help="with --dry-run: print the differences as JSON")
    p.add_argument("--accept-shrink", action="store_true", help="the source is meant to be that small")
    p.add_argument("--full", action="store_true", help="load and switch even when nothing differs")
    p.add_argument(
        "--adopt", action="store_true", help="once: make the receiving directories links that can be switched"
    )
    p.add_argument("--detach", action="store_true", help="start the run and return at once (for a core that waits)")
    p.add_argument("--serve-home", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("-v", "--verbose", action="store_true", help="say each step, also without a terminal")
    p.add_argument("-V", "--version", action="version", version=f"failover-sync {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code is a plugin's."""
    args = parser().parse_args(argv)
    try:
        config = load(args.config)
        service = config.service(args.name)
        if service.sync is None:
            raise ConfigError(f"{config.path}: service {args.name!r} has no [service.sync]")
        return _dispatch(args, config, service, service.sync)
    except (ConfigError, SyncStepError) as error:
        print(f"UNKNOWN: {error}")
        return State.UNKNOWN
    except SyncRefusedError as error:
        print(f"WARNING: {error.text}")
        return State.WARNING


def _dispatch(args: argparse.Namespace, config: Config, service: Service, spec: SyncSpec) -> int:
    if args.serve_home:
        access = LocalAccess(config, service)
        with contextlib.closing(access):
            serve(access, sys.stdin.readline, _write)
        return State.OK
    if spec.method == "syncrepl" and (args.adopt or args.dry_run):
        raise ConfigError(f"{config.path}: service {service.name!r} replicates by itself: nothing to adopt or to copy")
    if args.adopt:
        return _adopt(service, spec)
    if args.dry_run:
        settle_in(config.controller.state_dir)
        return _dry_run(_job(args, config, service, spec, LocalAccess(config, service)), args.json)
    if args.detach:
        _detach()
    with _stoppable(), contextlib.closing(open_home(config, service)) as home_:
        job = _job(args, config, service, spec, home_)
        state = run(job)
    level, text = syncstate.judge(state, time.time(), *syncstate.limits(service))
    if state.problem is not None:  # what was asked was not done: say so, even where Nagios has nothing to worry about
        level, text = max(level, State.WARNING), f"{text} [{state.problem.reason}]"
    else:
        text += f"; {state.differed_files} files differed, {state.sent} bytes sent, {state.took:.1f} s"
    print(
        f"{level.name}: {service.name}: {text} | {syncstate.perfdata(state, time.time(), *syncstate.limits(service))}"
    )
    return level


def run(job: Job) -> SyncState:
    """One run with its record; a refusal or failure is part of the record. Raises when not even that can be written."""
    started = time.time()
    state = job.access.acquire()

    def enter(phase: Phase) -> None:
        job.access.record(replace(state, running=Running(os.getpid(), started, job.direction, phase)))

    job.enter = enter
    try:
        enter(Phase.PREPARE)
        state = steps.sync(job, state, started)
    except SyncRefusedError as error:
        if error.reason is Refusal.TARGET_PRIMARY:  # a person's mistake, no news about the data
            job.access.record(replace(state, running=None))
            raise
        state = replace(state, problem=Problem(time.time(), error.reason, error.text))
    except SyncStepError as error:
        state = replace(state, problem=Problem(time.time(), Refusal.FAILED, str(error)))
    state = replace(state, running=None, damaged=None)
    job.access.record(state)
    try:
        job.access.tell(state)
    except SyncStepError as error:
        job.say(str(error))  # the active check says the same a little later
    return state


def _job(args: argparse.Namespace, config: Config, service: Service, spec: SyncSpec, access: ControllerAccess) -> Job:
    direction = SyncDirection.REVERSE if args.reverse else SyncDirection.FORWARD
    servers = [hosts.server(spec, target) for target in (Target.PRIMARY, Target.STANDBY)]
    giver, taker = servers if direction is SyncDirection.FORWARD else servers[::-1]
    return Job(
        service=service,
        spec=spec,
        direction=direction,
        giver=giver,
        taker=taker,
        access=access,
        state_dir=config.controller.state_dir,
        may_chown=os.geteuid() == 0,
        accept_shrink=args.accept_shrink,
        full=args.full,
        say=_say if args.verbose or sys.stderr.isatty() else lambda _text: None,
        progress=_progress if sys.stderr.isatty() else None,
    )


def _dry_run(job: Job, as_json: bool) -> int:
    found = steps.inspect(job)
    files, size, total = steps.differences(job, found.get("current"))
    if as_json:
        print(json.dumps({"files": total, "differed_files": files, "differed_bytes": size}))
    else:
        print(f"OK: {job.name}: {files} of {total} files differ ({size} bytes); nothing was changed")
    return State.OK


def _adopt(service: Service, spec: SyncSpec) -> int:
    done = []
    for target in (Target.PRIMARY, Target.STANDBY):
        on = hosts.server(spec, target)
        if "directory" in hosts.remote(on, "inspect", spec.copy_path):
            hosts.remote(on, "adopt", spec.copy_path)
            done.append(str(on))
    print(
        f"OK: {service.name}: {spec.copy_path} " + (f"adopted on {' and '.join(done)}" if done else "needs no adoption")
    )
    return State.OK


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT end the step under way in order: its children are ended and the record says why."""

    def stop(number: int, _frame: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)  # the clean-up is not interrupted
        raise StoppedError(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _detach() -> None:
    """Go on in the background; the caller gets its OK."""
    if os.fork():
        print("OK: started; the result follows as a passive one")
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


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
