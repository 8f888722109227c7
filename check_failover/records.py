"""The redirector's records for other processes, and their conversion to JSON and back.

``JournalEntry`` is a line of the journal; ``ServiceStatus`` is a service's state now. Other processes and other
versions read both, so reading is strict: each value must have its field's type and be within its limits. Unknown keys
are ignored, a field with a default may be missing, and the only exception is ``RecordError``. No I/O.

A field's annotation controls reading: ``str``, ``int``, ``float`` (finite), ``bool``, an enum, another record, a tuple,
a mapping from names, or one of these or ``None``; ``Annotated[float, low, high]`` has limits. A field's name is its
key in JSON, without a trailing underscore (``from_``).
"""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from check_failover.model import Facts, Hold, OneLineError, State, Target, Why

T = TypeVar("T")
Reader: TypeAlias = Callable[[object], Any]
Moment: TypeAlias = Annotated[float, 0.0, 253402300799.0]  # Unix time, until the end of the year 9999
Count: TypeAlias = Annotated[int, 0, 1 << 63]
Seconds: TypeAlias = Annotated[float, 0.0, 1e9]
Number: TypeAlias = Annotated[int, 0, (1 << 32) - 1]  # a process or user ID


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
    line: str  # the whole entry in one line
    peer: Caller | None = None
    from_: Target | None = None
    to: Target | None = None
    flipped: bool = False
    reason: str | None = None
    text: str = ""
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
class DrainStatus:
    """A drain in progress; ``left``: open connections, None: they could not be counted."""

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
    drain: DrainStatus | None = None
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
    peer_unsure: bool = False  # it was not heard for some seconds, and ``reached`` does not say so yet
    state: State = State.UNKNOWN  # of "NAME redirect", with its text and further lines
    text: str = ""
    story: tuple[str, ...] = ()
    drill: DrillStatus | None = None
    reached: tuple[Reach, ...] = ()  # by clients, oldest first


# ---------------------------------------------------------------- to JSON


def to_json(record: ServiceStatus | JournalEntry) -> dict[str, Any]:
    """A record as a dict for ``json``."""
    if isinstance(record, JournalEntry):
        return _entry_json(record)
    found = asdict(record)
    for key, entry in (("last", record.last), ("flip", record.flip)):
        found[key] = None if entry is None else _entry_json(entry)
    return {**found, "state": int(record.state)}


_ALWAYS = ("id", "at", "service", "verb", "by", "peer", "from_", "to", "flipped", "reason", "text", "line", "facts")
_SOMETIMES = ("moved", "forgotten", "left", "freed", "error", "took", "parts")  # left out if None


def _entry_json(entry: JournalEntry) -> dict[str, Any]:
    found = asdict(entry)
    shown = [*_ALWAYS, *(name for name in _SOMETIMES if found[name] is not None)]
    return {name.rstrip("_"): found[name] for name in shown}


# ---------------------------------------------------------------- from JSON


def from_json(kind: type[T], raw: object) -> T:
    """The record of that kind. Raises RecordError."""
    found: T = _reader(kind)(raw)  # type: ignore[arg-type]  # mypy: a class has no hash
    return found


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
        found: dict[str, ServiceStatus] = _reader(Mapping[str, ServiceStatus])(reply.get("services"))
    except RecordError as error:
        raise RecordError(f"failover-redirector's status is not understood: services{error}: restart it") from None
    return found


@cache
def _reader(kind: Any) -> Reader:  # noqa: ANN401 - any type that annotates a field
    """The function that reads a value of that type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        (inner,) = (_reader(one) for one in arguments if one is not types.NoneType)
        return lambda value: None if value is None else inner(value)
    if origin is Annotated:
        return _limited(_reader(arguments[0]), *arguments[1:])
    if origin is tuple and arguments[-1] is Ellipsis:
        return _list_reader(_reader(arguments[0]))
    if origin is tuple:
        return _row_reader([_reader(one) for one in arguments])
    if origin is Mapping:
        return _mapping_reader(_reader(arguments[1]))
    if is_dataclass(kind):
        return _record_reader(kind)
    if issubclass(kind, Enum):
        return _enum_reader(kind)
    return _PLAIN[kind]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _mismatch("a text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _mismatch("a text in Unicode", value) from None
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _mismatch("true or false", value)
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _mismatch("a whole number", value)
    return value


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or not math.isfinite(value):
        raise _mismatch("a finite number", value)
    return value


_PLAIN: dict[Any, Reader] = {str: _text, bool: _flag, int: _whole, float: _finite}


def _mismatch(wanted: str, value: object) -> RecordError:
    return RecordError(f": want {wanted}, not {value!r}"[:200])


def _limited(inner: Reader, low: float, high: float) -> Reader:
    def read(value: object) -> float:
        found: float = inner(value)
        if not low <= found <= high:
            raise _mismatch(f"{low} to {high}", value)
        return found

    return read


def _at(place: object, read: Callable[[object], T], value: object) -> T:
    """Read one value; an error names its place."""
    try:
        return read(value)
    except RecordError as error:
        raise RecordError(f".{place}{error}"[:200]) from None


def _list_reader(inner: Reader) -> Reader:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _mismatch("a list", value)
        return tuple(_at(number, inner, one) for number, one in enumerate(value))

    return read


def _row_reader(inner: list[Reader]) -> Reader:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(inner):
            raise _mismatch(f"a list of {len(inner)}", value)
        return tuple(
            _at(number, read_one, one) for number, (read_one, one) in enumerate(zip(inner, value, strict=True))
        )

    return read


def _mapping_reader(inner: Reader) -> Reader:
    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _mismatch("an object", value)
        return {_text(key): _at(key, inner, one) for key, one in value.items()}

    return read


def _enum_reader(kind: type[Enum]) -> Reader:
    known: dict[object, Enum] = {one.value: one for one in kind}

    def read(value: object) -> Enum:
        if isinstance(value, bool) or not isinstance(value, str | int) or value not in known:
            raise _mismatch(f"one of {', '.join(map(str, known))}", value)
        return known[value]

    return read


def _record_reader(kind: Any) -> Reader:  # noqa: ANN401
    hints = get_type_hints(kind, include_extras=True)
    readers = [(one.name, one.name.rstrip("_"), _reader(hints[one.name])) for one in fields(kind)]
    needed = [one.name.rstrip("_") for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]

    def read(value: object) -> object:
        if not isinstance(value, dict):
            raise _mismatch("an object", value)
        missing = [key for key in needed if key not in value]
        if missing:
            raise RecordError(f".{missing[0]}: missing")
        return kind(**{name: _at(key, one, value[key]) for name, key, one in readers if key in value})

    return read
