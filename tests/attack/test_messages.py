"""Random messages by every role: each gets an answer, none ends the daemon, and none keeps it from starting again."""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import rights
from check_failover.admin import show
from check_failover.control import parse
from check_failover.records import JournalEntry, from_json, service_statuses
from tests.attack import rounds
from tests.attack.ground import PEERS, SERVICES, Kernel, Redirector, config

SEED = int(os.environ.get("SEED", "1"))
TEXTS = (
    "", "ldap", "M\udcfcller", "\x1b[2J\x07", "\x9b31m", "a\nb\r\nc", "x" * 3000, "\x00", "\ud83d", "\u202eabc",
    "ü" * 70, "ldap primary", "h", "198.51.100.7", "2001:db8::1", "primary", "standby", "refused", "../../etc",
    "-1", "{}",
)  # fmt: skip
NUMBERS = (0, 1, -1, 65535, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 1e-300, float("nan"), float("inf"), 1e15)
KEYS = (
    "service", "by", "reason", "manual", "deadline", "facts", "perfdata", "host", "description", "begin", "client",
    "port", "after", "seconds", "id", "part", "problem", "failed", "limit", "before", "state", "sync", "note", "reads",
    "downtime", "zz",
)  # fmt: skip
FACTS = (
    "detector", "probes", "probes_failed", "requests", "replies", "standby_ok", "blind", "sync_age", "server",
    "evidence",
)  # fmt: skip
STATE = ("target", "since", "hold", "pending", "drain", "damping", "reached", "generation", "changes", "downtime")


def anything(dice: random.Random, depth: int = 3) -> Any:
    """Any value that JSON can carry, and some that it cannot."""
    kind = dice.randrange(8 if depth else 6)
    if kind < 2:
        return dice.choice(TEXTS)
    if kind < 4:
        return dice.choice(NUMBERS)
    if kind < 6:
        return dice.choice((True, False, None))
    if kind == 6:
        return [anything(dice, depth - 1) for _ in range(dice.randrange(4))]
    keys = (*FACTS, *STATE, *SERVICES, "by", "at", "reason", "old", "why", "begin", "end", "count", "penalty")
    return {dice.choice(keys): anything(dice, depth - 1) for _ in range(dice.randrange(5))}


def facts(dice: random.Random) -> dict[str, Any]:
    """Facts that are mostly good enough for a flip."""
    good = {"detector": "refused", "probes": 2, "probes_failed": 2, "requests": 8, "replies": 0, "standby_ok": True}
    if dice.random() < 0.3:
        good[dice.choice(FACTS)] = anything(dice)
    return good


def message(dice: random.Random) -> bytes:
    """A request: sometimes right, mostly wrong in a place or two, sometimes with other bytes."""
    verb = dice.choice(sorted(set(rights.OF_REDIRECTOR) - {"subscribe"}))
    found: dict[str, Any] = {"verb": verb, "service": dice.choice(SERVICES), "by": dice.choice(TEXTS)}
    if verb in ("fail-over", "facts"):
        found["facts"] = facts(dice)
    if verb in ("fail-over", "fail-back", "drain"):
        found["manual"] = dice.random() < 0.3
    if verb == "follow":
        state = {"target": dice.choice(("primary", "standby")), "since": dice.choice(NUMBERS), "generation": 3}
        found["state"] = {dice.choice(SERVICES): state | {dice.choice(STATE): anything(dice)}}
    if verb == "downtime":
        found |= {"host": "h", "begin": dice.random() < 0.5}
    for _ in range(dice.choice((0, 0, 1, 1, 2, 5))):
        found[dice.choice(KEYS)] = anything(dice)
    line = bytearray(json.dumps(found).encode() if dice.random() < 0.7 else escaped(found))
    for _ in range(dice.choice((0, 0, 0, 0, 1, 3))):
        line[dice.randrange(len(line))] = dice.randrange(256)
    return bytes(line).replace(b"\n", b" ")[:60000] + b"\n" * (dice.random() < 0.98)


def escaped(found: dict[str, Any]) -> bytes:
    """Raw bytes instead of escapes: a Latin-1 terminal's."""
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape" if dice_safe(found) else "replace")


def dice_safe(found: dict[str, Any]) -> bool:
    """Whether each lone surrogate stands for a byte."""
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


@pytest.fixture
def directory() -> Iterator[Path]:
    """In memory where the system has such a place: an order waits for the disk twice."""
    logging.disable(logging.CRITICAL)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)
    logging.disable(logging.NOTSET)


def everything_prints(redirector: Redirector) -> None:
    """What people see of it now, as text in UTF-8 without control characters."""
    for role in ("root", "looker"):
        reply = redirector.server.answer(b'{"verb": "status"}\n', PEERS[role])
        assert reply is not None
        assert reply["ok"], reply
        found = service_statuses(parse(json.dumps(reply).encode()))
        lines = [
            line
            for service in redirector.config.services
            for line in show.status(service, found[service.name], None, None, 2e9)
        ]
        history = redirector.server.answer(b'{"verb": "history", "limit": 200}\n', PEERS[role])
        assert history is not None
        assert history["ok"], history
        for raw in history["entries"]:
            lines += show.entry(from_json(JournalEntry, parse(json.dumps(raw).encode())))
        "\n".join(lines).encode()


def test_random_messages_by_every_role(directory: Path) -> None:
    """A reply in JSON each, never an internal error; after each restart the targets are what they were."""
    dice, kernel, made = random.Random(SEED), Kernel(), config(directory)
    redirector, seen = Redirector(made, kernel), dict.fromkeys(("ok", "refused", "flipped", "restarts"), 0)
    for number in range(rounds(3000)):
        line, role = message(dice), dice.choice(sorted(PEERS))
        reply = redirector.server.answer(line, PEERS[role])
        assert reply is not None
        json.dumps(reply, allow_nan=False).encode()
        assert "internal error" not in str(reply.get("error")), (SEED, number, role, line, reply)
        seen["ok" if reply["ok"] else "refused"] += 1
        seen["flipped"] += reply.get("flipped") is True
        if number % 250 == 249:
            redirector.beat()
            everything_prints(redirector)
            targets = redirector.steering.targets()
            redirector.close()
            redirector = Redirector(made, kernel)
            assert redirector.steering.targets() == targets
            assert {name: rule.target for name, rule in kernel.rules.items()} == targets
            seen["restarts"] += 1
    everything_prints(redirector)
    redirector.close()
    assert not (directory / "state" / "journal.jsonl.damaged").exists()
    assert min(seen.values()) > 0, f"an attack that reaches nothing shows nothing: {seen}"


def test_a_drain_without_an_end(directory: Path) -> None:
    """A deadline beyond every calendar would make a state that no restart can read."""
    made, kernel = config(directory), Kernel()
    redirector = Redirector(made, kernel)
    for deadline in ("1e308", "9223372036854775807", "-1", "true", '"9"'):
        line = f'{{"verb": "drain", "service": "ldap", "manual": true, "deadline": {deadline}}}\n'.encode()
        reply = redirector.server.answer(line, PEERS["root"])
        assert reply is not None
        assert deadline == "true" or "deadline: want" in reply["error"], reply
    redirector.close()
    redirector = Redirector(made, kernel)
    everything_prints(redirector)
    redirector.close()
