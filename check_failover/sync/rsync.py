"""One rsync run: its command line, its output, and the meaning of its exit code (rsync(1)).

rsync builds a copy in an empty staging directory beside the serving copy. With ``--link-dest`` unchanged files are hard
links into the serving copy, and changed files use it as their basis: only differences are transferred, and rsync never
writes to the serving copy.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from check_failover.model import SyncSpec, clean
from check_failover.sync.hosts import Host, SyncStepError, far_end, stream

RSYNC = next((p for p in ("/usr/bin/rsync", "/usr/local/bin/rsync") if Path(p).exists()), "/usr/bin/rsync")
_IO_TIMEOUT = 60  # seconds without any data
NO_SPACE = "No space left on device"
_LATER = 5  # seconds by which the far end outlasts this one, which then has the better message
_PARTIAL, _VANISHED = 23, 24  # rsync(1), EXIT VALUES: not all transferred; source files vanished during the transfer
_PROGRESS = re.compile(r"\s*[\d,.]+[KMGT]?\s+(\d+%)\s+(\S+)")
_CUT = re.compile(r"read errors mapping .*(No data available|\(61\))|file has vanished|WARNING: .* failed verification")
_ITEM = re.compile(r"([<>ch.])([fdLDS])([.+?cstTpoguabxn ]{9}) ")


@dataclass(frozen=True, slots=True)
class Place:
    """A directory on a machine. Its text ends in a slash, which means its contents to rsync."""

    host: Host
    path: str

    def __str__(self) -> str:
        target = self.host.target
        if target is None:
            return f"{self.path}/"
        user, at, name = target.rpartition("@")
        return f"{user}{at}{f'[{name}]' if ':' in name else name}:{self.path}/"


@dataclass(slots=True)
class TransferReport:
    """What one rsync run did or, as a dry run, would do."""

    files: int = 0  # regular files at the source
    bytes: int = 0  # their sizes
    differed_files: int = 0  # changed, new or gone
    differed_bytes: int = 0  # sizes of the changed and new ones
    other: int = 0  # directories, links, owners, modes
    touched: int = 0  # files of which only the time differed
    wire: int = 0  # bytes sent and received
    unsteady: bool = False  # a file vanished or was truncated while rsync read it: another pass is needed

    @property
    def different(self) -> bool:
        """Whether more than times differed; an export rewritten with the same contents is no difference."""
        return bool(self.differed_files or self.other or self.unsteady)

    def line(self, text: str) -> None:
        """Parse one output line of ``--itemize-changes --stats``."""
        if text.startswith("*deleting"):
            self.differed_files += not text.endswith("/")
            self.other += text.endswith("/")
        elif match := _ITEM.match(text + " "):
            update, kind, what = match.groups()
            if update in "<>" and kind == "f":
                self.differed_files += 1
            elif set(what) - set(".tT "):
                self.other += 1
            else:
                self.touched += kind == "f"
        elif match := re.match(r"Number of files: [\d,.]+ \(.*?reg: ([\d,.]+)", text):
            self.files = _number(match[1])
        elif match := re.match(r"(Total file size|Total transferred file size|Total bytes \w+): ([\d,.]+)", text):
            number = _number(match[2])
            if match[1] == "Total file size":
                self.bytes = number
            elif match[1] == "Total transferred file size":
                self.differed_bytes = number
            else:
                self.wire += number


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text))


def copy(
    source: Place,
    destination: Place,
    spec: SyncSpec,
    *,
    checksum: bool,
    dry: bool = False,
    basis: Sequence[str] = (),
    partial: str | None = None,
    keeps: Sequence[str] = (),
    report: TransferReport | None = None,
    form: str = "",
    progress: Callable[[str], None] | None = None,
) -> TransferReport:
    """Make ``destination`` equal to ``source``; with ``dry`` only report what differs. Raises SyncStepError.

    ``basis``: directories at the destination whose equal files are hard-linked. ``report``: the report to
    fill; ``form``: the format of rsync's lines, instead of ``--itemize-changes``. ``keeps``: further options.
    """
    if source.host.target and destination.host.target:
        raise ValueError("rsync has one local end")
    report = report or TransferReport()
    argv = _argv(source, destination, spec, checksum, dry)
    argv += [f"--out-format={form}", "--devices", "--specials"] if form else ["--itemize-changes"]
    argv += ["--checksum-choice=md5"] if form and checksum else []  # whichever rsync answers
    argv += [f"--link-dest={path}" for path in basis]
    argv += [f"--partial-dir={partial}"] if partial else []
    argv += keeps
    argv += ["--info=progress2"] if progress and not dry else []

    def line(text: str) -> None:
        if progress and (match := _PROGRESS.match(text)):
            progress(f"{match[1]} {match[2]}")
        else:
            report.line(text)

    what = f"rsync {source.host.role} to {destination.host.role}"
    done = stream(what, [*argv, "--", str(source), str(destination)], spec.timeout, line)
    err = done.err.decode(errors="replace")
    report.unsteady = done.code == _VANISHED or (done.code == _PARTIAL and _only_unsteady(err))
    if done.code and not report.unsteady:
        far = source.host if source.host.target else destination.host
        raise SyncStepError(f"{what}: {_why(err, done.code, far)}")
    return report


def _argv(source: Place, destination: Place, spec: SyncSpec, checksum: bool, dry: bool) -> list[str]:
    argv = [RSYNC, "-aHS", "--numeric-ids", "--delete", "--stats", "--no-human-readable", f"--timeout={_IO_TIMEOUT}"]
    argv += [] if spec.unsafe == "keep" else ["--no-devices", "--no-specials"]
    argv += ["--checksum"] if checksum else []
    argv += ["--dry-run"] if dry else []
    argv += [f"--bwlimit={spec.bandwidth // 1024}"] if spec.bandwidth else []
    argv += [f"--exclude={pattern}" for pattern in spec.exclude]
    far = source.host if source.host.target else destination.host
    if far.target:
        argv += ["-e", " ".join(far.ssh)]
        argv += [f"--rsync-path={' '.join(far_end(spec.timeout + _LATER))} {spec.rsync_path or 'rsync'}"]
    else:
        argv += ["--no-whole-file"]  # transfer differences on one machine too: a large file stays cheap
    return argv


def _only_unsteady(err: str) -> bool:
    """Whether a transfer is incomplete only because files changed while rsync read them."""
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("rsync error: ")]
    return bool(lines) and all(_CUT.search(line) for line in lines)


def _why(err: str, code: int, far: Host) -> str:
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    first = clean(lines[0]) if lines else "no message"
    if code == 255 or (code == 12 and "rsync:" not in first.split("[")[0]):
        return f"cannot reach {far}: {first}"
    if "Operation not supported" in first and ("xattr" in first or "acl" in first):
        first += "; a file system on that side stores no ACLs or extended attributes: mount it with them"
    return f"{first} (exit {code})"
