"""The redirector's records for other processes, and their conversion to JSON and back.

``JournalEntry`` is a line of the journal; ``ServiceStatus`` is a service's state now. Other processes and other
versions read both, so reading is strict: each value must have its field's type and be within its limits. Unknown keys
are ignored, a field with a default may be missing, and the only exception is ``RecordError``. No I/O.

msgspec reads them by the fields' annotations. A field's name is its key in JSON, but ``from_`` is ``from`` there.
"""

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from check_failover.control import ControlError, parse
from check_failover.model import Facts, Hold, OneLineError, State, Target, Why

T = TypeVar("T")
Moment: TypeAlias = Annotated[float, Meta(ge=0.0, le=253402300799.0)]  # Unix time, until the end of the year 9999
Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e9)]
Number: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]  # a process or user ID


class RecordError(OneLineError, ValueError):
    """JSON that does not match the record: one line that names the value."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that gave an order, as the kernel reports it."""

    pid: Number
    uid: Number


@dataclass(frozen=True, slots=True)
class DrillPart:
    """The core ran this part of a drill. ``problem``: why the part would fail in a real incident."""

    at: Moment
    uid: Number
    problem: str | None = None


DrillParts: TypeAlias = Mapping[str, DrillPart]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One attempt to flip, or another event. ``reason``: the decision's, ``error``, or the verb again."""

    id: str
    at: Moment
    service: str
    verb: str
    by: str
    _: KW_ONLY
    peer: Caller | None = None
    from_: Target | None = None
    to: Target | None = None
    flipped: bool = False
    reason: str | None = None
    text: str = ""
    line: str  # the whole entry in one line
    facts: Facts | None = None
    moved: Seconds | None = None  # until the kernel had the new rule
    forgotten: Count | None = None  # connections, see ``redirector.Redirect``; so are left and freed
    left: Count | None = None
    freed: Count | None = None
    error: str | None = None
    took: Seconds | None = None  # the whole attempt
    parts: DrillParts | None = None  # drills only


@dataclass(frozen=True, slots=True)
class Activity:
    """A service's packets that demand an answer, and its answers, since the rules were loaded (the NAT's counters)."""

    asked: Count
    answered: Count


@dataclass(frozen=True, slots=True)
class Reach:
    """Clients may have reached the server, from ``begin`` to ``end`` (None: it goes on). See ``reach``."""

    server: Target
    why: Why
    begin: Moment
    end: Moment | None = None
    count: Count = 0  # of connections, where they are counted


@dataclass(frozen=True, slots=True)
class Drain:
    """Open connections finish on ``old``; the redirector cuts the rest at ``deadline`` (None: never).

    ``left``: how many there are now; None: not counted.
    """

    old: Target
    at: Moment
    deadline: Moment | None = None
    left: Count | None = None


@dataclass(frozen=True, slots=True)
class DrillStatus:
    """A drill in progress. ``client`` None: the drill leaves out the redirect. ``served``: the standby has answered."""

    id: str
    client: str | None
    by: str
    until: Moment
    parts: DrillParts
    served: bool = False


@dataclass(frozen=True, slots=True)
class AutoFailBack:
    """The state of the automatic fail-back."""

    penalty: float
    locked: bool
    moved_by_person: bool


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A service's state now. ``kernel``: the target read from the kernel's rule, None: neither server."""

    target: Target
    kernel: Target | None
    since: Moment | None = None
    hold: Hold | None = None
    pending: str | None = None  # the refusal that must be lifted before the core's order is executed
    refused: str | None = None  # the refusal of an order that is not pending, see ``redirector.state``
    withheld: bool | None = None  # whether refused connections are withheld from clients; None: unsupported, unknown
    dead: Target | None = None  # the server that was just left: its open connections are reset
    drain: Drain | None = None
    downtime: tuple[str, ...] = ()
    auto_fail_back: AutoFailBack | None = None
    hold_down_left: Seconds = 0.0
    problem: str | None = None
    activity: Activity | None = None
    protocol: str = ""
    address: str = ""
    primary: str = ""
    standby: str = ""
    fail_back: tuple[tuple[str, str | None], ...] = ()  # the checklist: reason, refusal (None: the condition is met)
    last: JournalEntry | None = None
    flip: JournalEntry | None = None  # the last entry with a flip
    peer_silent: Count | None = None  # seconds since the pair's other controller was last heard
    peer_unsure: bool = False  # it was not heard for some seconds, or does not know of a switch; ``reached`` may be old
    state: State = State.UNKNOWN  # of "NAME redirect", with its text and further lines
    text: str = ""
    story: tuple[str, ...] = ()
    drill: DrillStatus | None = None
    reached: tuple[Reach, ...] = ()  # by clients, oldest first


# ---------------------------------------------------------------- to and from JSON

_SOMETIMES = ("moved", "forgotten", "left", "freed", "error", "took", "parts")  # left out if None


def to_json(record: ServiceStatus | JournalEntry) -> dict[str, Any]:
    """A record as a dict for ``json``."""
    found: dict[str, Any] = msgspec.to_builtins(record)
    if isinstance(record, JournalEntry):
        return {key.rstrip("_"): one for key, one in found.items() if key not in _SOMETIMES or one is not None}
    entries = {"last": record.last, "flip": record.flip}
    return found | {key: None if entry is None else to_json(entry) for key, entry in entries.items()}


def from_json(kind: type[T], raw: object) -> T:
    """The record of that kind in a message that ``control.parse`` accepted. Raises RecordError."""
    try:
        return msgspec.convert(_with_names(raw), kind)
    except msgspec.ValidationError as error:
        raise RecordError(str(error)) from None


def read_json(kind: type[T], text: bytes) -> T:
    """The record of that kind in a line of JSON. Raises RecordError."""
    try:
        return from_json(kind, parse(text))
    except ControlError as error:
        raise RecordError(str(error)) from None


def read_own(kind: type[T], text: bytes, former: str = "") -> T:
    """The record of that kind in a file that this product alone writes. Raises RecordError.

    A key that neither this version nor an earlier one (``former``) has is a damaged name: its value would read as
    missing.
    """
    found = read_json(kind, text)
    if unknown := _keys(text) - _keys(msgspec.json.encode(found)) - {former}:
        raise RecordError(f"no such key: {min(unknown)!r}")
    return found


def _keys(text: bytes) -> set[str]:
    """The keys of all objects in a JSON text."""
    found = set[str]()
    json.loads(text.decode(errors="replace"), object_pairs_hook=lambda pairs: found.update(key for key, _ in pairs))
    return found


def _with_names(raw: object) -> object:
    """With the fields' names as keys, also in a status's entries."""
    if not isinstance(raw, dict):
        return raw
    names = {key: _with_names(raw[key]) for key in ("last", "flip") if key in raw}
    return raw | names | ({"from_": raw["from"]} if "from" in raw else {})


def journal_entries(raw: object) -> list[JournalEntry]:
    """The valid entries of a list: one that is damaged or from another version must not hide the others."""
    found = []
    for one in raw if isinstance(raw, list) else ():
        try:
            found.append(from_json(JournalEntry, one))
        except RecordError:
            continue
    return found


def service_statuses(reply: Mapping[str, Any]) -> dict[str, ServiceStatus]:
    """Each service's status in the redirector's reply to ``status``. Raises RecordError."""
    try:
        services = from_json(dict[str, dict[str, Any]], reply.get("services"))
        return {name: from_json(ServiceStatus, one) for name, one in services.items()}
    except RecordError as error:
        raise RecordError(f"failover-redirector's status is not understood: services: {error}: restart it") from None
