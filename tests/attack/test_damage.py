"""Each byte of each file changed, each file cut at each byte: the daemons live, a redirect stays where it is."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover import syncstate
from check_failover.control import parse
from check_failover.damping import Damping
from check_failover.model import Hold, State, Target
from check_failover.reach import derived
from check_failover.records import Drain, JournalEntry, service_statuses, to_json
from check_failover.redirector import Wiring
from check_failover.redirector.journal import Journal
from check_failover.redirector.state import ServiceState, intend, settle
from check_failover.redirector.store import StateStore
from check_failover.sms.spool import AWAITED, FAILED, QUEUE, SENT, Spool, Text
from check_failover.syncstate import Digests, Phase, Problem, Refusal, Running, Size, SyncDirection, SyncState
from tests.attack import ROUNDS
from tests.attack.ground import PEERS, Kernel, Redirector, config
from tests.attack.table import measured

NOW = time.time()
SAVED = ServiceState(
    Target.STANDBY, NOW - 9, Hold("me", NOW, "wörk"), "hold", Drain(Target.PRIMARY, NOW - 9, NOW + 1e6),
    Damping(1000.0, NOW), True, ("h",), reached=derived(Target.STANDBY, NOW - 9), generation=5, changes=2,
)  # fmt: skip
ENTRIES = [
    JournalEntry(
        f"20261125T14583{n}-ldap-{n}", NOW + n, "ldap", "hold", "eve", line=f"ldap: hold: {n} wörds", reason="hold"
    )
    for n in range(3)
]
RECORD = SyncState(
    equal_at=NOW - 10, size=Size(10, 20000, 7), digests=Digests("ab", ""), note="not copied: ACLs",
    running=Running(4711, NOW - 5, SyncDirection.FORWARD, Phase.SWITCH, NOW + 25),
    problem=Problem(NOW - 50, Refusal.BOTH_SERVED, "x"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def damaged(whole: bytes) -> Iterator[bytes]:
    """Cut at each byte and with each byte changed in three ways; without ROUNDS only a part of that."""
    dice = random.Random(1)
    for at in range(len(whole)) if ROUNDS else dice.sample(range(len(whole)), min(len(whole), 60)):
        yield whole[:at]
        for other in (0xFF, whole[at] ^ 1, dice.randrange(256)):
            yield whole[:at] + bytes([other]) + whole[at + 1 :]


@pytest.mark.parametrize("name", ["ldap.json", ".ldap.json.new"])
def test_the_state(tmp_path: Path, name: str) -> None:
    """Believed where it makes sense, else the kernel's rule counts: it stays on the standby in either case."""
    place = tmp_path / "target"
    place.mkdir()
    intend(place, "ldap", SAVED)
    settle(place, "ldap")
    whole = (place / "ldap.json").read_bytes()
    for content in damaged(whole):
        (place / "ldap.json").write_bytes(whole)
        (place / name).write_bytes(content)
        store = StateStore(tmp_path, ["ldap"])
        store.load(lambda _name: Target.STANDBY)
        assert store.state["ldap"].target is Target.STANDBY, content
        (place / ".ldap.json.new").unlink(missing_ok=True)


def test_a_redirector_that_starts_with_a_damaged_state(tmp_path: Path) -> None:
    """The whole start and what people see; the other service loses nothing."""
    made, kernel = config(tmp_path), Kernel()
    Redirector(made, kernel).close()
    place = tmp_path / "state" / "target"
    intend(place, "ldap", SAVED)
    settle(place, "ldap")
    whole = (place / "ldap.json").read_bytes()
    contents = list(damaged(whole))
    for content in contents if ROUNDS else random.Random(2).sample(contents, 60):
        kernel.rules["ldap"] = Wiring(Target.STANDBY)
        (place / "ldap.json").write_bytes(content)
        redirector = Redirector(made, kernel)
        redirector.beat()
        reply = redirector.server.answer(b'{"verb": "status"}\n', PEERS["root"])
        assert reply is not None
        found = service_statuses(parse(json.dumps(reply).encode()))
        assert (found["ldap"].target, found["dns"].target) == (Target.STANDBY, Target.PRIMARY), content
        assert kernel.rules["ldap"].target is Target.STANDBY
        assert found["dns"].problem is None
        redirector.close()


def test_the_journal(tmp_path: Path) -> None:
    """A damaged line hides no other; it is kept aside."""
    lines = [json.dumps(to_json(entry)).encode() for entry in ENTRIES]
    path, aside = tmp_path / "journal.jsonl", tmp_path / "journal.jsonl.damaged"
    for number, content in enumerate(damaged(lines[1]), 1):
        aside.unlink(missing_ok=True)
        path.write_bytes(b"\n".join([lines[0], content, lines[2], b""]))
        found = Journal(path).read(10)
        assert [found[0], found[-1]] == [ENTRIES[0], ENTRIES[2]], content
        if len(found) == 2 and content:
            assert set(aside.read_bytes().split(b"\n")) - {b""} == set(content.split(b"\n")) - {b""}
        json.dumps([to_json(entry) for entry in found], ensure_ascii=False).encode()
        measured("journal", "none of", number, "{:,}")


def test_the_sync_record(tmp_path: Path) -> None:
    """A state and a text for the core, never an exception."""
    syncstate.directory(tmp_path).mkdir()
    for content in damaged(syncstate.dump(RECORD).encode()):
        (syncstate.directory(tmp_path) / "ldap.json").write_bytes(content)
        state = syncstate.read(tmp_path, "ldap")
        level, text = syncstate.judge(state, NOW, 600, 1800)
        assert level in State
        text.encode()
        syncstate.perfdata(state, NOW, 600, 1800).encode()


def test_the_spool(tmp_path: Path) -> None:
    """Sent, or moved to where a person looks; no file outside the spool is made, moved or removed."""
    spool = Spool(tmp_path / "spool")
    text = Text(key="0" * 32, number="+4917", text="PROBLEM ldap wörds", at=NOW, window=60.0)
    spool.put(text)
    path = tmp_path / "spool" / QUEUE / f"{text.key}.json"
    (tmp_path / "spool" / "x.json").write_text("outside")
    forged = [replace(text, key=key).dump() for key in ("../x", "/etc/passwd", "", ".", "a\0b", "x" * 300)]
    for content in [*damaged(text.dump()), *forged]:
        path.write_bytes(content)
        for found in spool.pending():
            assert found.key == text.key
            found.text.encode()
            spool.settle(found, SENT)
        assert not path.exists(), content
    assert sorted(one.name for one in (tmp_path / "spool").iterdir()) == [
        AWAITED,
        FAILED,
        "log.jsonl",
        QUEUE,
        SENT,
        "x.json",
    ]
    assert {one.name for one in (tmp_path / "spool" / SENT).iterdir()} == {path.name}


def test_what_is_no_file(tmp_path: Path) -> None:
    """A FIFO, a directory, a loop of links: none holds up the one who reads."""
    spool = Spool(tmp_path / "spool")
    spool.put(Text(key="good", number="+4917", text="x", at=NOW))
    os.mkfifo(tmp_path / "spool" / QUEUE / "fifo.json")
    (tmp_path / "spool" / QUEUE / "directory.json").mkdir()
    assert [text.key for text in spool.pending()] == ["good"]
    syncstate.directory(tmp_path).mkdir()
    os.mkfifo(syncstate.directory(tmp_path) / "ldap.json")
    assert syncstate.read(tmp_path, "ldap").damaged
