"""Whether the receiving server still has what the last good run left there, and what this run leaves on both servers.

A server's own export is the same as before if nothing was written there, so each server's digest is compared with an
earlier one of the same server. Without ``before`` both servers have the same files, and one digest is that of both.
"""

import os
import pwd
import sys
import time

from check_failover import reach
from check_failover.sync.guard import Standing, SyncRefusedError, check_reached, check_written, ends
from check_failover.sync.hosts import Host, SyncStepError, remote, run
from check_failover.sync.job import Job, fill
from check_failover.sync.rsync import Place
from check_failover.sync.survey import inspect, listing
from check_failover.syncstate import Digests, Refusal, SyncState

PATIENCE = 20.0  # seconds; the redirector notes a silence after 15


def standing(job: Job) -> Standing:
    """Which server serves, and how clients reach both. Raises SyncRefusedError, SyncStepError.

    The other controller of a pair may have flipped when it was just lost, and may flip while it does not know that this
    run switches a copy. A run waits until it says that, or until the redirector notes that clients may reach either
    server.
    """
    end = time.monotonic() + PATIENCE
    while (found := job.access.standing()).unsure and job.service.writes != "none" and not job.take:
        if time.monotonic() > end:
            text = (
                "the other controller is not heard, or does not know of this run, and the redirector noted no silence"
            )
            raise SyncRefusedError(Refusal.STILL_REACHED, f"{text}: look at its log and at failover-pair's")
        time.sleep(0.5)
    return found


def ways(job: Job, standing: Standing, state: SyncState) -> str:
    """How clients reached the receiving server since both were equal, for people; empty if they did not.

    Raises SyncRefusedError while they may write there, except in a run that a person decided.
    """
    job.looked = job.access.now()
    if job.service.writes == "none":
        return ""
    unreached(job, standing)
    receiver = ends(job.direction)[1]
    return reach.text(reach.since(standing.reached, receiver, state.equal_at or 0.0), job.looked)


def unreached(job: Job, standing: Standing) -> None:
    """Raises SyncRefusedError if clients reached the receiving server since ``ways``: they may have written there."""
    if job.service.writes != "none" and not job.take:
        check_reached(job.direction, standing.reached, job.looked)


def exact(job: Job, how: str) -> bool:
    """Whether the source's files must be read for its digest."""
    return bool(job.spec.before) or (job.spec.checksum and bool(how))


def examine(job: Job, state: SyncState, how: str, source: str | None, serving: str | None) -> tuple[Digests, bool]:
    """The digests before this run, and whether the receiving server's data was changed without clients.

    Raises SyncRefusedError if a person must decide, SyncStepError if what would be lost cannot be put aside.
    """
    if not how and not job.spec.before:
        return Digests(), False
    found = digest(job, job.receiver, serving)
    giver, receiver = ends(job.direction)
    digests = Digests().put(giver, source).put(receiver, found)
    if not job.take and not job.merge:
        check_written(job.name, job.direction, how, state.digests, digests)
    known = state.digests.of(receiver)
    if known is None or how or found == known:
        return digests, False
    if found is None:
        job.noted(f"whether the {receiver}'s data was changed there could not be seen")
        return digests, False
    job.noted(f"the {receiver}'s data had been changed there and was replaced")
    return digests, True


def digest(job: Job, on: Host, serving: str | None) -> str | None:
    """Digest of the data that a server serves; None if its export failed. ``serving``: its copy."""
    try:
        return listing(job, served(job, on), contents=exact(job, "now")).digest if job.spec.before or serving else ""
    except SyncStepError as error:
        job.say(str(error))
        return None


def served(job: Job, on: Host) -> Place:
    """Where the data that a server serves is, exported anew. Raises SyncStepError."""
    if not job.spec.before:
        return Place(on, job.spec.copy_path)
    run(on, fill(job, job.spec.before), job.spec.timeout)
    return Place(on, job.spec.source_path)


def left(job: Job, state: SyncState, found: Digests, *, switched: bool) -> Digests:
    """The digests after this run."""
    source, receiver = ends(job.direction)
    before = bool(job.spec.before)
    known = found if before else state.digests
    if switched or known.of(receiver) is None:
        new = digest(job, job.receiver, "new")
        known = Digests().put(source, found.of(source) if before else new).put(receiver, new)
    now = job.access.standing()
    if now.target is None or now.unsure or reach.since(now.reached, receiver, job.looked):
        return known.put(receiver, None)  # a client's write may be in it
    return known


def put_aside(job: Job, serving: str | None) -> None:
    """Keep the receiving server's data, which a person's decision overwrites, where no run removes it.

    Raises SyncStepError.
    """
    source, receiver = ends(job.direction)
    user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    if job.take:
        job.noted(f"{user} decided that the {source}'s data counts")
    if job.spec.before or serving is not None:
        keep(job, job.receiver, receiver, served(job, job.receiver).path)
    try:
        job.access.decided("merge" if job.merge else "take", source, job.kept, user)
    except SyncStepError as error:
        print(f"{job.name}: no line about this decision in the journal: {error}", file=sys.stderr)


def keep(job: Job, on: Host, what: str, path: str) -> None:
    """Put a directory of a server aside under a name that no run removes. Raises SyncStepError."""
    name = time.strftime(f"kept-%Y%m%dT%H%M%S-{what}", time.localtime(job.looked))
    remote(on, "keep", job.spec.copy_path, name, path)
    place = f"{on}: {job.spec.copy_path}.sync/{name}"
    job.kept = f"{job.kept}; {place}" if job.kept else place
    job.noted(f"the {on.role}'s data was put aside: {place}")


def differences(job: Job, state: SyncState) -> list[str]:
    """One line for each entry (LDAP) or file that differs, for a person. Raises SyncRefusedError, SyncStepError."""
    if job.service.check.type == "ldap":
        from check_failover.sync import merging  # imports ldap3, 20 MiB

        if job.spec.method != "syncrepl":
            inspect(job)  # the clocks
        primary, standby = merging.read(merging.whole(job.service, job.spec.timeout), job.spec.timeout)
        return [str(one) for one in merging.compare(primary, standby, merging.in_step(state, job.apart))]
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
