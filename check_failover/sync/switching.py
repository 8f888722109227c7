"""The lease of the receiving server, its switch to a new copy, and what follows when a run was killed during a switch.

Of the runs of a pair's two controllers only one works on that server's copies: the lock on the controller excludes
other runs of that controller only. remote.sh keeps the lease beside the copies and checks it again before it makes or
switches a copy, so a run that lost it changes nothing. A controller whose run was killed takes its own lease again at
once; for the other one it ends after ``SyncSpec.timeout``.
"""

import contextlib
import math
from collections.abc import Iterator

from check_failover.model import clean
from check_failover.sync.guard import SyncRefusedError
from check_failover.sync.hosts import Host, SyncStepError, remote, run
from check_failover.sync.job import Job, fill
from check_failover.sync.lineage import keep, unreached
from check_failover.syncstate import Phase, Refusal


@contextlib.contextmanager
def leased(job: Job) -> Iterator[None]:
    """Hold the lease during the block. Raises SyncRefusedError, SyncStepError."""
    renewed(job, "lease")
    try:
        yield
    finally:
        try:
            remote(job.receiver, "release", job.spec.copy_path, job.access.holder)
        except SyncStepError as error:
            job.say(str(error))  # it ends by itself


def renewed(job: Job, verb: str, *arguments: str) -> dict[str, str]:
    """Run a verb of remote.sh that takes or renews the lease first. Raises SyncRefusedError if another run has it."""
    limit = str(math.ceil(job.spec.timeout))
    said = remote(job.receiver, verb, job.spec.copy_path, job.access.holder, limit, *arguments)
    if "held" in said:
        left, _, holder = clean(said["held"]).partition(" ")
        text = f"a run of the controller {holder.partition('/')[0]} works on the {job.receiver}, {left} s at most"
        raise SyncRefusedError(Refusal.RUNNING, text)
    return said


def switch(job: Job, name: str) -> None:
    """Move the link and run ``after``; if ``after`` fails, move the link back."""
    renewed(job, "switch", name)
    settle(job, job.receiver)


def resume(job: Job, on: Host) -> bool:
    """Finish the switch of a killed run, or take it back if the service still works on the copy before.

    True if the new copy does not serve: this run must make a new one then. On the source server the service must work
    on what the link names before its data is exported, so an error there ends the run. Raises SyncRefusedError if
    clients wrote to both copies, because the service was restarted in between: a person must decide.
    """
    served, old = written(job, on)
    if served == "both":
        keep(job, on, f"{on.role}-earlier", old)
    job.enter(Phase.SWITCH)
    try:
        if served == "old":
            job.say(f"{on}: an earlier run was killed after its switch, and the copy before serves: taking it back")
            put_back(job, on)
            return True
        job.say(f"{on}: an earlier run was killed after its switch: finishing it")
        settle(job, on)
    except SyncStepError as error:
        if isinstance(error, _StuckError) and on == job.source:
            raise
        job.say(str(error))
        return True
    finally:
        job.enter(Phase.PREPARE)
    return False


def written(job: Job, on: Host) -> tuple[str, str]:
    """Which copies clients wrote to since the link moved (old, new, both), and the path of the old one.

    Raises SyncRefusedError for both, unless a person has decided.
    """
    found = remote(on, "served", job.spec.copy_path)
    old = f"{job.spec.copy_path}.sync/{found.get('old')}"
    if found.get("served") == "both" and not job.take:
        text = f"clients wrote to two copies on the {on.role}, during a switch; the earlier: {on}: {old}"
        text += f": failover-sync {job.name} --take primary --yes or --take standby --yes puts it aside"
        raise SyncRefusedError(Refusal.BOTH_SERVED, text)
    return found.get("served", ""), old


class _StuckError(SyncStepError):
    """The service accepts neither the new copy nor the one before."""


def settle(job: Job, on: Host) -> None:
    """Run ``after`` for the copy that the link points to, and make the switch final."""
    if job.spec.after:
        try:
            run(on, fill(job, job.spec.after), job.spec.after_timeout)
        except SyncStepError as error:
            try:
                put_back(job, on)
            except SyncStepError as second:
                raise _StuckError(f"{error}; and switching back failed too, check the {on}: {second}") from None
            raise SyncStepError(f"{error}; the previous copy serves again") from None
    if on == job.receiver:
        try:
            unreached(job, job.access.standing())
        except SyncRefusedError:  # a flip did not wait any longer
            if written(job, on)[0] == "old":
                put_back(job, on)
                raise
    remote(on, "settle", job.spec.copy_path)


def put_back(job: Job, on: Host) -> None:
    """Switch back to the previous copy and run ``after`` for it."""
    remote(on, "back", job.spec.copy_path)
    if job.spec.after:
        run(on, fill(job, job.spec.after), job.spec.after_timeout)
