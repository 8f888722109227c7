"""Every step of failover-sync has an end, here and on the servers, also over a shared ssh connection."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from check_failover.sync import hosts, run
from check_failover.sync.controller_access import RemoteAccess
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

SECONDS = 12.0  # for a run to end once it should, on a busy machine
HANGS = "trap '' TERM HUP PIPE\necho $$ >{pid}.new && mv {pid}.new {pid}\nwhile :; do sleep 1; done"


def hanging_rsync(syncing: Syncing, more: str = "") -> Path:
    """An rsync on both servers that never ends and ignores SIGTERM; returns the file with its process id."""
    ok(syncing.sync())  # the shared connections are up
    pid = syncing.place / "rsync.pid"
    command = script(
        syncing.place / "rsync", f'case "$*" in *--version*) exec rsync "$@" ;; esac\n{HANGS.format(pid=pid)}'
    )
    syncing.configure(f'rsync_path = "{command}"\n{more}')
    return pid


def lock_is_free(syncing: Syncing) -> bool:
    """Whether another run could begin."""
    with (syncing.state_dir / "sync/web.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_an_rsync_that_never_ends_there_ends_here_and_there(syncing: Syncing) -> None:
    """The shared connection keeps its pipes open: the run ends at its limit all the same, and the far rsync too."""
    pid = hanging_rsync(syncing, "timeout = 2")
    began = time.monotonic()
    refused(syncing, syncing.sync(timeout=40), Refusal.FAILED, "not done within 2 s")
    assert time.monotonic() - began < 2 + SECONDS
    assert lock_is_free(syncing)
    far = Path("/proc") / pid.read_text().strip()
    poll(lambda: not far.exists(), 30, "the end of the far rsync")


def test_sigterm_ends_a_run_whose_rsync_never_ends(syncing: Syncing) -> None:
    """systemctl stop: within seconds, with the reason in the record, and the lock is free."""
    pid = hanging_rsync(syncing, "timeout = 60")
    process = subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, text=True)
    try:
        poll(pid.exists, 30, "the hanging rsync")
        process.terminate()
        out, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
        subprocess.run(["/bin/kill", "-KILL", pid.read_text().strip()], check=False)
    assert "stopped by SIGTERM" in out
    assert lock_is_free(syncing)
    assert syncing.state().running is None


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ('count = ["/usr/bin/yes"]', "primary (root@127.0.0.1): yes: printed more than 1 MiB"),
        ('before = ["/bin/sh", "-c", "yes >&2"]', "primary (root@127.0.0.1): sh: printed more than 1 MiB of errors"),
        ('verify = ["/bin/sh", "-c", "yes | tr -d \'\\\\n\'"]', "sh: printed more than 1 MiB"),
    ],
)
def test_what_a_command_prints_has_an_end(syncing: Syncing, key: str, text: str) -> None:
    """A command that prints without end is a failed step with one line, not the controller's memory."""
    syncing.configure(key + "\ntimeout = 20")
    began = time.monotonic()
    refused(syncing, syncing.sync(), Refusal.FAILED, text)
    assert time.monotonic() - began < 15


def test_a_service_that_never_reloads_does_not_hold_up_a_fail_over(syncing: Syncing) -> None:
    """``after`` hangs: its own limit ends it, the copy before is back, and a flip waits no longer than that."""
    ok(syncing.sync())
    link = syncing.standby.readlink()
    fill(syncing.primary, {"new": "1"})
    once = syncing.place / "once"
    after = script(syncing.place / "after", f"[ -e {once} ] && exit 0\ntouch {once}\nexec sleep 600")
    syncing.configure(f'after = ["{after}"]\nafter_timeout = 3')
    process = subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, text=True)
    poll(once.exists, 30, "after")
    state = syncing.state()
    assert state.blocks(time.time())
    assert not state.blocks(time.time() + 3)
    out, _ = process.communicate(timeout=3 + SECONDS)
    assert "after: not done within 3 s; the previous copy serves again" in out
    assert syncing.standby.readlink() == link


def test_a_run_stopped_while_the_service_reloads_does_not_repair_first(syncing: Syncing) -> None:
    """SIGTERM during ``after``: nothing else is begun; the next run finishes the switch."""
    ok(syncing.sync())
    fill(syncing.primary, {"new": "1"})
    runs = syncing.place / "runs"
    after = script(syncing.place / "after", f"echo run >>{runs}\nexec sleep 20")
    syncing.configure(f'after = ["{after}"]')
    process = subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, text=True)
    poll(runs.exists, 30, "after")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=SECONDS)
    assert "stopped by SIGTERM" in out
    assert runs.read_text().count("run") == 1
    assert "pending" in syncing.versions("standby")
    syncing.configure('after = ["/bin/true"]')
    ok(syncing.sync())
    assert contents(syncing.standby) == contents(syncing.primary)
    assert "pending" not in syncing.versions("standby")


def test_a_controller_that_never_answers_has_an_end(monkeypatch: pytest.MonkeyPatch, syncing: Syncing) -> None:
    """The run elsewhere asks once, waits for its limit, and says which machine was silent."""
    monkeypatch.setattr("check_failover.sync.controller_access._REPLY_LIMIT", 1.0)
    monkeypatch.setattr(hosts.Host, "argv", lambda *_: ["/bin/sh", "-c", HANGS.format(pid=syncing.place / "pid")])
    config = run.load(str(syncing.config))
    spec = config.services[0].sync
    assert spec is not None
    access = RemoteAccess(config, config.services[0], spec)
    began = time.monotonic()
    with pytest.raises(hosts.SyncStepError, match="no answer: none within 1 s"):
        access.acquire()
    access.close()
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("answer", ["nonsense", "[]", "5", '{"refused": "nonsense"}', '{"state": {"equal_at": "x"}}'])
def test_a_controller_that_answers_nonsense_is_an_error(
    monkeypatch: pytest.MonkeyPatch, syncing: Syncing, answer: str
) -> None:
    """Another version, or another program behind that key: one line, never a traceback."""
    monkeypatch.setattr(hosts.Host, "argv", lambda *_: ["/bin/sh", "-c", 'read line; echo "$1"', "sh", answer])
    config = run.load(str(syncing.config))
    spec = config.services[0].sync
    assert spec is not None
    access = RemoteAccess(config, config.services[0], spec)
    with pytest.raises(hosts.SyncStepError, match="cannot understand its"):
        access.acquire()
    access.close()


def test_times_are_the_controllers(monkeypatch: pytest.MonkeyPatch, syncing: Syncing) -> None:
    """A run elsewhere writes times by the controller's clock, which judges the age later."""
    answer = f'{{"state": {{}}, "holder": "x/1", "now": {time.time() + 5000}}}'
    monkeypatch.setattr(hosts.Host, "argv", lambda *_: ["/bin/sh", "-c", 'read line; echo "$1"', "sh", answer])
    config = run.load(str(syncing.config))
    spec = config.services[0].sync
    assert spec is not None
    access = RemoteAccess(config, config.services[0], spec)
    access.acquire()
    access.close()
    assert 4900 < access.now() - time.time() < 5100


def test_a_fault_in_the_program_is_unknown(
    monkeypatch: pytest.MonkeyPatch, syncing: Syncing, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's exit code for it is 1, which the unit takes for a run that was refused: success."""

    def broken(*_: object) -> None:
        raise TypeError("broken\nin two lines")

    monkeypatch.setattr(run.steps, "sync", broken)
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    assert run.main(["--config", str(syncing.config), "web"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("UNKNOWN: fault in failover-sync: TypeError: broken in two lines (test_sync_ends.py:")
    assert out.count("\n") == 1
