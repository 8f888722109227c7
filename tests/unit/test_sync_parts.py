"""The pure parts of failover-sync: rsync's output, contextCSN values, guards, presets that load."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from check_failover.checks import replication
from check_failover.config import load
from check_failover.model import Target
from check_failover.sync import run
from check_failover.sync.guard import Standing, SyncRefusedError, check_direction, check_size
from check_failover.sync.rsync import TransferReport, _only_unsteady
from check_failover.syncstate import Refusal, Size, SyncDirection
from tests.unit.test_sync_config import with_sync

PRESETS = Path(__file__).parents[2] / "nagios-conf/sync"

OUTPUT = """\
.d..t...... ./
<f+++++++++ new file
>fcst...... d/changed
.f..t...... d/touched
.f...p..... d/mode
cd+++++++++ empty/
cL+++++++++ link -> a b
*deleting   gone
*deleting   gone.d/
Number of files: 1,234 (reg: 1,200, dir: 30, link: 4)
Number of created files: 2
Total file size: 12,345,678 bytes
Total transferred file size: 4,096 bytes
Total bytes sent: 1,000
Total bytes received: 23
"""


def test_what_rsync_prints_is_understood() -> None:
    """Every kind of itemized line, and numbers with separators."""
    report = TransferReport()
    for line in OUTPUT.splitlines():
        report.line(line)
    assert (report.files, report.bytes, report.wire) == (1200, 12345678, 1023)
    assert (report.differed_files, report.differed_bytes) == (3, 4096)
    assert (report.other, report.touched) == (4, 1)
    assert report.different


def test_a_new_time_alone_is_no_difference() -> None:
    """An export that was written anew with the same contents switches nothing."""
    report = TransferReport()
    report.line(".f..t...... data.ldif")
    report.line(".d..t...... ./")
    assert not report.different
    assert report.touched == 1


@pytest.mark.parametrize(
    ("err", "unsteady"),
    [
        ('rsync: [sender] read errors mapping "/x/busy": No data available (61)\nrsync error: x (code 23)', True),
        ('file has vanished: "/x/a"\n', True),
        ('rsync: [sender] read errors mapping "/x/busy": Input/output error (5)\nrsync error: x (code 23)', False),
        ("file has vanished: \"/x/a\"\nrsync: [sender] send_files failed to open: Permission denied (13)", False),
        ("rsync error: some files/attrs were not transferred (code 23)", False),
        ("", False),
    ],
)  # fmt: skip
def test_only_a_file_that_moved_asks_for_another_pass(err: str, unsteady: bool) -> None:
    """A disk that cannot be read, or a file that may not be, is a failure."""
    assert _only_unsteady(err) is unsteady


@pytest.mark.parametrize(
    ("direction", "standing", "reason"),
    [
        (SyncDirection.FORWARD, Standing(Target.PRIMARY), None),
        (SyncDirection.FORWARD, Standing(Target.STANDBY), Refusal.TARGET_STANDBY),
        (SyncDirection.FORWARD, Standing(Target.PRIMARY, failing=True), Refusal.PRIMARY_FAILING),
        (SyncDirection.FORWARD, Standing(None), Refusal.TARGET_UNKNOWN),
        (SyncDirection.REVERSE, Standing(Target.STANDBY), None),
        (SyncDirection.REVERSE, Standing(Target.STANDBY, failing=True), None),
        (SyncDirection.REVERSE, Standing(Target.PRIMARY), Refusal.TARGET_PRIMARY),
        (SyncDirection.REVERSE, Standing(None), Refusal.TARGET_UNKNOWN),
    ],
)
def test_data_flows_from_the_serving_server_only(
    direction: SyncDirection, standing: Standing, reason: Refusal | None
) -> None:
    """The whole table of who may give to whom."""
    if reason is None:
        check_direction(direction, standing)
        return
    with pytest.raises(SyncRefusedError) as caught:
        check_direction(direction, standing)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("now", "good", "share", "text"),
    [
        (Size(10, 100), None, 0.5, None),
        (Size(0, 0), None, 1.0, "the source is empty (no files)"),
        (Size(10, 100, 0), None, 1.0, "the source is empty (no entries)"),
        (Size(5, 50), Size(10, 100), 0.5, None),
        (Size(4, 100), Size(10, 100), 0.5, "shrank to 4 of 10 files"),
        (Size(10, 49), Size(10, 100), 0.5, "shrank to 49 of 100 bytes"),
        (Size(1, 10, 4), Size(10, 100, 10), 0.5, "shrank to 4 of 10 entries"),
        (Size(10, 100, 4), Size(10, 100, None), 0.5, None),
        (Size(1, 1), Size(10, 100), 1.0, None),
    ],
)
def test_a_source_that_shrank_is_refused(now: Size, good: Size | None, share: float, text: str | None) -> None:
    """Exactly at the limit is allowed; nothing at all never is."""
    if text is None:
        check_size(now, good, share)
        return
    with pytest.raises(SyncRefusedError, match=text.replace("(", r"\(").replace(")", r"\)")):
        check_size(now, good, share)


def test_context_csn_is_a_time_per_server() -> None:
    """With and without fractions; what is no CSN is left out."""
    values = [
        "20260101000000.500000Z#000000#000#000000",
        "20260101000010Z#000000#001#000000",
        "nonsense",
        "2026#000000#002#000000",
    ]
    parsed = replication.parse(values)
    assert parsed == {"000": 1767225600.5, "001": 1767225610.0}


@pytest.mark.parametrize(
    ("giver", "receiver", "lag", "missing"),
    [
        ({"001": 100.0}, {"001": 100.0}, 0.0, ()),
        ({"001": 100.0}, {"001": 90.5}, 9.5, ()),
        ({"001": 100.0}, {"001": 101.0}, 0.0, ()),  # the receiver may know more
        ({"001": 100.0, "002": 50.0}, {"001": 99.0, "002": 20.0}, 30.0, ()),
        ({"001": 100.0, "002": 50.0}, {"001": 100.0}, 0.0, ("002",)),
        ({"001": 100.0}, {}, None, ("001",)),
        ({}, {"001": 1.0}, None, ()),
    ],
)
def test_how_far_a_replica_is_behind(
    giver: dict[str, float], receiver: dict[str, float], lag: float | None, missing: tuple[str, ...]
) -> None:
    """The worst of all servers' lags; a server never heard of has no lag, it is missing."""
    assert replication.behind(giver, receiver) == (lag, missing)


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_preset_is_a_valid_table(preset: Path, tmp_path: Path) -> None:
    """As it stands it can be pasted below a service; the helpers it names are shipped and are sh."""
    text = preset.read_text()
    assert text.count("[service.sync]") == 1
    service = load(with_sync(tmp_path, text.split("[service.sync]\n", 1)[1])).services[0]
    assert service.sync is not None
    for command in (service.sync.before, service.sync.count, service.sync.verify, service.sync.after):
        if command and command[0].startswith("/usr/local/sbin/"):
            helper = PRESETS / Path(command[0]).name
            assert helper.stat().st_mode & stat.S_IXUSR
            done = subprocess.run(["/bin/sh", "-n", str(helper)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["-h", "-V", "--nonsense"])
def test_help_and_a_wrong_command_line_are_never_ok(word: str) -> None:
    """The exit codes of every plugin: a core may run failover-sync too."""
    with pytest.raises(SystemExit) as end:
        run.parser().parse_args([word])
    assert end.value.code == 3
