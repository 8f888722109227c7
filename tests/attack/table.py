"""The table that ``make attack`` prints: what each attack did to the first release, and what this run measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# key: the attack; on the first release. A test says ``measured(key, ...)``.
ATTACKS: dict[str, tuple[str, str]] = {
    "strays": ("searches whose TTL ends at the controller, while the primary hangs", "not noticed in 60 s"),
    "forged": ("the same from connections that do not exist", "not noticed in 60 s"),
    "provoke": ("50 empty binds/s, while all searches fail", "3,000 of 3,001 clients' requests failed"),
    "acks": ("20,000 bare ACKs/s that the server resets", "a hang noticed after 12 s"),
    "orphans": ("20,000 requests/s of connections that do not exist", "a hang noticed after 8 s"),
    "windows": ("searches whose replies their client takes after 8 s", "a hang noticed after 4.5 s, p99 51 s"),
    "veto": ("60 stray segments/s, while the primary fails the probes only", "flipped after 1.2 s"),
    "reply": ("frames with the primary's address from a client", "held the veto for 30 to 40 s"),
    "invented": ("a passive CRITICAL with invented perfdata, without a sniffer", "flipped at once"),
    "drip": ("a byte now and then, after StartTLS for example", "no flip in 60 s"),
    "endless": ("answers without an end", "2.2 GB in 20 s"),
    "output": ("a command of failover-sync prints without an end", "5.9 GB"),
    "history": ("100 questions for the history at once", "no flip in 60 s, 1.7 GB"),
    "pages": ("a journal of 20,000 entries", "`history --show`: reply too long from 9,000 on"),
    "journal": ("damaged journals", "299 of 8,634 ended the daemon"),
    "refused": ("refused orders", "279 erased the audit journal"),
    "alarm": ("the time limit expires while a check prints", "11 of 225 runs ended by signal 14"),
}
_worst: dict[str, dict[str, tuple[float, str]]] = {}


def measured(key: str, what: str, value: float = 0.0, form: str = "") -> None:
    """Note what was measured in this run; of several measurements of ``what`` the worst ``value`` stays."""
    assert key in ATTACKS
    found = _worst.setdefault(key, {})
    found[what] = max(found.get(what, (value, form)), (value, form))


@contextmanager
def timed(key: str, what: str) -> Iterator[None]:
    """Note how many seconds the block took."""
    began = time.monotonic()
    yield
    measured(key, what, time.monotonic() - began, "{:.1f} s")


def rows() -> list[tuple[str, str, str]]:
    """Attack, first release, this run; "-" where its test did not run to its end."""
    found = []
    for key, (attack, before) in ATTACKS.items():
        now = [f"{what} {form.format(value)}".strip() for what, (value, form) in _worst.get(key, {}).items()]
        found.append((attack, before, "; ".join(now) or "-"))
    return found


def lines() -> Iterator[str]:
    """The table in Markdown."""
    yield "| attack | first release | now |"
    yield "| --- | --- | --- |"
    for row in rows():
        yield f"| {' | '.join(row)} |"
