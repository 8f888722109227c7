"""Whether a run may copy data: only from the serving server to the other one. Pure.

The serving server's data is authoritative. A forward run while the standby serves would undo the clients' writes to
the standby; a forward run from a failing primary may copy damage; a source that lost most of its data counts as wiped
until a person confirms it. If the serving server is unknown, the run is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from check_failover.model import Target
from check_failover.syncstate import Refusal, Size, SyncDirection


class SyncRefusedError(Exception):
    """The run is refused: a named reason, and one line for a person."""

    def __init__(self, reason: Refusal, text: str) -> None:
        super().__init__(text)
        self.reason, self.text = reason, text


@dataclass(frozen=True, slots=True)
class Standing:
    """Which server serves and whether the primary is failing, according to the daemons."""

    target: Target | None  # None: unknown
    since: float | None = None  # Unix time of the last flip
    failing: bool = False  # the primary
    text: str = ""  # why the target is unknown or the primary failing


def check_direction(direction: SyncDirection, standing: Standing) -> None:
    """Raises SyncRefusedError when the source is not the serving server, is failing, or the target is unknown."""
    if standing.target is None:
        raise SyncRefusedError(Refusal.TARGET_UNKNOWN, f"the serving server is unknown: {standing.text}")
    if direction is SyncDirection.FORWARD:
        if standing.target is Target.STANDBY:
            raise SyncRefusedError(Refusal.TARGET_STANDBY, "the standby serves; its data is the newer")
        if standing.failing:
            raise SyncRefusedError(Refusal.PRIMARY_FAILING, f"the primary is failing: {standing.text}")
    elif standing.target is Target.PRIMARY:
        raise SyncRefusedError(Refusal.TARGET_PRIMARY, "the primary serves; its data is the newer")


def check_size(now: Size, good: Size | None, max_shrink: float) -> None:
    """Raises SyncRefusedError when the source lost more than the share ``max_shrink`` since the last good run."""
    if now.files == 0 or now.entries == 0:
        raise SyncRefusedError(
            Refusal.SHRUNK, f"the source is empty ({'no files' if now.files == 0 else 'no entries'})"
        )
    if good is None:
        return
    pairs: list[tuple[str, int, int | None]] = [] if now.entries is None else [("entries", now.entries, good.entries)]
    pairs += [("files", now.files, good.files), ("bytes", now.bytes, good.bytes)]
    for what, have, had in pairs:
        if had and have < had * (1 - max_shrink):
            raise SyncRefusedError(
                Refusal.SHRUNK, f"the source shrank to {have} of {had} {what}; if that is intended: --accept-shrink"
            )
