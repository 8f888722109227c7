"""The records and enums that several packages share. Standard library only, no I/O; time is always an argument.

Times are seconds. ``now`` is the monotonic clock; ``*_at`` in a record that is written to disk or sent to a core is
the wall clock (Unix time). Sizes are bytes.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pkgutil import resolve_name
from typing import Any

# Packet marks between the sniffer, which sends packets on for clients, and the redirector's rules.
MARK_POKE = 0x2CF00001  # not tracked
MARK_REPLAY = 0x2CF00002  # to the current target
MARK_RESCUE = 0x2CF00003  # to the standby, even if the target is the primary


class OneLineError(Exception):
    """A fault of the configuration, of this machine or of an answer: one line that says what, where, what to do."""


class TooMuchError(Exception):
    """A peer or a program sends more than the limit."""


def clean(text: str, size: int = 200) -> str:
    """What a peer said, on one line: no control characters, no ``|`` (it begins the perfdata), ``size`` characters."""
    return " ".join(printable(text.replace("|", "/")).split())[:size]


def printable(text: str, kept: str = "") -> str:
    """The text with a space in place of each control character, which could steer a terminal; some may be ``kept``."""
    return "".join(c if c.isprintable() or c in kept else " " for c in text)


def later(name: str) -> Callable[..., Any]:
    """A class (``module:Class``) that is imported when it is called: some need packages that weigh 20 MiB."""
    return lambda *arguments: resolve_name(name)(*arguments)


class Target(StrEnum):
    """Where the redirect sends a service's traffic."""

    PRIMARY = "primary"
    STANDBY = "standby"

    @property
    def other(self) -> Target:
        return Target.STANDBY if self is Target.PRIMARY else Target.PRIMARY


class Why(StrEnum):
    """What let clients reach a server."""

    SERVES = "serves"  # it is or was the target
    DRAIN = "drain"  # connections that a drain left open
    RESCUE = "rescue"  # single connections that the primary did not answer
    DRILL = "drill"
    MOVE = "move"  # connections that were moved
    PEER = "peer"  # the other controller of a pair did one of these
    PEER_SILENT = "peer-silent"  # nothing was heard of the other controller, which may do any of these


class State(IntEnum):
    """Service states, which are also a plugin's exit codes (Monitoring Plugins guidelines, section 2.4)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Detector(StrEnum):
    """What made stage 1 suspicious. A new one goes to the end: other versions know each by its ``number``."""

    REFUSED = "refused"  # RST to a SYN, ICMP unreachable
    UNANSWERED_SYN = "unanswered-syn"
    UNANSWERED_REQUEST = "unanswered-request"
    RETRANSMISSION = "retransmission"
    ERROR_SHARE = "error-share"
    SILENCE = "silence"  # no demand for a long time: one probe, not a failure
    CORE = "core"  # the core's own active check went HARD CRITICAL; no stage 1 was involved

    @property
    def lossy(self) -> bool:
        """Whether one failed probe may be chance, so that two of three must fail instead of two of two."""
        return self in (Detector.RETRANSMISSION, Detector.ERROR_SHARE)

    @property
    def number(self) -> int:
        """Its number in perfdata, which can only contain numbers; also in the sites' databases, so none may change."""
        return list(Detector).index(self)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port; IPv6 addresses are compressed and printed in brackets (RFC 5952, section 6)."""

    address: str
    port: int

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4

    @property
    def packed(self) -> bytes:
        """The address in network byte order (4 or 16 bytes)."""
        return ipaddress.ip_address(self.address).packed

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Stage 1's output: enough reason for a probe, not enough for a verdict."""

    service: str
    detector: Detector
    now: float
    text: str  # "12 of 12 requests without reply for 0.31 s"
    since: float | None = None  # when the trouble began, if earlier than ``now``

    def __str__(self) -> str:
        return f"{self.service}: suspicion, {self.detector}: {self.text}"


@dataclass(frozen=True, slots=True)
class Probe:
    """The outcome of one probe of one server."""

    passed: bool
    seconds: float
    text: str  # one line, already free of control characters and "|"
    refused: bool = False  # the server refused the connection: no need to wait for a timeout


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """A service's traffic as stage 1 measured it over its last window. Rates per second, times in seconds."""

    request_rate: float = 0.0
    reply_rate: float = 0.0
    unanswered: int = 0
    oldest_unanswered: float = 0.0
    p50: float | None = None
    p99: float | None = None
    error_share: float = 0.0
    requests: int = 0  # since the sniffer started
    replies: int = 0
    rescued: int = 0
    drops: int = 0
    share: int = 1  # the sniffer watches one connection in ``share``; the rates are extrapolated to all


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a fault of ``server`` when a flip is requested. ``None``: unknown."""

    detector: Detector | None = None
    probes: int = 0  # probes of the serving server since the suspicion
    probes_failed: int = 0
    requests: int = 0  # seen since the suspicion
    replies: int = 0  # useful replies to these requests
    standby_ok: bool | None = None
    blind: bool = False
    sync_age: float | None = None
    sync_running: bool = False
    downtime: bool = False
    server: Target = Target.PRIMARY  # the serving server, which has the fault
    evidence: int | None = None  # the name of the sniffer's evidence for this verdict: Unix time in milliseconds
    sync_undecided: bool = False  # both servers have clients' writes, and a person has not decided which may go
    handlers_off: bool = False  # a person switched event handlers off in the core

    def perfdata(self) -> str:
        """The facts as perfdata. Labels have no spaces, so that Nagios's macro cleaning does not change them."""
        pairs: dict[str, str] = {
            "detector": "" if self.detector is None else str(self.detector.number),
            "probes": str(self.probes),
            "probes_failed": str(self.probes_failed),
            "asked": str(self.requests),
            "answered": str(self.replies),
            "standby_ok": "" if self.standby_ok is None else str(int(self.standby_ok)),
            "blind": str(int(self.blind)),
            "sync_age": "" if self.sync_age is None else f"{self.sync_age:.0f}s",
            "sync_running": str(int(self.sync_running)),
            "of_standby": "1" if self.server is Target.STANDBY else "",
            "evidence": "" if self.evidence is None else str(self.evidence),
        }
        return " ".join(f"{label}={value}" for label, value in pairs.items() if value)

    @staticmethod
    def parse(perfdata: str) -> Facts:
        """The facts in a service's perfdata. A missing label means unknown; other programs' labels are ignored."""
        pairs = dict(part.split("=", 1) for part in perfdata.split() if "=" in part)
        numbers: dict[str, float] = {}
        for label, value in pairs.items():
            text = value.split(";", 1)[0].rstrip("s")
            try:
                read = float(text)
            except ValueError:
                continue
            if math.isfinite(read):
                numbers[label.strip("'")] = read
        return Facts(
            detector=next((d for d in Detector if d.number == numbers.get("detector")), None),
            probes=int(numbers.get("probes", 0)),
            probes_failed=int(numbers.get("probes_failed", 0)),
            requests=int(numbers.get("asked", 0)),
            replies=int(numbers.get("answered", 0)),
            standby_ok=bool(numbers["standby_ok"]) if "standby_ok" in numbers else None,
            blind=bool(numbers.get("blind", 0)),
            sync_age=numbers.get("sync_age"),
            sync_running=bool(numbers.get("sync_running", 0)),
            server=Target.STANDBY if numbers.get("of_standby") else Target.PRIMARY,
            evidence=int(numbers["evidence"]) if "evidence" in numbers else None,
        )


@dataclass(frozen=True, slots=True)
class Hold:
    """An operator's order that forbids any flip of a service."""

    by: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class PassiveResult:
    """One passive service check result for a core. ``text`` is one line; ``details`` may have several."""

    host: str
    service: str
    state: State
    text: str
    at: float
    details: str = ""
    perfdata: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a service's administrator allows (``[service.policy]``). Seconds, unless a comment says otherwise."""

    hold_down: float = 60.0
    max_sync_age: float | None = None  # None: sync age is no criterion
    sync: str = "refuse"  # refuse | warn: the effect of stale data on a fail-over
    min_useful: float = 0.5  # a larger share of answered requests vetoes a fail-over
    downtime: str = "inhibit"  # drain | ignore | inhibit
    rescue: bool = True
    last_resort: str = "safe"  # safe | always | never: back to the primary when the standby fails
    shadow: bool = False  # decide and report, never flip
    fail_back_passes: int = 3  # probes of the primary in a row
    fail_back_seconds: float = 10.0  # minimum time that those probes must span
    auto_fail_back: bool = False  # fail back without an operator's order, damped (see damping)
    damping_half_life: float = 86400.0
    drain_deadline: float | None = None  # a drain cuts open connections after this time; None: never


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A probe as configured: its type (a key of ``checks.PROBES``) and that type's options."""

    type: str
    options: Mapping[str, object] = field(default_factory=dict)
    timeout: float = 2.0  # upper limit of one probe


@dataclass(frozen=True, slots=True)
class SyncSpec:
    """How failover-sync copies a service's data (``[service.sync]``). Commands are argument lists, never shell lines.

    ``source_path`` (key ``from``) is the path read on the source server. ``copy_path`` (key ``to``) is the path served
    by the receiving server: a symbolic link that failover-sync switches. Both apply in both directions.
    """

    method: str = "rsync"  # or the servers replicate by themselves, and are compared: syncrepl, postgresql, mariadb
    primary: str = "local"  # user@host for ssh, or "local"
    standby: str = "local"
    controller: str = "local"  # the machine with the daemons' sockets and state
    source_path: str = ""
    copy_path: str = ""
    ssh_config: str | None = None
    rsync_path: str | None = None  # rsync's command on the servers, e.g. "sudo rsync"
    exclude: tuple[str, ...] = ()
    bandwidth: int = 0  # bytes per second; 0: no limit
    before: tuple[str, ...] = ()  # on the source server
    count: tuple[str, ...] = ()  # on the source server: prints the number of entries
    verify: tuple[str, ...] = ()  # on the receiving server, before the switch
    after: tuple[str, ...] = ()  # on the receiving server, after the switch
    timeout: float = 3600.0  # limit for each step
    after_timeout: float = 30.0  # limit of ``after``; a forward run delays a fail-over at most this long
    unsafe: str = "refuse"  # refuse | keep: root's setuid programs, devices, sockets, links that leave the tree
    bind_dn: str | None = None  # as which --diff and --merge read LDAP servers, and --merge writes; None: the check's
    bind_password_file: str | None = None
    checksum: bool = True  # compare contents, not only size and time
    max_shrink: float = 0.5  # share of files, bytes or entries that may be missing since the last good run
    keep: int = 2  # copies kept on the receiving server, including the served one
    sync_back: str = "required"  # required | unnecessary: whether a fail-back waits for failover-sync --reverse
    sync_back_valid: float = 900.0  # how long a reverse run stays valid
    user: str = ""  # at the database servers
    password_file: str = ""
    database: str = "postgres"  # PostgreSQL lets nobody in without one
    tls: bool = False
    ca_file: str | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One service address and its two servers."""

    name: str
    host: str
    protocol: str  # tcp | udp
    address: Endpoint
    primary: Endpoint
    standby: Endpoint
    check: CheckSpec
    policy: Policy = field(default_factory=Policy)
    source_nat: str | None = None  # source address for packets to the servers, if their replies need it
    sync: SyncSpec | None = None
    primary_host: str | None = None  # the core's host object for the primary server, for its downtimes
    test_client: str | None = None  # the client address that a drill redirects to the standby
    dialect: str | None = None  # a key of sniffer.stage1.dialects; None: chosen by the check's type
    writes: str = "replicated"  # primary | replicated | none: where clients' writes go

    def server(self, target: Target) -> Endpoint:
        return self.primary if target is Target.PRIMARY else self.standby

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint that a plugin's ``--target`` names: ``primary``, ``standby`` or ``service``."""
        return self.address if name == "service" else self.server(Target(name))
