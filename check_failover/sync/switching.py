"""The switch of a server to a new copy, and what follows when a run was killed in the middle of one."""

from check_failover.sync.guard import SyncRefusedError
from check_failover.sync.hosts import Host, SyncStepError, remote, run
from check_failover.sync.job import Job, fill
from check_failover.sync.lease import renewed
from check_failover.sync.lineage import keep
from check_failover.syncstate import Phase, Refusal


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
    found = remote(on, "served", job.spec.copy_path)
    if found.get("served") == "both":
        old = f"{job.spec.copy_path}.sync/{found['old']}"
        if not job.take:
            text = f"clients wrote to two copies on the {on.role}, because a run was killed; the earlier: {on}: {old}"
            text += f": failover-sync {job.name} --take primary --yes or --take standby --yes puts it aside"
            raise SyncRefusedError(Refusal.BOTH_SERVED, text)
        keep(job, on, f"{on.role}-earlier", old)
    job.enter(Phase.SWITCH)
    try:
        if found.get("served") == "old":
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
    remote(on, "settle", job.spec.copy_path)


def put_back(job: Job, on: Host) -> None:
    """Switch back to the previous copy and run ``after`` for it."""
    remote(on, "back", job.spec.copy_path)
    if job.spec.after:
        run(on, fill(job, job.spec.after), job.spec.after_timeout)
