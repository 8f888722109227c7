"""Whether a run may copy data: only from the serving server to the other one. Pure.

The serving server's data is authoritative. A forward run while the standby serves would undo the clients' writes to
the standby; a forward run from a failing primary may copy damage; a source that lost most of its data counts as wiped
until a person confirms it. If the serving server is unknown, the run is refused.

A server that clients may have written to is not overwritten before the other server has these writes, or a person
decides that they may go. Whether clients could write there, the redirector knows (``reach``); whether they did, the
digest of that server's data shows: it is compared with the digest of the last good run.
"""

from dataclasses import dataclass

from check_failover import reach
from check_failover.model import Target
from check_failover.reach import Reaches
from check_failover.syncstate import Digests, Refusal, Size, SyncDirection


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
    reached: Reaches = ()  # which server clients may have reached, and when
    unsure: bool = False  # a pair's other controller was not heard for some seconds: ``reached`` may lack its doings


def ends(direction: SyncDirection) -> tuple[Target, Target]:
    """The source and the receiving server."""
    source = Target.PRIMARY if direction is SyncDirection.FORWARD else Target.STANDBY
    return source, source.other


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


def check_reached(direction: SyncDirection, reached: Reaches, now: float) -> None:
    """Raises SyncRefusedError while clients may write to the receiving server."""
    receiver = ends(direction)[1]
    if open_now := reach.since(reached, receiver, now):
        text = f"clients may write to the {receiver} now: {reach.text(open_now, now)}"
        raise SyncRefusedError(Refusal.STILL_REACHED, text)


def check_written(name: str, direction: SyncDirection, ways: str, known: Digests, found: Digests) -> None:
    """Raises SyncRefusedError unless the receiving server's data is as it was when both servers were equal.

    ``ways``: how clients reached it since then, for people; empty: they did not. ``known``: the digests of that time;
    ``found``: those of now. A receiving server without data may be filled.
    """
    source, receiver = ends(direction)
    here, was = found.of(receiver), known.of(receiver)
    if not ways or here == "" or (here is not None and here == was):
        return
    if here is None or was is None:
        begin = f"the {receiver} may have writes that the {source} lacks"
    elif found.of(source) == known.of(source):
        text = f"only the {receiver} has changed since the servers were in step ({ways})"
        raise SyncRefusedError(Refusal.OTHER_DIRECTION, f"{text}: failover-sync {name} --take {receiver} --yes")
    else:
        begin = "both servers have changed since they were in step"
    advice = f"failover-sync {name} --diff, then --take primary --yes or --take standby --yes"
    raise SyncRefusedError(Refusal.BOTH_SERVED, f"{begin} ({receiver}: {ways}): {advice}")


def check_size(now: Size, good: Size | None, max_shrink: float) -> None:
    """Raises SyncRefusedError when the source lost more than the share ``max_shrink`` since the last good run."""
    if now.files == 0 or now.entries == 0:
        raise SyncRefusedError(Refusal.SHRUNK, f"the source is empty (no {'files' if now.files == 0 else 'entries'})")
    for what in ("entries", "files", "bytes") if good is not None else ():
        have, had = getattr(now, what), getattr(good, what)
        if have is not None and had and have < had * (1 - max_shrink):
            text = f"the source shrank to {have} of {had} {what}; if that is intended: --accept-shrink"
            raise SyncRefusedError(Refusal.SHRUNK, text)
