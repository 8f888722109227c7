"""Whether data may move: never against the direction of truth. Pure.

The serving server's data is the truth. A forward run while the standby serves would undo what clients wrote there; one
from a failing primary may spread the damage; a source that lost most of its data is a wiped one until a person says
otherwise. What nobody knows refuses.
"""

from __future__ import annotations

from dataclasses import dataclass

from check_failover.model import Target
from check_failover.syncstate import Refusal, Size, SyncDirection


class SyncRefusedError(Exception):
    """The run may not happen: a named reason and the line for a person."""

    def __init__(self, reason: Refusal, text: str) -> None:
        super().__init__(text)
        self.reason, self.text = reason, text


@dataclass(frozen=True, slots=True)
class Standing:
    """Who serves and how the primary is, as the daemons say."""

    target: Target | None  # None: nobody could say
    since: float | None = None  # Unix time of the last flip
    failing: bool = False  # the primary
    text: str = ""  # why the target is unknown or the primary failing


def check_direction(direction: SyncDirection, standing: Standing) -> None:
    """Raises RefusedError when the truth is on the other side, or nobody knows where it is."""
    if standing.target is None:
        raise SyncRefusedError(Refusal.TARGET_UNKNOWN, f"nobody says which server serves: {standing.text}")
    if direction is SyncDirection.FORWARD:
        if standing.target is Target.STANDBY:
            raise SyncRefusedError(Refusal.TARGET_STANDBY, "the standby serves; its data is the newer")
        if standing.failing:
            raise SyncRefusedError(Refusal.PRIMARY_FAILING, f"the primary is failing: {standing.text}")
    elif standing.target is Target.PRIMARY:
        raise SyncRefusedError(Refusal.TARGET_PRIMARY, "the primary serves; its data is the newer")


def check_size(now: Size, good: Size | None, max_shrink: float) -> None:
    """Raises RefusedError when the giving server lost more than the share ``max_shrink`` since the last good run."""
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
                Refusal.SHRUNK, f"the source shrank to {have} of {had} {what}; if that is right: --accept-shrink"
            )
