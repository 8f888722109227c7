"""Who may only look: many questions at once, a socket in a daemon's place, a probe. None of it delays an order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover import control, rights
from check_failover.config import Controller
from check_failover.control import MAX_HISTORY, UnreachableError
from check_failover.records import JournalEntry, to_json
from tests.attack.ground import LOOKER, PEERS, Kernel, Redirector, config
from tests.attack.table import measured
from tests.lab.netns import poll

ASKS = """
import os, socket, sys, threading
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
def ask():
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(sys.argv[1])
                sock.sendall(b'{"verb": "history", "limit": 10000}\\n')
                while sock.recv(65536): pass
        except OSError: pass
for _ in range(100): threading.Thread(target=ask, daemon=True).start()
print("asking", flush=True)
threading.Event().wait(120)
"""


@pytest.fixture
def redirector(tmp_path: Path) -> Iterator[Redirector]:
    """With a journal of 20,000 entries, half of them flips."""
    made = config(tmp_path)
    entry = JournalEntry(
        "1", time.time(), "ldap", "fail-over", "nagios", line="ldap: primary -> standby", text="x" * 200
    )
    line = json.dumps({**to_json(entry), "flipped": True})
    lines = [line.replace('"id": "1"', f'"id": "{number}"') for number in range(20_000)]
    (tmp_path / "state" / "journal.jsonl").write_text("\n".join(lines) + "\n")
    found = Redirector(made, Kernel())
    found.server.path.chmod(0o666)
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(place.stat().st_mode | 0o055)
    yield found
    found.close()


def memory() -> int:
    """The process's resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_hundred_questions_at_once(redirector: Redirector) -> None:
    """They end or are told to ask later; orders are answered meanwhile, and memory stays bounded."""
    path, before = str(redirector.server.path), memory()
    argv = [sys.executable, "-c", ASKS, path, str(LOOKER)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd="/") as asking:
        try:
            assert asking.stdout is not None
            assert asking.stdout.readline() == "asking\n"
            poll(lambda: redirector.server._clients[LOOKER] >= 50, 20, "it asks")
            for verb in ("fail-over", "fail-back") * 3:
                message = {"verb": verb, "service": "ldap", "manual": True, "facts": {"standby_ok": True}}
                began = time.monotonic()
                reply = control.ask(path, message, 20.0)
                assert "flipped" in reply
                took = time.monotonic() - began
                measured("history", "an order answered within", took, "{:.1f} s")
                assert took < 5.0, "a flip is not behind the questions"
        finally:
            asking.kill()
    measured("history", "with", (memory() - before) / (1 << 20), "{:.0f} MiB")
    assert memory() - before < 200 << 20


def test_the_history_is_read_page_by_page(redirector: Redirector) -> None:
    """A page fits in a reply, and pages join without a gap."""
    first = control.ask(redirector.server.path, {"verb": "history", "limit": MAX_HISTORY})
    assert (len(first["entries"]), first["more"]) == (control.HISTORY_PAGE, True)
    more = {"verb": "history", "limit": 10, "before": first["entries"][0]["id"]}
    second = control.ask(redirector.server.path, more)
    assert [int(one["id"]) for one in second["entries"]] == list(range(19_490, 19_500))
    assert second["more"] is False
    measured("pages", "in pages of", control.HISTORY_PAGE, "{}")


def test_a_probe_is_no_question(tmp_path: Path) -> None:
    """It is load for a server: the redirector's and operators' alone; a drill is an operator's."""
    controller: Controller = config(tmp_path).controller
    for verb in ("probe", "drill"):
        for role, may in (("looker", False), ("core", False), ("pair", False), ("operator", True), ("root", True)):
            assert (rights.refused(rights.OF_SNIFFER, controller, verb, PEERS[role]) is None) is may, (verb, role)
    assert rights.refused(rights.OF_SNIFFER, controller, "status", PEERS["looker"]) is None


def test_another_users_socket_is_not_believed(tmp_path: Path) -> None:
    """Where the daemon is down, somebody else answers with ok: the client says who it is and does not believe it."""
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o1777)
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(place.stat().st_mode | 0o055)
    code = (
        f"import os, socket; os.setgid({LOOKER}); os.setuid({LOOKER})\n"
        f"s = socket.socket(socket.AF_UNIX); s.bind({str(directory / 'redirector.sock')!r}); s.listen()\n"
        "print('there', flush=True)\n"
        'while True:\n c, _ = s.accept(); c.sendall(b\'{"ok": true, "flipped": true, "text": "done"}\\n\'); c.close()'
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd="/") as false:
        try:
            assert false.stdout is not None
            assert false.stdout.readline() == "there\n"
            with pytest.raises(UnreachableError, match=f"user {LOOKER} answers there, not the daemon"):
                control.ask(directory / "redirector.sock", {"verb": "fail-over"})
        finally:
            false.kill()


def test_a_name_that_leads_into_the_daemons_directory(tmp_path: Path) -> None:
    """The socket is made behind the link; the link stays when the daemon ends, and leads nowhere then."""
    made = config(tmp_path)
    (tmp_path / "run" / "redirector").mkdir()
    name = made.controller.redirector_socket
    name.symlink_to("redirector/redirector.sock")
    redirector = Redirector(made, Kernel())
    assert control.ask(name, {"verb": "status"})["ok"]
    assert (tmp_path / "run" / "redirector" / "redirector.sock").is_socket()
    redirector.close()
    assert name.is_symlink()
    assert not name.exists()
    with pytest.raises(UnreachableError, match="No such file"):
        control.ask(name, {"verb": "status"})
