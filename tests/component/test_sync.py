"""failover-sync over real ssh and rsync: what it copies, and that only changes travel."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.syncing import (  # noqa: F401
    FILES,
    Syncing,
    as_json,
    contents,
    fill,
    ok,
    script,
    servers_fixture,
    syncing_fixture,
)

pytestmark = pytest.mark.component


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
    ok(syncing.sync())
    assert contents(syncing.standby) == contents(syncing.primary)
    assert (syncing.standby / "link").readlink() == Path("a b")
    assert (syncing.standby / "empty").is_dir()
    assert (syncing.standby / "-rf").stat().st_mode & 0o777 == 0o600
    ok(syncing.sync())
    assert not syncing.state().changed


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
    """``before``, ``count`` run on the primary, ``verify`` sees the staged copy and the count, ``after`` the link.

    On the standby ``before`` runs too: has its data changed since the last run, and what does this one leave there?
    """
    note = script(
        syncing.place / "note", f'echo "$(ls {syncing.servers.srv}/../$1 | wc -l) $2|$3|$4" >> {syncing.place}/notes'
    )
    syncing.configure(
        f'before = ["{note}", "primary", "before", "{{source}}", "a b; $HOME"]\n'
        'count = ["/bin/echo", "7"]\n'
        f'verify = ["{note}", "standby", "verify", "{{staged}}", "{{entries}}"]\n'
        f'after = ["{note}", "standby", "after", "{{current}}", "{{name}} {{direction}}"]\n'
    )
    ok(syncing.sync())
    srv = syncing.servers.srv
    before, look, verify, after, again = [
        line.split(" ", 1)[1] for line in (syncing.place / "notes").read_text().splitlines()
    ]
    assert before == look == again == f"before|{srv}/data|a b; $HOME"
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


def test_a_terminal_sees_steps_and_progress(syncing: Syncing) -> None:
    """Each step with its time and rsync's share of the whole; without a terminal nothing but the line."""
    fill(syncing.primary, {"large": "x" * 20_000_000})
    ours, theirs = pty.openpty()
    with subprocess.Popen(syncing.argv(), stdout=subprocess.PIPE, stderr=theirs, text=True) as run:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the other end of the terminal was closed
            while chunk := os.read(ours, 65536):
                seen += chunk
        os.close(ours)
        out, _ = run.communicate(timeout=60)
    assert out.startswith("OK: web: ")
    for text in ("transfer ...", "transfer: ", "switch: ", "100% "):
        assert text in seen.decode()
    assert syncing.sync().stderr == ""
