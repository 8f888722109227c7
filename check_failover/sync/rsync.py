"""rsync, as failover-sync uses it: one command line, what it printed, and what that means (rsync(1)).

A copy is built in an empty staging directory beside the serving one. ``--link-dest`` makes it share the unchanged files
with the serving copy and take the changed ones as a basis, so that only differences travel and nothing that is being
served is ever written to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from check_failover.model import SyncSpec
from check_failover.sync.hosts import Host, SyncStepError, clean, stream

RSYNC = next((p for p in ("/usr/bin/rsync", "/usr/local/bin/rsync") if Path(p).exists()), "/usr/bin/rsync")
_IO_TIMEOUT = 60  # seconds without a byte
_PARTIAL, _VANISHED = 23, 24  # rsync(1), EXIT VALUES: not all transferred; source files vanished during the transfer
_PROGRESS = re.compile(r"\s*[\d,.]+[KMGT]?\s+(\d+%)\s+(\S+)")
_CUT = re.compile(r"read errors mapping .*(No data available|\(61\))|file has vanished|WARNING: .* failed verification")
_ITEM = re.compile(r"([<>ch.])([fdLDS])([.+?cstTpoguabxn ]{9}) ")


@dataclass(frozen=True, slots=True)
class Place:
    """A directory on a machine. The trailing slash means its contents, not itself."""

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
    """What one rsync did or, in a dry run, would do."""

    files: int = 0  # regular files that the giving side has
    bytes: int = 0  # their sizes
    differed_files: int = 0  # changed, new or gone
    differed_bytes: int = 0  # sizes of the changed and new ones
    other: int = 0  # directories, links, owners, modes
    touched: int = 0  # files of which only the time differed
    wire: int = 0  # bytes sent and received
    unsteady: bool = False  # a file vanished or was cut short under rsync's hands: another pass is needed
    _left: dict[str, int] = field(default_factory=dict)

    @property
    def different(self) -> bool:
        """Whether anything but a time differed; an export written anew with the same contents is no difference."""
        return bool(self.differed_files or self.other or self.unsteady)

    def line(self, text: str) -> None:
        """Take in one line of ``--itemize-changes --stats``."""
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
    own_owners: bool = True,
    progress: Callable[[str], None] | None = None,
) -> TransferReport:
    """Make ``destination`` equal to ``source``, or with ``dry`` only say what differs. Raises StepError.

    ``basis``: directories on the receiving side whose equal files are linked. ``own_owners`` False: owners and modes
    are kept in extended attributes on this machine, which may not set them (``--fake-super``).
    """
    if source.host.target and destination.host.target:
        raise ValueError("rsync has one local end")
    report = TransferReport()
    argv = _argv(source, destination, spec, checksum, dry)
    argv += [f"--link-dest={path}" for path in basis]
    argv += [f"--partial-dir={partial}"] if partial else []
    argv += [] if own_owners else ["--fake-super"]
    argv += ["--info=progress2"] if progress and not dry else []

    def line(text: str) -> None:
        if progress and (match := _PROGRESS.match(text)):
            progress(f"{match[1]} {match[2]}")
        else:
            report.line(text)

    code, err = stream([*argv, "--", str(source), str(destination)], spec.timeout, line)
    report.unsteady = code == _VANISHED or (code == _PARTIAL and _only_unsteady(err))
    if code and not report.unsteady:
        far = source.host if source.host.target else destination.host
        raise SyncStepError(f"rsync {source.host.role} to {destination.host.role}: {_why(err, code, far)}")
    return report


def _argv(source: Place, destination: Place, spec: SyncSpec, checksum: bool, dry: bool) -> list[str]:
    argv = [RSYNC, "-aH", "--numeric-ids", "--no-devices", "--no-specials", "--delete", "--stats"]
    argv += ["--no-human-readable", "--itemize-changes", f"--timeout={_IO_TIMEOUT}"]
    argv += ["--checksum"] if checksum else []
    argv += ["--dry-run"] if dry else []
    argv += [f"--bwlimit={spec.bandwidth // 1024}"] if spec.bandwidth else []
    argv += [f"--exclude={pattern}" for pattern in spec.exclude]
    far = source.host if source.host.target else destination.host
    if far.target:
        argv += ["-e", " ".join(far.ssh)]
        argv += [f"--rsync-path={spec.rsync_path}"] if spec.rsync_path else []
    else:
        argv += ["--no-whole-file"]  # differences only on one machine as well: a large file stays cheap
    return argv


def _only_unsteady(err: str) -> bool:
    """Whether nothing but files that changed while they were read is why a transfer is not whole."""
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("rsync error: ")]
    return bool(lines) and all(_CUT.search(line) for line in lines)


def _why(err: str, code: int, far: Host) -> str:
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    first = clean(lines[0]) if lines else "no message"
    if code == 255 or (code == 12 and "rsync:" not in first.split("[")[0]):
        return f"cannot reach {far}: {first}"
    return f"{first} (exit {code})"
