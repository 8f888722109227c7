"""check_failover_sync against real records and a real dry run: states, numbers, and what it cannot know."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal
from tests.lab.syncing import Syncing, fill, ok, script, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component


def made_old(syncing: Syncing, seconds: float) -> None:
    """Make the last good run that much older."""
    path = syncing.state_dir / "sync/web.json"
    record = json.loads(path.read_text())
    record["equal_at"] = time.time() - seconds
    path.write_text(json.dumps(record))


def expect(syncing: Syncing, code: int, text: str, *options: str) -> str:
    """Run the check and compare; one first line within 80 characters, starting with the state."""
    done = syncing.check(*options)
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stdout, done.stdout
    first = done.stdout.splitlines()[0].split(" | ")[0]
    assert first.startswith(("OK: ", "WARNING: ", "CRITICAL: ", "UNKNOWN: "))
    assert len(first) <= 80
    assert not done.stderr
    return done.stdout


def test_the_age_counts(syncing: Syncing) -> None:
    """The policy's limits, or ranges given by hand; never synced is critical."""
    expect(syncing, 2, "CRITICAL: the standby's data was never in step")
    ok(syncing.sync())
    out = expect(syncing, 0, "OK: the standby's data was in step ")
    assert "s;1200;1800;0 files=30;;;0 bytes=3435B;;;0" in out
    made_old(syncing, 1300)
    expect(syncing, 1, "in step 22 min ago | sync_age=13")
    expect(syncing, 0, "sync_age=13", "-w", "2000", "-c", "3000")
    expect(syncing, 2, "s;100;200;0", "-w", "100", "-c", "200")
    made_old(syncing, 1900)
    expect(syncing, 2, "in step 32 min ago")


def test_a_failed_run_and_a_damaged_record_are_told(syncing: Syncing) -> None:
    """Why the last run did not succeed stands in the line; what cannot be read is UNKNOWN, not OK."""
    ok(syncing.sync())
    syncing.configure('before = ["/bin/ls", "/nonexistent"]')
    assert syncing.sync().returncode == 1
    expect(syncing, 1, "cannot access '/nonexistent'")
    syncing.target = "standby"
    assert syncing.sync().returncode == 1
    problem = syncing.state().problem
    assert problem is not None
    assert problem.reason is Refusal.TARGET_STANDBY
    expect(syncing, 0, "OK: the standby serves: nothing is copied to it")
    (syncing.state_dir / "sync/web.json").write_text("{")
    expect(syncing, 3, "web.json: damaged")


def test_files_are_compared_where_asked(syncing: Syncing) -> None:
    """A dry run of rsync: files and bytes, with ranges of their own."""
    ok(syncing.sync())
    out = expect(syncing, 0, "no file differs", "--differences")
    assert "differing_files=0;;;0 differing_bytes=0B;;;0" in out
    fill(syncing.primary, {"new": "12345", "d0/f3": "x"})
    (syncing.primary / "d1/f1").unlink()
    out = expect(syncing, 1, "WARNING: 3 files differ (6 bytes)", "--differences", "--warning-files", "2")
    assert "differing_files=3;2;;0 differing_bytes=6B" in out
    expect(syncing, 2, "CRITICAL: 3 files differ", "--differences", "--critical-files", "2")


def test_a_comparison_that_takes_too_long_is_given_up(syncing: Syncing, tmp_path: Path) -> None:
    """Bounded by -t: UNKNOWN, the sync age is still told, and nothing is left running."""
    ok(syncing.sync())
    slow = script(tmp_path / "rsync", f"echo $$ > {tmp_path}/pid\nexec sleep 30")
    syncing.configure(f'rsync_path = "{slow}"')
    began = time.monotonic()
    out = expect(syncing, 3, "files not compared within", "--differences", "-t", "3")
    assert time.monotonic() - began < 8
    assert "sync_age=" in out
    syncing.configure("", standby="root@127.0.0.3")
    expect(syncing, 3, "cannot reach it", "--differences")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--nonsense"], "unrecognized arguments"),
        (["-w", "x"], "not a range"),
        (["--service", "dns"], "no service 'dns'"),
        (["--config", os.devnull], "'service' is a required property"),
    ],
)
def test_a_typing_error_is_unknown(syncing: Syncing, options: list[str], text: str) -> None:
    """Exit 3, never argparse's 2, which would be CRITICAL."""
    expect(syncing, 3, text, *options)
