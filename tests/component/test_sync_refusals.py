"""What failover-sync refuses: to move data against the direction of truth, and to copy a wiped source."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal, SyncDirection
from tests.lab.netns import poll
from tests.lab.syncing import (  # noqa: F401
    FILES,
    Syncing,
    as_json,
    contents,
    fill,
    ok,
    refused,
    script,
    servers_fixture,
    syncing_fixture,
)

pytestmark = pytest.mark.component


def test_nothing_moves_towards_the_serving_standby(syncing: Syncing) -> None:
    """Its data is the newer; refused, and Nagios has nothing to worry about."""
    ok(syncing.sync())
    syncing.target = "standby"
    fill(syncing.standby, {"written": "by a client"})
    refused(syncing, syncing.sync(), Refusal.TARGET_STANDBY, "the standby serves")
    assert (syncing.standby / "written").exists()


def test_nothing_moves_while_nobody_knows_who_serves(syncing: Syncing) -> None:
    """A redirector that does not answer may have flipped."""
    (syncing.run_dir / "redirector.sock").unlink()
    refused(syncing, syncing.sync(), Refusal.TARGET_UNKNOWN, "the serving server is unknown")
    assert syncing.versions("standby") == []


@pytest.mark.parametrize("verdict", ["suspect", "failed"])
def test_nothing_comes_from_a_failing_primary(syncing: Syncing, verdict: str) -> None:
    """The sniffer's verdict is enough."""
    syncing.verdict = verdict
    refused(syncing, syncing.sync(), Refusal.PRIMARY_FAILING, f"the sniffer's verdict is {verdict} (no reply)")


def test_a_pending_fail_over_stops_a_sync(syncing: Syncing) -> None:
    """The core has judged already."""
    syncing.pending = "sync-stale: too old"
    refused(syncing, syncing.sync(), Refusal.PRIMARY_FAILING, "a fail-over is pending: sync-stale: too old")


def test_a_flip_in_the_middle_of_a_run_ends_it_before_the_switch(syncing: Syncing) -> None:
    """Asked again at the last moment: the standby keeps the copy it began to serve."""
    ok(syncing.sync())
    serving = syncing.standby.resolve()
    fill(syncing.primary, {"new": "1"})
    go = syncing.place / "go"
    wait = script(syncing.place / "wait", f"touch {syncing.place}/staged\nuntil [ -e {go} ]; do sleep 0.05; done")
    syncing.configure(f'verify = ["{wait}"]')
    run = subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, text=True)
    poll((syncing.place / "staged").exists, 30, "staged")
    assert syncing.state().running is not None
    assert not syncing.state().blocks(time.time())  # a fail-over may come: the standby is whole
    syncing.target = "standby"
    go.touch()
    out, _ = run.communicate(timeout=30)
    assert "[target-is-standby]" in out
    assert syncing.standby.resolve() == serving


def test_reverse_brings_back_what_the_standby_took_in(syncing: Syncing) -> None:
    """Refused while the primary serves and until its directory was adopted; then both are equal and it is recorded."""
    ok(syncing.sync())
    back = syncing.sync("--reverse")
    assert back.returncode == 1
    assert "the primary serves" in back.stdout
    assert syncing.state().problem is None  # a person's mistake is no news about the data
    syncing.target, syncing.since = "standby", time.time()
    fill(syncing.standby, {"d0/f0": "changed", "new": "on the standby"})
    refused(syncing, syncing.sync("--reverse"), Refusal.NOT_ADOPTED, "once: failover-sync --adopt web")
    assert "adopted on primary" in ok(syncing.sync("--adopt"))
    assert "needs no adoption" in ok(syncing.sync("--adopt"))
    assert contents(syncing.primary).keys() == FILES.keys()
    ok(syncing.sync("--reverse"))
    assert contents(syncing.primary) == contents(syncing.standby)
    assert (syncing.primary / "new").read_text() == "on the standby"
    state = syncing.state()
    assert state.direction is SyncDirection.REVERSE
    assert state.brought_back(syncing.since, time.time(), 900)
    syncing.target, syncing.since = "primary", time.time()
    assert not state.brought_back(syncing.since, time.time(), 900)


def test_after_a_flip_the_next_run_loads_anew_even_if_files_are_equal(syncing: Syncing) -> None:
    """What the standby's service changed beside the copied files (its database) would stay otherwise."""
    syncing.configure(f'after = ["/usr/bin/touch", "{syncing.place}/after"]')
    ok(syncing.sync())
    (syncing.place / "after").unlink()
    syncing.since = time.time()
    ok(syncing.sync())
    assert (syncing.place / "after").exists()


def test_a_wiped_primary_does_not_wipe_the_standby(syncing: Syncing) -> None:
    """Empty, or with less than half its files or bytes: refused, critical, and the relay is not touched either."""
    ok(syncing.sync())
    good = contents(syncing.standby)
    for name in sorted(FILES)[:16]:
        (syncing.primary / name).unlink()
    gone = syncing.sync()
    assert gone.returncode == 2
    refused(syncing, gone, Refusal.SHRUNK, "the source shrank to 14 of 30 files")
    subprocess.run(["/bin/rm", "-rf", *map(str, syncing.primary.glob("*"))], check=True)
    refused(syncing, syncing.sync(), Refusal.SHRUNK, "the source is empty")
    syncing.primary.rmdir()
    refused(syncing, syncing.sync(), Refusal.FAILED, "No such file or directory")
    assert contents(syncing.standby) == good
    assert contents(syncing.state_dir / "sync/web.relay/forward") == good


def test_fewer_bytes_count_as_well(syncing: Syncing) -> None:
    """A file cut short, as by a full disk."""
    ok(syncing.sync())
    for name in FILES:
        (syncing.primary / name).write_text("")
    refused(syncing, syncing.sync(), Refusal.SHRUNK, "bytes; if that is intended: --accept-shrink")


def test_fewer_entries_count_as_well(syncing: Syncing) -> None:
    """Files of the same size may hold fewer entries."""
    syncing.configure('count = ["/bin/echo", "1000"]')
    ok(syncing.sync())
    syncing.configure('count = ["/bin/echo", "499"]')
    refused(syncing, syncing.sync(), Refusal.SHRUNK, "the source shrank to 499 of 1000 entries")
    syncing.configure('count = ["/bin/echo", "0"]')
    refused(syncing, syncing.sync(), Refusal.SHRUNK, "no entries")
    syncing.configure('count = ["/bin/echo", "many"]')
    refused(syncing, syncing.sync(), Refusal.FAILED, "count: printed 'many\\n', not a number")
    syncing.configure('count = ["/bin/echo", "501"]')
    ok(syncing.sync())


def test_a_person_may_accept_the_shrink_once(syncing: Syncing) -> None:
    """Afterwards the new size is the good one."""
    ok(syncing.sync())
    subprocess.run(["/bin/rm", "-rf", str(syncing.primary / "d0"), str(syncing.primary / "d1")], check=True)
    assert syncing.sync().returncode == 2
    ok(syncing.sync("--accept-shrink"))
    ok(syncing.sync())
    assert contents(syncing.standby) == contents(syncing.primary)


def test_a_lost_record_does_not_lose_the_guard(syncing: Syncing) -> None:
    """Without a last good run what the standby has is the measure; a damaged record is one that is lost."""
    ok(syncing.sync())
    for name in sorted(FILES)[:20]:
        (syncing.primary / name).unlink()
    record = syncing.state_dir / "sync" / "web.json"
    for spoil in (record.unlink, lambda: record.write_text('{"equal_at": ')):
        spoil()
        refused(syncing, syncing.sync(), Refusal.SHRUNK, "the source shrank to 10 of 30 files")


# ---------------------------------------------------------------- a run that is started elsewhere


@pytest.fixture
def elsewhere(syncing: Syncing) -> Iterator[Syncing]:
    """failover-sync on another machine than the controller, which it reaches by ssh (at the primary's address)."""
    servers, root = syncing.servers, Path(__file__).parents[2]
    controller = syncing.place / "controller.toml"
    controller.write_text(syncing.config.read_text())
    serve = f"cd {root} && echo $$ >{syncing.place}/home.pid && exec {sys.executable} -m check_failover.sync.run"
    serve += f" --config {controller} --serve-home web"
    gate = script(
        syncing.place / "gate",
        f'case $SSH_ORIGINAL_COMMAND in *failover-sync*) {serve} ;; esac\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
    )
    key = (servers.place / "id.pub").read_text()
    servers.disconnect()
    servers.authorise(f'command="{gate}" {key}')
    worker = syncing.place / "worker"
    worker.mkdir()
    syncing.configure(f'controller = "{servers.targets["primary"]}"', run=str(worker), state=str(worker))
    try:
        yield syncing
    finally:
        servers.disconnect()
        servers.authorise(key)


def test_the_controller_keeps_record_and_lock_wherever_the_run_is(elsewhere: Syncing) -> None:
    """The record is the controller's, and so is the word about who serves."""
    ok(elsewhere.sync())
    assert contents(elsewhere.standby) == contents(elsewhere.primary)
    assert elsewhere.state().equal_at is not None
    assert not (elsewhere.place / "worker/sync/web.json").exists()
    elsewhere.target = "standby"
    refused(elsewhere, elsewhere.sync(), Refusal.TARGET_STANDBY, "the standby serves")
    with (elsewhere.state_dir / "sync/web.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = elsewhere.sync()
    assert (done.returncode, done.stdout) == (1, "WARNING: another run of this service is in progress\n")


def test_a_controller_that_goes_away_stops_the_run_before_the_switch(elsewhere: Syncing) -> None:
    """Without it nobody can say who serves: the standby keeps its copy."""
    ok(elsewhere.sync())
    serving = elsewhere.standby.resolve()
    fill(elsewhere.primary, {"new": "1"})
    command = script(elsewhere.place / "lose", f"kill -KILL $(cat {elsewhere.place}/home.pid)")
    text = elsewhere.config.read_text()
    elsewhere.config.write_text(f'{text}verify = ["{command}"]\n')
    done = elsewhere.sync()
    assert done.returncode == 3, done.stdout
    assert "controller (root@127.0.0.1): no answer" in done.stdout
    assert elsewhere.standby.resolve() == serving
    assert elsewhere.state().running is None
