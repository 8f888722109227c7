"""failover-sync over real ssh and rsync: what it copies, what it refuses, and what a failed run leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover import syncstate
from check_failover.syncstate import Direction, Phase, Refusal
from tests.lab.netns import poll
from tests.lab.sshd import Servers
from tests.lab.syncing import Syncing, as_json, contents, fill

pytestmark = pytest.mark.component

FILES = {f"d{i % 3}/f{i}": f"file {i}\n" * i for i in range(30)}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both servers' sshd, for all tests here."""
    with Servers(tmp_path_factory.mktemp("servers")) as made:
        yield made


@pytest.fixture
def syncing(servers: Servers, tmp_path: Path) -> Iterator[Syncing]:
    """A service whose primary has files and whose standby has nothing."""
    for who in ("primary", "standby"):
        subprocess.run(["/bin/rm", "-rf", *map(str, (servers.place / who).glob("*"))], check=True)
    made = Syncing(tmp_path, servers)
    fill(made.primary, FILES)
    yield made
    made.close()


def ok(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a run that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("OK: "), done.stdout
    assert done.stdout.count("\n") == 1
    return done.stdout


def refused(syncing: Syncing, done: subprocess.CompletedProcess[str], reason: Refusal, text: str) -> None:
    """That run did nothing, for that reason, and the record says so."""
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert text in done.stdout
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    problem = syncing.state().problem
    assert problem is not None
    assert problem.reason is reason


# ---------------------------------------------------------------- copying


def test_the_standby_gets_a_copy_and_only_changes_afterwards(syncing: Syncing) -> None:
    """Unchanged files are the same inode in old and new copy; the copy before the last is kept, older ones are not."""
    ok(syncing.sync())
    assert contents(syncing.standby) == contents(syncing.primary)
    first = syncing.standby.resolve()
    for text in ("two", "three"):
        (syncing.primary / "d0/f0").write_text(text)
        (syncing.primary / "d1/f1").unlink(missing_ok=True)
        line = ok(syncing.sync())
        assert contents(syncing.standby) == contents(syncing.primary)
    assert "1 files differed" in line
    assert not first.exists()
    assert [name[:8] for name in syncing.versions("standby")] == ["v-000002", "v-000003"]
    assert (syncing.standby / "d2/f2").stat().st_nlink == 2
    state = syncing.state()
    assert state.size is not None
    assert (state.size.files, state.changed, state.running, state.problem) == (29, True, None, None)
    assert time.time() - 30 < (state.equal_at or 0) < time.time()


def test_where_nothing_differs_the_standby_is_left_alone(syncing: Syncing) -> None:
    """A new time stamp alone, as on a file exported anew, switches nothing and runs no ``after``."""
    syncing.configure(f'after = ["/usr/bin/touch", "{syncing.place}/after"]')
    ok(syncing.sync())
    (syncing.place / "after").unlink()
    before = syncing.standby.resolve()
    os.utime(syncing.primary / "d0/f0", (1, 1))
    ok(syncing.sync())
    assert syncing.standby.resolve() == before
    assert not (syncing.place / "after").exists()
    assert not syncing.state().changed


def test_a_change_that_hides_behind_size_and_time_is_found(syncing: Syncing) -> None:
    """Contents are compared, so a file damaged in place on the standby is put right."""
    ok(syncing.sync())
    damaged = syncing.standby / "d2/f5"
    at = damaged.stat().st_mtime_ns
    damaged.write_text(damaged.read_text().replace("file", "fool"))
    os.utime(damaged, ns=(at, at))
    ok(syncing.sync())
    assert contents(syncing.standby) == contents(syncing.primary)


def test_names_and_kinds_of_files_arrive_as_they_are(syncing: Syncing) -> None:
    """Spaces, quotes, newlines, dashes, unicode, links, empty directories, modes."""
    odd = {"a b": "1", 'it\'s "$HOME" `x`': "2", "new\nline": "3", "-rf": "4", "ünï/çode": "5", "*deleting": "6"}
    fill(syncing.primary, odd)
    (syncing.primary / "empty").mkdir()
    (syncing.primary / "link").symlink_to("a b")
    (syncing.primary / "-rf").chmod(0o600)
    os.mkfifo(syncing.primary / "fifo")
    ok(syncing.sync())
    assert contents(syncing.standby) == contents_without_fifo(syncing.primary)
    assert (syncing.standby / "link").readlink() == Path("a b")
    assert (syncing.standby / "empty").is_dir()
    assert (syncing.standby / "-rf").stat().st_mode & 0o777 == 0o600
    assert not (syncing.standby / "fifo").exists()
    ok(syncing.sync())
    assert not syncing.state().changed


def contents_without_fifo(directory: Path) -> dict[str, str]:
    """As ``contents``; a FIFO would block a reader."""
    (directory / "fifo").unlink()
    return contents(directory)


def test_excluded_files_stay_where_they_are(syncing: Syncing) -> None:
    """They are neither copied nor counted nor taken for a difference."""
    syncing.configure('exclude = ["*.tmp", "/d1"]')
    fill(syncing.primary, {"x.tmp": "no", "d2/y.tmp": "no"})
    ok(syncing.sync())
    names = set(contents(syncing.standby))
    assert names == {name for name in FILES if not name.startswith("d1/")}
    ok(syncing.sync())
    assert not syncing.state().changed


@pytest.mark.parametrize("local", ["primary", "standby"])
def test_one_end_may_be_this_machine(syncing: Syncing, local: str) -> None:
    """On a server itself there is no relay: data goes straight to the other."""
    mine = syncing.servers.place / local / "data"
    syncing.servers.srv.joinpath("data").symlink_to(mine) if local == "primary" else None
    if local == "standby":
        syncing.configure("", standby="local", srv=str(syncing.servers.srv))
        more = f'to = "{mine}"'
    else:
        more = ""
    try:
        syncing.configure(more, **{local: "local"})
        ok(syncing.sync())
        assert contents(syncing.standby) == contents(syncing.primary)
        assert not (syncing.state_dir / "sync" / "web.relay").exists()
        fill(syncing.primary, {"new": "1"})
        ok(syncing.sync())
        assert contents(syncing.standby) == contents(syncing.primary)
    finally:
        syncing.servers.srv.joinpath("data").unlink(missing_ok=True)


def test_commands_get_their_places_and_no_shell(syncing: Syncing) -> None:
    """``before``, ``count`` run on the primary, ``verify`` sees the staged copy and the count, ``after`` the link."""
    script = syncing.place / "note"
    script.write_text(
        f'#!/bin/sh\necho "$(ls {syncing.servers.srv}/../$1 | wc -l) $2|$3|$4" >> {syncing.place}/notes\n'
    )
    script.chmod(0o755)
    syncing.configure(
        f'before = ["{script}", "primary", "before", "{{source}}", "a b; $HOME"]\n'
        'count = ["/bin/echo", "7"]\n'
        f'verify = ["{script}", "standby", "verify", "{{staged}}", "{{entries}}"]\n'
        f'after = ["{script}", "standby", "after", "{{current}}", "{{name}} {{direction}}"]\n'
    )
    ok(syncing.sync())
    srv = syncing.servers.srv
    before, verify, after = [line.split(" ", 1)[1] for line in (syncing.place / "notes").read_text().splitlines()]
    assert before == f"before|{srv}/data|a b; $HOME"
    assert verify.startswith(f"verify|{srv}/data.sync/staging-000001-")
    assert verify.endswith("|7")
    assert after == f"after|{srv}/data|web forward"
    size = syncing.state().size
    assert size is not None
    assert size.entries == 7


def test_a_dry_run_says_what_differs_and_touches_nothing(syncing: Syncing) -> None:
    """Differences as text and as JSON; no record, no staging directory, no command."""
    syncing.configure(f'before = ["/usr/bin/touch", "{syncing.place}/before"]')
    assert as_json(syncing.sync("--dry-run", "--json").stdout)["differed_files"] == 30
    ok(syncing.sync())
    fill(syncing.primary, {"new": "12345"})
    (syncing.place / "before").unlink()
    (syncing.primary / "d0/f0").unlink()
    copies, record = syncing.versions("standby"), syncing.state()
    assert "2 of 30 files differ (5 bytes); nothing was changed" in ok(syncing.sync("--dry-run"))
    found = as_json(syncing.sync("--dry-run", "--json").stdout)
    assert found == {"files": 30, "differed_files": 2, "differed_bytes": 5}
    assert syncing.versions("standby") == copies
    assert syncing.state() == record
    assert not (syncing.place / "before").exists()


# ---------------------------------------------------------------- the direction of truth


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
    refused(syncing, syncing.sync(), Refusal.TARGET_UNKNOWN, "nobody says which server serves")
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
    wait = syncing.place / "wait"
    wait.write_text(f"#!/bin/sh\ntouch {syncing.place}/staged\nuntil [ -e {go} ]; do sleep 0.05; done\n")
    wait.chmod(0o755)
    syncing.configure(f'verify = ["{wait}"]')
    run = subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, text=True)
    poll((syncing.place / "staged").exists, 30, "staged")
    assert syncing.state().running is not None
    assert not syncing.state().blocks  # a fail-over may come: the standby is whole
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
    assert state.direction is Direction.REVERSE
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


# ---------------------------------------------------------------- a wiped source


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
    refused(syncing, syncing.sync(), Refusal.SHRUNK, "bytes; if that is right: --accept-shrink")


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


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ('before = ["/bin/false"]', "primary (root@127.0.0.1): false: exit 1: no message"),
        ('before = ["/bin/ls", "/nonexistent"]', "cannot access '/nonexistent': No such file or directory"),
        ('before = ["/nonexistent"]', "failed to run command"),
        ('before = ["/bin/sleep", "30"]\ntimeout = 1', "primary (root@127.0.0.1): sleep: not done within 1 s"),
        ('verify = ["/bin/false"]', "standby (root@127.0.0.2): false: exit 1"),
    ],
)
def test_a_step_that_fails_leaves_the_standby_as_it_was(syncing: Syncing, keys: str, text: str) -> None:
    """The copy, the link and the text for a person; the next good run cleans up."""
    ok(syncing.sync())
    good, link = contents(syncing.standby), syncing.standby.readlink()
    fill(syncing.primary, {"new": "1"})
    syncing.configure(keys)
    refused(syncing, syncing.sync(), Refusal.FAILED, text)
    assert contents(syncing.standby) == good
    assert syncing.standby.readlink() == link
    syncing.configure()
    ok(syncing.sync())
    assert contents(syncing.standby) == contents(syncing.primary)
    assert not [name for name in syncing.versions("standby") if not name.startswith("v-")]


def test_a_service_that_does_not_like_the_new_copy_gets_the_old_one_back(syncing: Syncing) -> None:
    """``after`` fails on the new copy: the link moves back and ``after`` runs once more, for the old one."""
    after = syncing.place / "after"
    after.write_text(
        f'#!/bin/sh\necho run >> {syncing.place}/runs\ntest ! -e "$1/bad" || {{ echo no good >&2; exit 3; }}\n'
    )
    after.chmod(0o755)
    syncing.configure(f'after = ["{after}", "{{current}}"]')
    ok(syncing.sync())
    good, link = contents(syncing.standby), syncing.standby.readlink()
    fill(syncing.primary, {"bad": "1"})
    text = "after: exit 3: no good; the copy before serves again"
    refused(syncing, syncing.sync(), Refusal.FAILED, text)
    assert contents(syncing.standby) == good
    assert syncing.standby.readlink() == link
    assert (syncing.place / "runs").read_text().count("run") == 3
    (syncing.primary / "bad").unlink()
    fill(syncing.primary, {"good": "1"})
    ok(syncing.sync())
    assert "good" in contents(syncing.standby)


def test_a_first_copy_that_is_not_liked_is_replaced_by_the_next(syncing: Syncing) -> None:
    """There is none to go back to; a repaired source must get through all the same."""
    syncing.configure('after = ["/usr/bin/test", "!", "-e", "{current}/bad"]')
    fill(syncing.primary, {"bad": "1"})
    refused(syncing, syncing.sync(), Refusal.FAILED, "there is no copy before this one")
    (syncing.primary / "bad").unlink()
    ok(syncing.sync())
    assert contents(syncing.standby) == contents(syncing.primary)


def test_a_source_that_never_stands_still_is_not_copied_half(syncing: Syncing) -> None:
    """A consistent copy needs a snapshot then; the text says how."""
    ok(syncing.sync())
    good = contents(syncing.standby)
    stop = threading.Event()

    def write() -> None:
        with (syncing.primary / "busy").open("w") as file:
            while not stop.wait(0.001):
                print("one more line", file=file, flush=True)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        refused(syncing, syncing.sync(), Refusal.FAILED, "keeps changing while it is read")
    finally:
        stop.set()
        writer.join()
    assert contents(syncing.standby) == good


def test_an_unreachable_server_is_named(syncing: Syncing) -> None:
    """Unknown host key, refused key, nobody there: one line each, and nothing is asked of a person."""
    syncing.configure("", standby="root@127.0.0.3")
    refused(syncing, syncing.sync(), Refusal.FAILED, "standby (root@127.0.0.3): cannot reach it: ")
    syncing.configure("", primary="nobody@127.0.0.1")
    refused(syncing, syncing.sync(), Refusal.FAILED, "Permission denied")
    known = syncing.servers.place / "known"
    text = known.read_text()
    try:
        syncing.servers.disconnect()
        known.write_text(text.replace("127.0.0.2", "127.0.0.4"))
        syncing.configure()
        refused(syncing, syncing.sync(), Refusal.FAILED, "Host key verification failed")
    finally:
        known.write_text(text)


def test_what_is_not_ours_is_not_replaced(syncing: Syncing) -> None:
    """A directory, or a link somebody else made, on the standby."""
    fill(syncing.standby, {"old": "content"})
    refused(syncing, syncing.sync(), Refusal.NOT_ADOPTED, "is an ordinary directory; once: failover-sync --adopt web")
    (syncing.standby / "old").unlink()
    syncing.standby.rmdir()
    syncing.standby.symlink_to("/etc")
    refused(syncing, syncing.sync(), Refusal.NOT_ADOPTED, "is not ours (/etc); name another path")


# ---------------------------------------------------------------- one at a time, stops and kills


def slow(syncing: Syncing, key: str) -> Path:
    """A command in that place which waits until it is killed; returns the file that shows it started."""
    script = syncing.place / "slow"
    script.write_text(f"#!/bin/sh\ntouch {syncing.place}/started\nexec sleep 60\n")
    script.chmod(0o755)
    syncing.configure(f'{key} = ["{script}"]')
    return syncing.place / "started"


def test_one_at_a_time(syncing: Syncing) -> None:
    """A second run is refused and leaves the first one's record alone."""
    started = slow(syncing, "verify")
    first = subprocess.Popen(syncing.argv(), stdout=subprocess.DEVNULL)
    poll(started.exists, 30, "the first run")
    second = syncing.sync()
    assert (second.returncode, second.stdout) == (1, "WARNING: another run of this service is under way\n")
    running = syncing.state().running
    assert running is not None
    assert (running.pid, running.phase) == (first.pid, Phase.TRANSFER)
    first.terminate()
    first.wait(15)


def test_a_stopped_run_says_so_and_ends_its_children(syncing: Syncing) -> None:
    """SIGTERM, as from systemd at shutdown."""
    started = slow(syncing, "before")
    run = subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, text=True)
    poll(started.exists, 30, "before")
    run.terminate()
    out, _ = run.communicate(timeout=15)
    assert "stopped by SIGTERM" in out
    assert not children(run.pid)
    state = syncing.state()
    assert state.running is None
    assert state.problem is not None


def test_killed_between_switch_and_after_the_next_run_finishes(syncing: Syncing) -> None:
    """The new copy serves already; the service is told by the next run."""
    ok(syncing.sync())
    fill(syncing.primary, {"new": "1"})
    started = slow(syncing, "after")
    run = subprocess.Popen(syncing.argv(), stdout=subprocess.DEVNULL)
    poll(started.exists, 30, "after")
    assert syncing.state().blocks
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not syncing.state().blocks
    assert contents(syncing.standby) == contents(syncing.primary)
    assert "pending" in syncing.versions("standby")
    syncing.configure(f'after = ["/usr/bin/touch", "{syncing.place}/after"]')
    ok(syncing.sync())
    assert (syncing.place / "after").exists()
    assert "pending" not in syncing.versions("standby")


def children(pid: int) -> list[int]:
    """All descendants of a process, from /proc."""
    found = [pid]
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) in found:
            found.append(int(entry.parent.name))
    return found[1:]


def test_a_detached_run_returns_at_once(syncing: Syncing) -> None:
    """For a core that gives its commands a short time only."""
    assert "started" in ok(syncing.sync("--detach"))
    poll(lambda: syncing.state().equal_at, 30, "the run in the background")
    assert contents(syncing.standby) == contents(syncing.primary)


def test_a_record_that_cannot_be_written_is_told(syncing: Syncing) -> None:
    """A full or read-only state directory."""
    (syncing.state_dir / "sync").mkdir()
    (syncing.state_dir / "sync" / "web.json").mkdir()
    (syncing.state_dir / "sync" / "web.json" / "x").touch()
    done = syncing.sync()
    assert done.returncode == 3
    assert "web.json: cannot write" in done.stdout
    assert syncstate.read(syncing.state_dir, "web").damaged is not None


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--nonsense", "web"], "UNKNOWN: unrecognized arguments: --nonsense"),
        (["ldap"], "UNKNOWN: "),
        (["--config", "/nonexistent", "web"], "UNKNOWN: /nonexistent: cannot read"),
    ],
)
def test_a_typing_error_is_unknown(syncing: Syncing, argv: list[str], text: str) -> None:
    """Exit 3 and one line, never argparse's 2."""
    done = subprocess.run(
        [*syncing.argv()[:3], "--config", str(syncing.config), *argv], text=True, capture_output=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout.startswith(text)
    assert done.stdout.count("\n") == 1
