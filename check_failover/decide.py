"""Whether to flip: (facts, policy, situation) -> decision with a named reason.

Pure. The tables below are the policy. ``decide`` tries the rows from the top; the first row that applies refuses the
flip, and if no row applies, the flip is allowed. An operator's order (``manual``) skips overridable rows. UNKNOWN facts
never move traffic: a row refuses if a fact that it needs is unknown.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from check_failover.damping import proof
from check_failover.model import Detector, Facts, Hold, Policy, Target


class Reason(StrEnum):
    """Why a flip was made or refused. Journals, texts and tests contain these words: never rename one."""

    FLIP = "flip"
    ALREADY = "already-there"
    HOLD = "hold"
    SHADOW = "shadow"
    BLIND = "blind"
    DOWNTIME = "downtime"
    HANDLERS_OFF = "handlers-off"
    NOT_CONFIRMED = "not-confirmed"
    TRAFFIC_ANSWERED = "traffic-answered"
    STANDBY_UNKNOWN = "standby-not-probed"
    NO_HEALTHY_SERVER = "no-healthy-server"
    SYNC_RUNNING = "sync-running"
    SYNC_STALE = "sync-stale"
    HOLD_DOWN = "hold-down"
    PRIMARY_UNKNOWN = "primary-not-probed"
    PRIMARY_FAILED = "primary-failed"
    PRIMARY_UNPROVEN = "primary-not-proven"
    NOT_SYNCED_BACK = "not-synced-back"
    MOVED_BY_PERSON = "moved-by-person"
    LOCKED = "locked"
    LAST_RESORT = "last-resort"
    FLAPPING = "flapping"


# Refusals that later facts may lift: the core's order stays pending until then, or until the core withdraws it.
RETRYABLE = frozenset({Reason.HOLD, Reason.BLIND, Reason.HANDLERS_OFF, Reason.NOT_CONFIRMED, Reason.TRAFFIC_ANSWERED})
RETRYABLE |= {Reason.STANDBY_UNKNOWN, Reason.NO_HEALTHY_SERVER, Reason.SYNC_RUNNING, Reason.SYNC_STALE}
RETRYABLE |= {Reason.PRIMARY_UNKNOWN, Reason.PRIMARY_UNPROVEN, Reason.NOT_SYNCED_BACK, Reason.FLAPPING}


@dataclass(frozen=True, slots=True)
class Situation:
    """What the redirector knows at this moment. Times in seconds."""

    target: Target
    hold: Hold | None = None
    since_flip: float | None = None  # None: never flipped
    manual: bool = False  # an operator ordered it
    primary_ok: bool | None = None  # fail-back: the last probe of the primary
    primary_passes: int = 0  # fail-back: probes passed in a row
    primary_good_for: float = 0.0  # fail-back: for how long the primary has passed its probes
    synced_back: bool | None = None  # fail-back: None if the service has no data to bring back
    undecided: str = ""  # fail-back: what a person must decide about clients' writes before that
    why: str = ""  # the cause of the order, if it is neither a fault nor an operator
    moved_by_person: bool = False  # automatic fail-back: an operator moved the traffic to the standby
    locked: bool = False  # automatic fail-back: locked after too many fail-overs (see damping)
    downtime: bool = False  # fail-back: the primary is in downtime
    penalty: float = 0.0  # of the automatic flips so far (see damping)
    standby_good_for: float = 0.0  # fail-over: for how long the standby has passed its probes


@dataclass(frozen=True, slots=True)
class Decision:
    """``flip``: whether to flip; ``reason``: why; ``text``: the reason as one line for the operator."""

    flip: bool
    reason: Reason
    text: str


Row = tuple[Reason, bool, Callable[[Facts, Policy, Situation], str | None]]


def _held(_f: Facts, _p: Policy, s: Situation) -> str | None:
    return None if s.hold is None else f"held by {s.hold.by}: {s.hold.reason or 'no reason given'}"


def _not_confirmed(f: Facts, _p: Policy, _s: Situation) -> str | None:
    if f.detector is Detector.CORE and f.probes == f.probes_failed:
        return None  # the core's own attempts (max_check_attempts) confirmed it; a passed probe would contradict them
    if f.probes == 0:
        return f"no probe of the {f.server} was made"
    by_chance = f.detector is not None and f.detector.lossy  # one probe may pass so: two thirds failed are enough
    if f.probes_failed > 1 and (f.probes_failed == f.probes or (by_chance and 3 * f.probes_failed >= 2 * f.probes)):
        return None
    return f"only {f.probes_failed} of {f.probes} probes of the {f.server} failed"


def _answered(f: Facts, p: Policy, _s: Situation) -> str | None:
    if f.requests == 0 or f.replies < p.min_useful * f.requests:
        return None
    return f"the {f.server} still answers {f.replies} of {f.requests} requests"


def _sync_stale(f: Facts, p: Policy, _s: Situation) -> str | None:
    if p.max_sync_age is None or p.sync != "refuse":
        return None
    if f.sync_age is None:
        return f"the standby's data was never synced (limit {p.max_sync_age:.0f} s)"
    if f.sync_age <= p.max_sync_age:
        return None
    return f"the standby's data is {f.sync_age:.0f} s old (limit {p.max_sync_age:.0f} s)"


def _hold_down(_f: Facts, p: Policy, s: Situation) -> str | None:
    if s.since_flip is None or s.since_flip >= p.hold_down:
        return None
    return f"the last flip was {s.since_flip:.0f} s ago (hold-down {p.hold_down:.0f} s)"


def _unproven(_f: Facts, p: Policy, s: Situation) -> str | None:
    if s.primary_passes >= p.fail_back_passes and s.primary_good_for >= p.fail_back_seconds:
        return None
    return (
        f"the primary passed {s.primary_passes} of {p.fail_back_passes} probes in a row "
        f"over {s.primary_good_for:.0f} of {p.fail_back_seconds:.0f} s"
    )


def _flapping(good_for: float, p: Policy, s: Situation, server: Target) -> str | None:
    """After several automatic flips, the other server must have passed its probes for a growing time."""
    needed = proof(s.penalty, p.fail_back_seconds)
    if good_for >= needed:
        return None
    return (
        f"after several automatic flips the {server} must pass its probes for {needed:.0f} s; {good_for:.0f} s so far"
    )


def _not_passed_in_a_row(_f: Facts, p: Policy, s: Situation) -> str | None:
    if s.primary_passes >= p.fail_back_passes:
        return None
    return f"the primary passed {s.primary_passes} of {p.fail_back_passes} probes in a row"


def _not_allowed(_f: Facts, p: Policy, _s: Situation) -> str | None:
    return "last_resort = never: a person decides" if p.last_resort == "never" else None


def _changes_left_behind(_f: Facts, p: Policy, s: Situation) -> str | None:
    """The primary lacks the data that clients wrote to the standby."""
    if p.last_resort == "always" or s.synced_back is not False:
        return None
    return "the standby's changes were not brought back (last_resort = safe); by hand: failoverctl fail-back"


def _not_brought_back(_f: Facts, _p: Policy, s: Situation) -> str | None:
    if s.synced_back is not False:
        return None
    return "the standby's changes were not brought back" + (f": {s.undecided}" if s.undecided else "")


def _in_downtime(f: Facts, p: Policy, _s: Situation) -> str | None:
    return "in downtime, flips inhibited" if f.downtime and p.downtime == "inhibit" else None


def _primary_in_downtime(_f: Facts, p: Policy, s: Situation) -> str | None:
    return "the primary is in downtime" if s.downtime and p.downtime != "ignore" else None


def _on(target: Target) -> Row:
    return Reason.ALREADY, False, lambda _f, _p, s: f"already on the {target}" if s.target is target else None


def _no_probe(server: str, ok: bool | None) -> str | None:
    return f"no probe of the {server} was made" if ok is None else None


_SYNCS = "a data sync is running"
_BY_PERSON = "a person moved it to the standby, a person moves it back"
_LOCKED = "locked on the standby after one fail-over too many, a person must look"
_OFF = "event handlers are switched off in the core: the fail-over waits for a person"
_ON_STANDBY, _ON_PRIMARY = _on(Target.STANDBY), _on(Target.PRIMARY)
_HOLD: Row = (Reason.HOLD, False, _held)
_SHADOW: Row = (Reason.SHADOW, True, lambda _f, p, _s: "shadow mode: reported only" if p.shadow else None)
_SYNC_RUNNING: Row = (Reason.SYNC_RUNNING, False, lambda f, _p, _s: _SYNCS if f.sync_running else None)
_STANDBY_UNKNOWN: Row = (Reason.STANDBY_UNKNOWN, False, lambda f, _p, _s: _no_probe("standby", f.standby_ok))
_PRIMARY_UNKNOWN: Row = (Reason.PRIMARY_UNKNOWN, False, lambda _f, _p, s: _no_probe("primary", s.primary_ok))

# Conditions for an automatic flip in either direction: nothing forbids it, and the fault is proven.
_PROVEN_FAULT: tuple[Row, ...] = (
    _HOLD,
    _SHADOW,
    (Reason.BLIND, True, lambda f, _p, _s: "the sniffer is blind" if f.blind else None),
    (Reason.DOWNTIME, True, _in_downtime),
    (Reason.HANDLERS_OFF, True, lambda f, _p, _s: _OFF if f.handlers_off else None),
    (Reason.NOT_CONFIRMED, True, _not_confirmed),
    (Reason.TRAFFIC_ANSWERED, True, _answered),
)

# (reason, overridable, why the row applies or None). An operator's order skips overridable rows.
# No hold-down: a proven fault must not wait while the other server is healthy; damping limits flapping instead.
FAIL_OVER: tuple[Row, ...] = (
    _ON_STANDBY,
    *_PROVEN_FAULT,
    _STANDBY_UNKNOWN,
    (Reason.NO_HEALTHY_SERVER, False, lambda f, _p, _s: None if f.standby_ok else "the standby fails its probe too"),
    _SYNC_RUNNING,
    (Reason.SYNC_STALE, True, _sync_stale),
    (Reason.FLAPPING, True, lambda _f, p, s: _flapping(s.standby_good_for, p, s, Target.STANDBY)),
)

# The standby serves and fails, and the primary is healthy again: a fail-over in the other direction.
LAST_RESORT: tuple[Row, ...] = (
    _ON_PRIMARY,
    *_PROVEN_FAULT,
    (Reason.LAST_RESORT, False, _not_allowed),
    (Reason.DOWNTIME, True, _primary_in_downtime),
    _PRIMARY_UNKNOWN,
    (Reason.NO_HEALTHY_SERVER, False, lambda _f, _p, s: None if s.primary_ok else "the primary fails its probe too"),
    (Reason.PRIMARY_UNPROVEN, False, _not_passed_in_a_row),
    _SYNC_RUNNING,
    (Reason.NOT_SYNCED_BACK, False, _changes_left_behind),
    (Reason.FLAPPING, True, lambda _f, p, s: _flapping(s.primary_good_for, p, s, Target.PRIMARY)),
)

# Planned work: the primary is healthy, so a drain waits for the hold-down and for fresh data.
DRAIN: tuple[Row, ...] = (
    _ON_STANDBY,
    _HOLD,
    _SHADOW,
    _STANDBY_UNKNOWN,
    (Reason.NO_HEALTHY_SERVER, False, lambda f, _p, _s: None if f.standby_ok else "the standby fails its probe"),
    _SYNC_RUNNING,
    (Reason.SYNC_STALE, False, _sync_stale),
    (Reason.HOLD_DOWN, False, _hold_down),
)

# The sniffer's rescue: the standby serves one unanswered connection without a flip, so its data must be fresh enough.
RESCUE: tuple[Row, ...] = (
    _ON_STANDBY,
    _HOLD,
    (Reason.SHADOW, False, _SHADOW[2]),
    _SYNC_RUNNING,
    (Reason.SYNC_STALE, False, _sync_stale),
)

FAIL_BACK: tuple[Row, ...] = (
    _ON_PRIMARY,
    _HOLD,
    _PRIMARY_UNKNOWN,
    (Reason.PRIMARY_FAILED, False, lambda _f, _p, s: None if s.primary_ok else "the primary fails its probe"),
    (Reason.PRIMARY_UNPROVEN, False, _unproven),
    _SYNC_RUNNING,
    (Reason.NOT_SYNCED_BACK, False, _not_brought_back),
    (Reason.HOLD_DOWN, False, _hold_down),
    (Reason.DOWNTIME, True, _primary_in_downtime),
)

# Automatic fail-back (``auto_fail_back``): three refusals of its own, then the conditions of a manual one.
AUTO_FAIL_BACK: tuple[Row, ...] = (
    (Reason.SHADOW, False, _SHADOW[2]),
    (Reason.MOVED_BY_PERSON, False, lambda _f, _p, s: _BY_PERSON if s.moved_by_person else None),
    (Reason.LOCKED, False, lambda _f, _p, s: _LOCKED if s.locked else None),
    *FAIL_BACK,
)

# An order's verb -> its table.
TABLES = {
    "fail-over": FAIL_OVER,
    "drain": DRAIN,
    "fail-back": FAIL_BACK,
    "auto-fail-back": AUTO_FAIL_BACK,
    "rescue": RESCUE,
}

# The text of a row of the fail-back checklist when its condition is met.
MET: dict[Reason, str] = {
    Reason.HOLD: "not held",
    Reason.PRIMARY_UNKNOWN: "the primary was probed",
    Reason.PRIMARY_FAILED: "the primary passes its probe",
    Reason.PRIMARY_UNPROVEN: "the primary passed often and long enough",
    Reason.SYNC_RUNNING: "no data sync is running",
    Reason.NOT_SYNCED_BACK: "the standby's changes are on the primary, or need not be",
    Reason.HOLD_DOWN: "hold-down is over",
    Reason.DOWNTIME: "the primary is in no downtime",
}


def decide(table: tuple[Row, ...], facts: Facts, policy: Policy, situation: Situation) -> Decision:
    """Evaluate one table. The first row that applies refuses; if no row applies, flip."""
    for reason, overridable, holds in table:
        if overridable and situation.manual:
            continue
        text = holds(facts, policy, situation)
        if text is not None:
            return Decision(False, reason, text)
    return Decision(True, Reason.FLIP, describe(facts, situation))


def describe(facts: Facts, situation: Situation) -> str:
    """Why a flip is right, in one line: ``no reply to 12 of 12 requests``."""
    if situation.manual or situation.why:
        return situation.why or "ordered by a person"
    if facts.server is Target.STANDBY:
        return f"last resort: the standby failed ({_failed(facts)}), the primary is well"
    return _failed(facts)


def _failed(facts: Facts) -> str:
    if facts.requests:
        return f"no useful reply to {facts.requests - facts.replies} of {facts.requests} requests"
    if facts.detector is Detector.CORE and not facts.probes:
        return "the core's own check failed"
    return f"{facts.probes_failed} of {facts.probes} probes failed"


def checklist(
    table: tuple[Row, ...], facts: Facts, policy: Policy, situation: Situation
) -> list[tuple[Reason, str | None]]:
    """Every row's reason with its refusal (None: met). For ``failoverctl status`` and the fail-back service."""
    return [(reason, holds(facts, policy, situation)) for reason, _overridable, holds in table]


def items(rows: Iterable[tuple[str, str | None]]) -> list[str]:
    """A checklist's rows as lines for a person: ``[x] not held``, ``[ ] the primary fails its probe``."""
    wanted = [(Reason(reason), why) for reason, why in rows if reason != Reason.ALREADY]
    return [f"[{' ' if why else 'x'}] {why or MET[reason]}" for reason, why in wanted]
