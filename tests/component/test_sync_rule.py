"""No run overwrites what clients wrote to a server, before the other one has it or a person says that it may go."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest

from check_failover.model import State
from check_failover.sync import lineage, run
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


def way(server: str, why: str, begin: float, end: float | None = None, count: int = 0) -> dict[str, Any]:
    """How clients reach a server, as the redirector says it."""
    return {"server": server, "why": why, "begin": begin, "end": end, "count": count}


@pytest.fixture
def step(syncing: Syncing) -> Syncing:
    """Both servers have the same data, in copies that a link names; the primary serves."""
    ok(syncing.sync())
    ok(syncing.sync("--adopt"))
    return syncing


@pytest.fixture
def database(syncing: Syncing) -> Syncing:
    """A service whose data is exported: clients' writes go to db, which is not copied as it is."""
    before = script(syncing.place / "before", 'mkdir -p "$2" && cat "$1"/db/* >"$2/export"')
    verify = script(syncing.place / "verify", 'mkdir "$1/db" && cp "$1/export" "$1/db/entries"')
    syncing.configure(
        f'exclude = ["/db"]\nto = "{syncing.servers.srv}/data"\n'
        f'before = ["{before}", "{{current}}", "{{source}}"]\nverify = ["{verify}", "{{staged}}"]',
        source=f"{syncing.servers.srv}/export",
    )
    fill(syncing.primary, {"db/entries": "first\n"})
    ok(syncing.sync())
    ok(syncing.sync("--adopt"))
    return syncing


def test_a_client_that_stays_after_a_drained_fail_back_keeps_its_writes(step: Syncing) -> None:
    """Drain, reverse, fail-back with a drain: one client writes on to the standby, and the timer runs."""
    out = time.time()
    step.target, step.since = "standby", out
    step.reached = [way("primary", "serves", 0, out), way("standby", "serves", out), way("primary", "drain", out)]
    fill(step.standby, {"entry": "of a client"})
    refused(step, step.sync("--reverse"), Refusal.STILL_REACHED, "clients may write to the primary now: drain since")
    step.reached[2]["end"] = time.time()
    ok(step.sync("--reverse"))

    back = time.time()
    step.target, step.since = "primary", back
    step.reached[1]["end"] = back
    step.reached += [way("primary", "serves", back), way("standby", "drain", back)]
    fill(step.standby, {"late": "acknowledged"})
    refused(step, step.sync(), Refusal.STILL_REACHED, "clients may write to the standby now: drain since")
    step.reached[-1]["end"] = time.time()
    refused(step, step.sync(), Refusal.OTHER_DIRECTION, "only the standby has changed")
    fill(step.primary, {"other": "by a client of the primary"})
    refused(step, step.sync(), Refusal.BOTH_SERVED, "both servers have changed since they were in step (standby: ")
    assert step.check().returncode == State.CRITICAL
    assert (step.standby / "late").read_text() == "acknowledged"

    shown = step.sync("--diff")
    assert shown.returncode == State.WARNING
    lines = ["WARNING: web: 2 files differ", "late: only on the standby", "other: only on the primary"]
    assert shown.stdout.splitlines() == lines
    refused_by_itself = step.sync("--take", "primary")
    assert refused_by_itself.returncode == State.UNKNOWN
    assert "add --yes" in refused_by_itself.stdout
    said = ok(step.sync("--take", "primary", "--yes"))
    assert "decided that the primary's data counts" in said
    assert contents(step.standby) == contents(step.primary)
    (kept,) = [name for name in step.versions("standby") if name.startswith("kept-")]
    assert kept.endswith("-standby")
    assert f"data.sync/{kept}" in said
    assert f"data.sync/{kept}" in step.state().kept
    assert (step.servers.place / "standby/data.sync" / kept / "late").read_text() == "acknowledged"
    (decided,) = step.decided
    assert (decided["service"], decided["run"], decided["source"]) == ("web", "take", "primary")
    assert decided["kept"] == step.state().kept
    ok(step.sync())


def test_what_the_other_controller_may_have_done_stops_a_run(step: Syncing) -> None:
    """While it is silent the standby may serve through it; if nothing was written there, all goes on afterwards."""
    step.reached = [way("primary", "serves", 0), way("standby", "peer-silent", time.time())]
    fill(step.primary, {"new": "1"})
    refused(step, step.sync(), Refusal.STILL_REACHED, "by the other controller, which is silent")
    assert not (step.standby / "new").exists()
    step.reached[1]["end"] = time.time()
    ok(step.sync())
    assert (step.standby / "new").exists()


def test_a_run_waits_until_it_knows_what_the_other_controller_did(step: Syncing) -> None:
    """It was heard some seconds ago: then it is heard again, or the redirector notes that it is silent."""
    step.reached, step.unsure = [way("primary", "serves", 0)], True
    fill(step.primary, {"new": "1"})
    process = subprocess.Popen(step.argv("-v"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    time.sleep(3)  # nothing can be seen of a run that waits
    assert process.poll() is None
    assert not (step.standby / "new").exists()
    step.unsure = False
    assert process.communicate(timeout=30)[0].startswith("OK: ")
    assert (step.standby / "new").exists()

    fill(step.primary, {"newer": "1"})
    step.unsure = True
    process = subprocess.Popen(step.argv(), stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    step.reached.append(way("standby", "peer-silent", time.time() - 16))
    step.unsure = False
    assert "[still-reached]" in process.communicate(timeout=30)[0]
    assert not (step.standby / "newer").exists()


def test_a_redirector_that_never_notes_the_silence_stops_a_run(
    step: Syncing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its disk may be full."""
    monkeypatch.setattr(lineage, "PATIENCE", 1.0)
    step.unsure = True
    run.main(["--config", str(step.config), "web"])
    assert "does not know of this run, and the redirector noted no silence" in capsys.readouterr().out


def test_rescued_connections_that_wrote_nothing_stop_no_run(database: Syncing) -> None:
    """The lease is over: the standby's export is as it was."""
    begin = time.time()
    database.reached = [way("primary", "serves", 0), way("standby", "rescue", begin, begin + 60, 6)]
    fill(database.primary, {"db/entries": "first\nsecond\n"})
    refused(database, database.sync(), Refusal.STILL_REACHED, "6 connections rescued")
    database.reached[1]["end"] = time.time()
    ok(database.sync())
    assert (database.standby / "db/entries").read_text() == "first\nsecond\n"


def test_rescued_connections_that_wrote_are_told(database: Syncing) -> None:
    """What is lost otherwise is in the database, not in the copied files."""
    begin = time.time()
    fill(database.standby, {"db/entries": "first\nrescued\n"})
    database.reached = [way("primary", "serves", 0), way("standby", "rescue", begin, time.time(), 6)]
    refused(database, database.sync(), Refusal.OTHER_DIRECTION, "6 connections rescued")
    fill(database.primary, {"db/entries": "first\nsecond\n"})
    refused(database, database.sync(), Refusal.BOTH_SERVED, "6 connections rescued")
    assert (database.standby / "db/entries").read_text() == "first\nrescued\n"
    database.target = "standby"  # the timer's next run is refused for another reason, and hides nothing
    database.sync()
    assert database.check().returncode == State.CRITICAL
    ok(database.sync("--take", "standby", "--yes"))
    assert (database.primary / "db/entries").read_text() == "first\nrescued\n"
    (kept,) = (database.servers.place / "primary/data.sync").glob("kept-*")
    assert (kept / "export").read_text() == "first\nsecond\n"


def test_a_decision_without_a_redirector_says_that_no_journal_has_it(step: Syncing) -> None:
    """The redirector is away: the data is more urgent than the line."""
    fill(step.standby, {"entry": "1"})
    step.redirector_away()
    done = step.sync("--take", "standby", "--yes")
    ok(done)
    assert "web: no line about this decision in the journal: " in done.stderr
    assert "redirector.sock" in done.stderr
    assert (step.primary / "entry").read_text() == "1"


def test_clients_that_only_read_stop_no_run(step: Syncing) -> None:
    """``writes = "none"``."""
    text = step.config.read_text()
    step.config.write_text(text.replace("port = 80\n", 'port = 80\nwrites = "none"\n'))
    step.reached = [way("primary", "serves", 0), way("standby", "drain", time.time())]
    fill(step.standby, {"more": "by a person"})
    ok(step.sync())
    assert not (step.standby / "more").exists()


def test_the_primarys_own_writes_outlast_every_reverse_run(step: Syncing) -> None:
    """It failed with writes that the standby lacks; ``keep`` is 2, and three runs bring back the standby's data."""
    fill(step.primary, {"unsynced": "accepted before the failure"})
    step.target, step.since = "standby", time.time()
    fill(step.standby, {"entry": "1"})
    refused(step, step.sync("--reverse"), Refusal.BOTH_SERVED, "both servers have changed")
    assert (step.primary / "unsynced").exists()
    ok(step.sync("--take", "standby", "--yes"))
    assert step.state().brought_back(step.since, time.time(), 900)
    for entry in "23":
        fill(step.standby, {"entry": entry})
        ok(step.sync("--reverse"))
    assert (step.primary / "entry").read_text() == "3"
    (kept,) = (step.servers.place / "primary/data.sync").glob("kept-*")
    assert (kept / "unsynced").read_text() == "accepted before the failure"


def test_a_change_on_the_standby_itself_is_noticed(database: Syncing) -> None:
    """The exported file is the same on both servers: only the standby's own export shows the change."""
    assert "0 files differed" in ok(database.sync())
    fill(database.standby, {"db/entries": "first\nby hand\n"})
    assert "the standby's data had been changed there and was replaced" in ok(database.sync())
    assert (database.standby / "db/entries").read_text() == "first\n"
    assert "had been changed" not in ok(database.sync())


def test_clients_that_come_during_a_run_stop_its_switch(step: Syncing) -> None:
    """Asked again at the last moment."""
    serving = step.standby.resolve()
    step.reached = [way("primary", "serves", 0)]
    wait = script(step.place / "wait", f"touch {step.place}/staged\nsleep 1")
    step.configure(f'verify = ["{wait}"]')
    fill(step.primary, {"new": "1"})
    process = subprocess.Popen(step.argv(), stdout=subprocess.PIPE, text=True)
    poll((step.place / "staged").exists, 30, "staged")
    step.reached.append(way("standby", "rescue", time.time(), time.time() + 60, 1))
    out, _ = process.communicate(timeout=30)
    assert "[still-reached]" in out
    assert step.standby.resolve() == serving
