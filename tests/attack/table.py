"""The table that ``make attack`` prints: what each attack did to the first release, and what this run measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# key: the attack; on the first release. A test says ``measured(key, ...)``.
ATTACKS: dict[str, tuple[str, str]] = {
    "acks": ("20,000 bare ACKs/s that the server resets", "hang noticed after 12 s"),
    "orphans": ("20,000 requests/s of connections that do not exist", "hang noticed after 8 s"),
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
