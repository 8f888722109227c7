"""A run killed between its switch and ``after`` leaves ``pending`` on a server that may give data to the next run."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

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

# A service that, like slapd, works on the copy that it opened until it is restarted. What clients write goes to its db,
# and the export is taken from db of the copy that the link names. ``verify`` puts db into the staged copy.
KEYS = """
exclude = ["/db"]
before = ["{before}", "{{current}}", "{{source}}"]
verify = ["{verify}", "{{staged}}"]
after = ["{after}", "{{current}}"]
"""


class Database:
    """The service on both servers, as scripts of this test."""

    def __init__(self, syncing: Syncing) -> None:
        self.syncing, place = syncing, syncing.place
        self.hang, self.restarts = place / "hang", place / "restarts"
        before = script(place / "before", 'cat "$1"/db/* >"$2/export"')
        verify = script(place / "verify", 'mkdir "$1/db" && cp "$1/export" "$1/db/entries"')
        after = script(
            place / "after",
            f'echo "$1" >>{self.restarts}\nwhile [ -e {self.hang} ]; do touch {self.hang}.seen; sleep 0.1; done',
        )
        self.keys = KEYS.format(before=before, verify=verify, after=after)
        syncing.configure(self.keys)
        fill(syncing.primary, {"db/entries": "first\n"})

    def adopt(self) -> None:
        """Both servers have the same data, in copies that a link names."""
        ok(self.syncing.sync())
        ok(self.syncing.sync("--adopt"))

    def kill_after_the_switch(self, *options: str) -> Path:
        """A run that is killed while the service should restart; returns the copy that the service still works on."""
        receiver = self.syncing.primary if options else self.syncing.standby
        old = receiver.resolve()
        self.hang.touch()
        process = subprocess.Popen(self.syncing.argv(*options), stdout=subprocess.DEVNULL)
        poll(Path(f"{self.hang}.seen").exists, 30, "after")
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.hang.unlink()
        Path(f"{self.hang}.seen").unlink()
        self.restarts.unlink()
        assert receiver.resolve() != old
        return old

    def write(self, copy: Path, text: str) -> None:
        """A client's entry, in the copy that the service works on."""
        with (copy / "db/entries").open("a") as file:
            file.write(f"{text}\n")


@pytest.fixture
def database(syncing: Syncing) -> Database:
    """The service, with the same data on both servers."""
    made = Database(syncing)
    made.adopt()
    return made


def test_entries_of_the_standby_behind_a_killed_switch_come_back(database: Database) -> None:
    """Killed on the way to the standby, fail-over, entries in the copy that its service has open: reverse has them."""
    syncing = database.syncing
    database.write(syncing.primary, "second")
    served = database.kill_after_the_switch()
    syncing.target, syncing.since = "standby", time.time()
    database.write(served, "taken in by the standby")
    refused(syncing, syncing.sync("--reverse"), Refusal.BOTH_SERVED, "both servers have changed")  # "second"
    ok(syncing.sync("--take", "standby", "--yes"))
    assert "taken in by the standby" in (syncing.primary / "db/entries").read_text()
    assert "pending" not in syncing.versions("standby")
    assert syncing.standby.resolve() == served


def test_a_database_that_was_only_opened_has_no_entries(database: Database) -> None:
    """After a crash the standby's service opens the copy that the link names; nobody writes there before the run."""
    syncing = database.syncing
    database.write(syncing.primary, "second")
    served = database.kill_after_the_switch()
    syncing.target, syncing.since = "standby", time.time()
    database.write(served, "taken in by the standby")
    (syncing.standby / "db/lock.mdb").write_text("a reader")
    ok(syncing.sync("--take", "standby", "--yes"))
    assert "taken in by the standby" in (syncing.primary / "db/entries").read_text()
    assert syncing.standby.resolve() == served


def test_entries_in_both_copies_need_a_person(database: Database) -> None:
    """Killed on the way to the standby, entries there, a crash, more entries in the other copy: none is lost."""
    syncing = database.syncing
    database.write(syncing.primary, "second")
    served = database.kill_after_the_switch()
    syncing.target, syncing.since = "standby", time.time()
    database.write(served, "before the crash")
    database.write(syncing.standby, "after the crash")
    for _ in range(2):
        text = f"the earlier: standby (root@127.0.0.2): {syncing.servers.srv}/data.sync/{served.name}"
        refused(syncing, syncing.sync("--reverse"), Refusal.BOTH_SERVED, text)
    said = ok(syncing.sync("--take", "standby", "--yes"))
    assert "after the crash" in (syncing.primary / "db/entries").read_text()
    (kept,) = syncing.standby.with_name("data.sync").glob("kept-*")
    assert "before the crash" in (kept / "db/entries").read_text()
    assert kept.name in said
    assert kept.name in syncing.state().kept
    assert "pending" not in syncing.versions("standby")


@pytest.mark.parametrize("both", [False, True])
def test_a_flip_that_did_not_wait_for_the_switch(database: Database, both: bool) -> None:
    """A fail-over waits no longer for ``after``; clients write to the earlier copy: it serves again, or is named."""
    syncing = database.syncing
    database.write(syncing.primary, "second")
    old = syncing.standby.resolve()
    database.hang.touch()
    with subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, text=True) as process:
        poll(Path(f"{database.hang}.seen").exists, 30, "after")
        syncing.target, syncing.since = "standby", time.time()
        database.write(old, "to the copy before")
        if both:
            database.write(syncing.standby, "to the new copy")
        database.hang.unlink()
        said = process.communicate(timeout=30)[0]
    assert syncing.standby.resolve() == old or both
    assert ("both-served" in said and str(old.name) in said) or ("still-reached" in said and not both), said
    refused(syncing, syncing.sync("--reverse"), Refusal.BOTH_SERVED, old.name if both else "both servers have changed")
    ok(syncing.sync("--take", "standby", "--yes"))
    assert ("to the new copy" if both else "to the copy before") in (syncing.primary / "db/entries").read_text()
    kept = "".join((one / "db/entries").read_text() for one in syncing.standby.with_name("data.sync").glob("kept-*"))
    assert ("to the copy before" in kept) is both


def test_entries_of_the_primary_behind_a_killed_switch_reach_the_standby(database: Database) -> None:
    """Killed on the way back, fail-back, entries in the copy that the primary has open: forward has them."""
    syncing = database.syncing
    syncing.target, syncing.since = "standby", time.time()
    database.write(syncing.standby, "on the standby")
    served = database.kill_after_the_switch("--reverse")
    syncing.target, syncing.since = "primary", time.time()
    database.write(served, "taken in by the primary")
    refused(syncing, syncing.sync(), Refusal.BOTH_SERVED, "both servers have changed")
    ok(syncing.sync("--take", "primary", "--yes"))
    assert "taken in by the primary" in (syncing.standby / "db/entries").read_text()
    assert "pending" not in syncing.versions("primary")


def test_a_giver_without_writes_serves_what_its_link_names_before_its_export(database: Database) -> None:
    """Nothing is lost by finishing: ``after`` runs on the giving server first, and the age counts from the export."""
    syncing = database.syncing
    syncing.target, syncing.since = "standby", time.time()
    database.write(syncing.standby, "on the standby")
    database.kill_after_the_switch("--reverse")
    syncing.target, syncing.since = "primary", time.time()
    refused(syncing, syncing.sync(), Refusal.BOTH_SERVED, "both servers have changed")  # the killed run did not say
    ok(syncing.sync("--take", "primary", "--yes"))
    assert len(database.restarts.read_text().splitlines()) >= 2  # the giver, then the receiver
    assert "pending" not in syncing.versions("primary")
    assert "on the standby" in (syncing.standby / "db/entries").read_text()


def test_the_age_counts_from_the_export(database: Database) -> None:
    """What was repaired before it is not part of the data's age."""
    syncing = database.syncing
    database.write(syncing.primary, "second")
    database.kill_after_the_switch()
    script(syncing.place / "after", f"sleep 2\necho run >>{database.restarts}")
    ok(syncing.sync())
    state = syncing.state()
    assert state.equal_at is not None
    assert state.equal_at >= database.restarts.stat().st_mtime


def test_a_giver_that_accepts_neither_copy_gives_nothing(database: Database) -> None:
    """Nobody knows then what its clients see; the receiving server keeps what it has."""
    syncing = database.syncing
    syncing.target, syncing.since = "standby", time.time()
    database.write(syncing.standby, "on the standby")
    database.kill_after_the_switch("--reverse")
    syncing.target, syncing.since = "primary", time.time()
    good = contents(syncing.standby)
    script(syncing.place / "after", "exit 4")
    text = "switching back failed too, check the primary (root@127.0.0.1): primary (root@127.0.0.1): after: exit 4"
    refused(syncing, syncing.sync(), Refusal.FAILED, text)
    assert contents(syncing.standby) == good
