"""The lease of the receiving server: of the runs of a pair's two controllers only one works on that server's copies.

The lock on the controller excludes other runs of that controller only. remote.sh keeps the lease beside the copies and
checks it again before it makes or switches a copy, so a run that lost it changes nothing. A controller whose run was
killed takes its own lease again at once; for the other one it ends after ``SyncSpec.timeout``.
"""

import contextlib
import math
from collections.abc import Iterator

from check_failover.model import clean
from check_failover.sync.guard import SyncRefusedError
from check_failover.sync.hosts import SyncStepError, remote
from check_failover.sync.job import Job
from check_failover.syncstate import Refusal


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
