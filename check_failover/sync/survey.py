"""What a run learns of both servers before it copies: their copies, clocks and rsyncs, and the files of the source.

rsync lists the files: their sizes, a digest, and those that are unsafe to copy. A setuid or setgid program of root
gives its rights to users of the other server; a device, FIFO or socket belongs to one machine; a symbolic link that
leaves the tree names something that the copy does not contain.
"""

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from check_failover.sync.guard import SyncRefusedError
from check_failover.sync.hosts import Host, remote
from check_failover.sync.job import Job
from check_failover.sync.rsync import RSYNC, Place, TransferReport, copy
from check_failover.syncstate import Refusal, directory

_NOTHING = {"acls": "no", "xattrs": "no"}
# rsyncd.conf(5), log format; the name is repeated to find where a link's target begins
FORMAT = "%i %B %U %G %l %M %n%L\t%n\t%C"
SHOWN = 5
_KINDS = {"D": "device", "S": "FIFO or socket"}


@dataclass(slots=True)
class Survey(TransferReport):
    """What a listing shows. ``roots``: absolute links to below these do not leave the tree.

    ``contents``: the digest is of what the files contain, which rsync read; otherwise of their sizes and times.
    ``named``: keep what each name stands for in ``items``.
    """

    roots: tuple[str, ...] = ()
    contents: bool = False
    named: bool = False
    unsafe: list[str] = field(default_factory=list)
    items: dict[str, str] = field(default_factory=dict)
    _sum: int = 0

    @property
    def digest(self) -> str:
        """Of names, kinds, modes, links' targets, and contents, in any order; empty if there are no files."""
        return f"{self._sum:064x}" if self._sum else ""

    def line(self, text: str) -> None:
        """Parse one line: an item in ``FORMAT``, or a statistic."""
        parts = text.split(" ", 6)
        if len(parts) == 7 and len(parts[0]) == 11 and parts[6].count("\t") > 1:
            kind, (names, content) = parts[0][1], parts[6].rsplit("\t", 1)
            if why := self._why(kind, parts[1], parts[2], parts[3], names):
                self.unsafe.append(why)
            self._count(kind, parts[1], names, content if self.contents else f"{parts[4]} {parts[5]}")
        else:
            TransferReport.line(self, text)

    def _count(self, kind: str, mode: str, names: str, content: str) -> None:
        name = names if kind == "L" else names.rpartition("\t")[2]
        if name == "./":
            return  # the directory itself is each server's own
        item = f"{kind} {'' if kind == 'L' else mode} {content if kind == 'f' else ''}"
        self._sum = (self._sum + int.from_bytes(sha256(f"{item} {name}".encode()).digest())) % (1 << 256)
        if self.named:
            self.items[name.partition("\t")[0]] = item

    def _why(self, kind: str, mode: str, user: str, group: str, names: str) -> str | None:
        if kind == "L":
            outside = [link for link in _links(names) if self._leaves(*link)]
            return f"{outside[0][0]} -> {outside[0][1]}" if outside else None
        name = names.split("\t")[0]
        if kind in _KINDS:
            return f"{name} ({_KINDS[kind]})"
        if kind != "f":
            return None
        if mode[2] == "s" and user == "0":
            return f"{name} (setuid root)"
        return f"{name} (setgid program)" if mode[5] == "s" and "0" in (user, group) else None

    def _leaves(self, name: str, target: str) -> bool:
        if target.startswith("/"):
            path = posixpath.normpath(target)
            return not any(path == root or path.startswith(f"{root}/") for root in self.roots)
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), target)).split("/")[0] == ".."

    def told(self) -> str:
        """The first unsafe files and the number of all."""
        more = f" and {len(self.unsafe) - SHOWN} more" if len(self.unsafe) > SHOWN else ""
        return f"{len(self.unsafe)} unsafe to copy: {', '.join(self.unsafe[:SHOWN])}{more}"


def _links(names: str) -> list[tuple[str, str]]:
    """Each way to read ``NAME -> TARGET<tab>NAME``; a name may contain an arrow or a tab itself."""
    arrows = [match.start() for match in re.finditer("(?= -> )", names)]
    return [(names[:at], names[at + 4 : -at - 1]) for at in arrows if names.endswith(f"\t{names[:at]}")]


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
