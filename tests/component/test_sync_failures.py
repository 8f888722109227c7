"""What a failed, stopped or killed failover-sync leaves behind: the standby as it was, and a line that says why."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from check_failover import syncstate
from check_failover.syncstate import Phase, Refusal
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


FAILING = {
    'before = ["/bin/false"]': "primary (root@127.0.0.1): false: exit 1: no message",
    'before = ["/bin/ls", "/nonexistent"]': "cannot access '/nonexistent': No such file or directory",
    'before = ["/nonexistent"]': "failed to run command",
    'before = ["/bin/sleep", "30"]\ntimeout = 1': "primary (root@127.0.0.1): sleep: not done within 1 s",
    'verify = ["/bin/false"]': "standby (root@127.0.0.2): false: exit 1",
}


def test_a_step_that_fails_leaves_the_standby_as_it_was(syncing: Syncing) -> None:
    """The copy, the link and the text for a person; the next good run cleans up."""
    ok(syncing.sync())
    good, link = contents(syncing.standby), syncing.standby.readlink()
    fill(syncing.primary, {"new": "1"})
    for keys, text in FAILING.items():
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
    after = script(
        syncing.place / "after",
        f'echo run >> {syncing.place}/runs\ntest ! -e "$1/bad" || {{ echo no good >&2; exit 3; }}',
    )
    syncing.configure(f'after = ["{after}", "{{current}}"]')
    ok(syncing.sync())
    good, link = contents(syncing.standby), syncing.standby.readlink()
    fill(syncing.primary, {"bad": "1"})
    text = "after: exit 3: no good; the previous copy serves again"
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
    refused(syncing, syncing.sync(), Refusal.FAILED, "there is no previous copy")
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
        refused(syncing, syncing.sync(), Refusal.FAILED, "keeps changing while rsync reads it")
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
    refused(
        syncing, syncing.sync(), Refusal.NOT_ADOPTED, "is an ordinary directory; run once: failover-sync --adopt web"
    )
    (syncing.standby / "old").unlink()
    syncing.standby.rmdir()
    syncing.standby.symlink_to("/etc")
    refused(syncing, syncing.sync(), Refusal.NOT_ADOPTED, "is foreign (/etc); set another path")


def slow(syncing: Syncing, key: str) -> Path:
    """A command in that place which waits until it is killed; returns the file that shows it started."""
    command = script(syncing.place / "slow", f"touch {syncing.place}/started\nexec sleep 60")
    syncing.configure(f'{key} = ["{command}"]')
    return syncing.place / "started"


def test_one_at_a_time(syncing: Syncing) -> None:
    """A second run is refused and leaves the first one's record alone."""
    started = slow(syncing, "verify")
    first = subprocess.Popen(syncing.argv(), stdout=subprocess.DEVNULL)
    poll(started.exists, 30, "the first run")
    second = syncing.sync()
    assert (second.returncode, second.stdout) == (1, "WARNING: another run of this service is in progress\n")
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
    assert syncing.state().blocks(time.time())
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not syncing.state().blocks(time.time())
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
        (["--nonsense", "web"], "UNKNOWN: failover-sync: unrecognized arguments: --nonsense"),
        (["--accept", "web"], "UNKNOWN: failover-sync: unrecognized arguments: --accept"),
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
