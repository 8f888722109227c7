"""Two controllers: of their runs only one works on the receiving server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.model import State
from check_failover.syncstate import Refusal
from tests.lab.netns import poll
from tests.lab.syncing import (  # noqa: F401
    Syncing,
    contents,
    fill,
    ok,
    refused,
    script,
    servers_fixture,
    syncing_fixture,
)

pytestmark = pytest.mark.component
HELD = r"WARNING: a run of the controller \S+ works on the standby \(\S+\), (\d+) s at most\n"


@pytest.fixture
def other(syncing: Syncing) -> Iterator[Syncing]:
    """The second controller of the same servers; both servers have the same data."""
    ok(syncing.sync())
    ok(syncing.sync("--adopt"))
    place = syncing.place / "other"
    place.mkdir()
    made = Syncing(place, syncing.servers)
    yield made
    made.close()


def waiting(syncing: Syncing, timeout: int) -> tuple[subprocess.Popen[str], Path]:
    """A run with a new file that waits in ``verify`` until the returned path exists."""
    staged, goes_on = syncing.place / "staged", syncing.place / "goes-on"
    wait = script(syncing.place / "wait", f"touch {staged}; while [ ! -e {goes_on} ]; do sleep 0.1; done")
    syncing.configure(f'verify = ["{wait}"]\ntimeout = {timeout}')
    fill(syncing.primary, {"new": "1"})
    run = subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    poll(staged.exists, 30, "staged")
    return run, goes_on


def lease(syncing: Syncing) -> Path:
    return syncing.servers.place / "standby/data.sync/lease"


def test_two_runs_at_once(syncing: Syncing, other: Syncing) -> None:
    """The second one is refused, names the first one's controller, and is no problem of the data."""
    run, goes_on = waiting(syncing, 60)
    done = other.sync()
    assert done.returncode == State.WARNING, done.stdout + done.stderr
    left = re.fullmatch(HELD, done.stdout)
    assert left is not None, done.stdout
    assert 0 < int(left[1]) <= 60
    assert other.state().problem is None
    assert other.state().running is None
    goes_on.touch()
    assert run.communicate(timeout=30)[0].startswith("OK: ")
    assert not os.path.lexists(lease(syncing))
    ok(other.sync())
    assert contents(syncing.standby) == contents(syncing.primary)


def test_a_killed_runs_lease_ends(syncing: Syncing, other: Syncing) -> None:
    """Its own controller goes on at once, the other one after the lease's end."""
    run, goes_on = waiting(syncing, 8)
    began = time.time()
    run.kill()
    run.communicate()
    goes_on.touch()  # the step on the server ends
    assert re.fullmatch(HELD, other.sync().stdout)
    poll(lambda: other.sync().returncode == State.OK, 30, "the lease's end", every=1.0)
    assert time.time() - began > 5
    assert contents(syncing.standby) == contents(syncing.primary)

    goes_on.unlink()
    (syncing.place / "staged").unlink()
    fill(syncing.primary, {"more": "1"})
    run, goes_on = waiting(syncing, 60)
    run.kill()
    run.communicate()
    goes_on.touch()
    assert os.path.lexists(lease(syncing))
    ok(syncing.sync())
    assert not os.path.lexists(lease(syncing))


def test_a_stopped_run_gives_its_lease_back(syncing: Syncing, other: Syncing) -> None:
    """SIGTERM."""
    run, goes_on = waiting(syncing, 60)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=30)
    goes_on.touch()
    assert not os.path.lexists(lease(syncing))
    ok(other.sync())


def test_a_run_that_lost_its_lease_does_not_switch(syncing: Syncing, other: Syncing) -> None:
    """It was away for longer than its lease, and the other controller's run has begun."""
    run, goes_on = waiting(syncing, 60)
    serving = syncing.standby.resolve()
    lease(syncing).unlink()
    lease(syncing).symlink_to(f"{time.time() + 60:.0f} other.example.org/1")
    goes_on.touch()
    out = run.communicate(timeout=30)[0]
    assert "a run of the controller other.example.org works on the standby" in out
    assert syncing.standby.resolve() == serving
    assert os.path.lexists(lease(syncing))  # not this run's


def test_a_server_that_is_not_ours_gets_no_lease(syncing: Syncing) -> None:
    """An ordinary directory is refused as before, and nothing is made beside it."""
    fill(syncing.standby, {"by": "hand"})
    refused(syncing, syncing.sync(), Refusal.NOT_ADOPTED, "run once: failover-sync --adopt web")
    assert not (syncing.servers.place / "standby/data.sync").exists()
