"""What a run learns of both servers before it copies: their copies, clocks and rsyncs, and the files of the source."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from check_failover.sync.guard import SyncRefusedError
from check_failover.sync.hosts import Host, remote
from check_failover.sync.job import Job
from check_failover.sync.rsync import RSYNC, Place, copy
from check_failover.sync.unsafe import FORMAT, Survey
from check_failover.syncstate import Refusal, directory

_NOTHING = {"acls": "no", "xattrs": "no"}


def inspect(job: Job) -> dict[Host, dict[str, str]]:
    """State of both servers' copies. Raises SyncRefusedError if failover-sync did not make the receiving server's.

    Sets what rsync can keep, and the skew of the source server's clock.
    """
    path, found, skews = job.spec.copy_path, {}, {}
    for on in (job.receiver, job.source):
        before = job.access.now()
        found[on] = remote(on, "inspect", path, (job.spec.rsync_path or "rsync") if on.target else RSYNC)
        if clock := re.match(r"\d+(\.\d+)?", found[on].get("now", "")):
            skews[on] = float(clock[0]) - (before + job.access.now()) / 2
    job.skew, job.apart = skews.get(job.source, 0.0), max(map(abs, skews.values()), default=0.0)
    job.keeps, note = kept(job, found)
    if note not in job.note:
        job.noted(note)
    theirs = found[job.receiver]
    if "directory" in theirs:
        text = f"{path} on the {job.receiver} is an ordinary directory; run once: failover-sync --adopt {job.name}"
        raise SyncRefusedError(Refusal.NOT_ADOPTED, text)
    if "foreign" in theirs:
        text = f"{path} on the {job.receiver} is foreign ({theirs['foreign']}); set another path in [service.sync] to"
        raise SyncRefusedError(Refusal.NOT_ADOPTED, text)
    return found


def kept(job: Job, found: Mapping[Host, Mapping[str, str]]) -> tuple[list[str], str]:
    """rsync's options for what it keeps of each file on this way, and a text that names what it cannot keep."""
    ends, relay = dict(found), job.relay
    if relay is not None:
        Path(relay.path).mkdir(parents=True, exist_ok=True, mode=0o700)
        ends[relay.host] = remote(relay.host, "inspect", relay.path, RSYNC) | ({} if stores(relay.path) else _NOTHING)
    lacks = {what: [on.role for on, has in ends.items() if has.get(what) != "yes"] for what in ("acls", "xattrs")}
    # a relay belongs to one user without privileges: it holds owners, modes, ACLs and capabilities as user.* attributes
    fake = relay is not None and not (job.may_chown and lacks["xattrs"])
    names = {"acls": "ACLs", "xattrs": "extended attributes"}
    note = " and ".join(f"{names[what]} (rsync on the {', '.join(on)})" for what, on in lacks.items() if on)
    options = [f"--{what}" for what, on in lacks.items() if not on] + ["--fake-super"] * fake
    return options, f"not copied: {note}" if note else ""


def stores(path: str) -> bool:
    """Whether the file system of a local directory stores extended attributes of users (Linux)."""
    try:
        os.setxattr(path, "user.rsync.test", b"1")
        os.removexattr(path, "user.rsync.test")
    except (OSError, AttributeError):
        return False
    return True


def survey(job: Job, *, contents: bool) -> Survey:
    """List the source. Raises SyncRefusedError if it has files that are unsafe to copy (``SyncSpec.unsafe``)."""
    listed = listing(job, Place(job.source, job.spec.source_path), contents=contents)
    if listed.unsafe and job.spec.unsafe == "refuse":
        raise SyncRefusedError(Refusal.UNSAFE, f'{job.source}: {listed.told()}; exclude them, or set unsafe = "keep"')
    return listed


def listing(job: Job, place: Place, *, contents: bool, named: bool = False) -> Survey:
    """What is in a directory of a server; with ``contents`` rsync reads the files. Raises SyncStepError."""
    report = Survey(roots=(job.spec.source_path, job.spec.copy_path), contents=contents, named=named)
    copy(place, nothing(job), job.spec, checksum=contents, dry=True, report=report, form=FORMAT)
    job.sent += report.wire
    return report


def nothing(job: Job) -> Place:
    """An empty directory; a dry run against it counts all files of a server."""
    empty = directory(job.state_dir) / ".empty"
    empty.mkdir(exist_ok=True, mode=0o700)
    return Place(Host("relay"), str(empty))
