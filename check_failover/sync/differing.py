"""What differs between both servers, for a person who must decide."""

from check_failover.sync.guard import ends
from check_failover.sync.job import Job
from check_failover.sync.lineage import exact, served
from check_failover.sync.rsync import Place
from check_failover.sync.survey import inspect, listing
from check_failover.syncstate import SyncState


def differences(job: Job, state: SyncState) -> list[str]:
    """One line for each entry (LDAP) or file that differs. Raises SyncRefusedError, SyncStepError."""
    if job.service.check.type == "ldap":
        from check_failover.sync import entries  # imports ldap3, 20 MiB

        if job.spec.method != "syncrepl":
            inspect(job)  # the clocks
        primary, standby = entries.read(entries.whole(job.service, job.spec.timeout), job.spec.timeout)
        return [str(one) for one in entries.compare(primary, standby, entries.in_step(state, job.apart))]
    found, items = inspect(job), []
    for on in (job.source, job.receiver):
        place = served(job, on) if job.spec.before or on == job.receiver else Place(on, job.spec.source_path)
        there = bool(job.spec.before) or on == job.source or "current" in found[on]
        items.append(listing(job, place, contents=exact(job, "both"), named=True).items if there else {})
    here, far = items
    source, receiver = ends(job.direction)
    only = {name: f"only on the {source if name in here else receiver}" for name in here.keys() ^ far.keys()}
    return [
        f"{name}: {only.get(name, 'differs')}"
        for name in sorted(here.keys() | far.keys())
        if here.get(name) != far.get(name)
    ]
