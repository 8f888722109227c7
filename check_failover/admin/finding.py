"""The doctor's findings, one line each, and the functions that several looks share.

Permissions come from the mode bits along a path (path_resolution(7)), because access(2) answers for the caller only and
the doctor needs other users. Access control lists are ignored.
"""

import grp
import os
import pwd
import socket
import stat
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from check_failover import control, programs
from check_failover.config import Config
from check_failover.control import MAX_HISTORY, ControlError, Message, SilentError
from check_failover.peer import peer_of
from check_failover.places import row_of
from check_failover.records import JournalEntry, RecordError, ServiceStatus, journal_entries, service_statuses
from check_failover.rights import user_name

S = TypeVar("S")
# seconds for a daemon's status, and more for each service: the doctor answers within 2 s even if both hang
LOOK_TIMEOUT, LOOK_MORE = 0.9, 0.002
COMMAND_LIMIT = 10.0  # seconds for one external program
INSTRUCTIONS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("instructions.toml").read_text())
SEVERITY = {"ok": 0, "warning": 1, "unknown": 1, "missing": 2}  # also the exit code


@dataclass(frozen=True, slots=True)
class Finding:
    """``level`` (a key of SEVERITY): ``warning``: to be improved; ``missing``: a fail-over would not work.

    ``unknown``: this user may not read it. ``do``: what to do; may be empty.
    """

    level: str
    about: str
    found: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.about}: {self.found}" + (f": {self.do}" if self.do else "")


@dataclass(frozen=True, slots=True)
class User:
    """A user with all its groups."""

    name: str
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Daemon(Generic[S]):
    """One of our daemons: its services' ``status``, or why it is ``away``, and the user that it runs as."""

    status: Mapping[str, S] | None
    away: str
    user: User | None
    hangs: bool = False  # its process runs, but does not answer


@dataclass(frozen=True, slots=True)
class Scene:
    """The looks' input; each daemon is asked only once."""

    config: Config
    nagios_cfg: Path
    redirector: Daemon[ServiceStatus]
    sniffer: Daemon[Mapping[str, Any]]


def scene(config: Config, nagios_cfg: Path) -> Scene:
    controller = config.controller
    limit, sniffs = LOOK_TIMEOUT + LOOK_MORE * len(config.services), controller.sniffer_user
    redirector = _daemon(controller.redirector_socket, "failover-redirector", service_statuses, limit)
    sniffer = _daemon(controller.sniffer_socket, sniffs, lambda reply: reply.get("services") or {}, limit)
    return Scene(config, nagios_cfg, redirector, sniffer)


def _daemon(path: Path, usual_user: str, read: Callable[[Message], Mapping[str, S]], limit: float) -> Daemon[S]:
    try:
        status = read(control.ask(path, {"verb": "status"}, limit))
    except (ControlError, RecordError) as error:
        return Daemon(None, str(error), user_of(usual_user), isinstance(error, SilentError))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
            peer = peer_of(sock)  # the listening daemon, with the groups of its unit
        except (OSError, ControlError):  # the daemon is gone, or the system has no such function
            return Daemon(status, "", user_of(usual_user))
    return Daemon(status, "", User(user_name(peer.uid), peer.uid, peer.gids))


def journal(config: Config, limit: int = MAX_HISTORY, timeout: float = 20.0) -> list[JournalEntry]:
    """The redirector's last entries, oldest first, read page by page. Raises ControlError."""
    found: list[JournalEntry] = []
    message: dict[str, Any] = {"verb": "history", "limit": limit}
    while True:
        reply = control.ask(config.controller.redirector_socket, message, timeout)
        page = journal_entries(reply.get("entries"))
        found = page + found
        if not page or not reply.get("more") or len(found) >= limit:
            return found[-limit:]
        message |= {"before": page[0].id, "limit": limit - len(found)}


def how_to(what: str, platform: str = sys.platform, **words: str) -> str:
    """The instruction for a task on this system: an item of INSTRUCTIONS with its words filled in."""
    rows = INSTRUCTIONS["any"] | row_of(INSTRUCTIONS, platform, "netbsd")
    if "daemon" in words and not platform.startswith("linux"):
        words["daemon"] = words["daemon"].replace("-", "_")  # rc.d(8)
    return rows[what].format(**words)


def user_of(name: str) -> User | None:
    """A user from the user database; None: there is no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return User(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def access(about: str, user: User | None, path: Path, wanted: int, do: str) -> Iterator[Finding]:
    """A finding if ``user`` lacks the access ``wanted`` (R_OK, W_OK, X_OK of ``os``, or their sum) to ``path``."""
    if user is None:
        yield Finding("unknown", about, f"whether its user may use {path}", "start the daemon, or make its user first")
        return
    try:
        real = path.resolve(strict=True)
        for place in (*reversed(path.absolute().parents), *reversed(real.parents), real):  # also the way to a link
            mode = place.stat()
            if not _allows(user, mode, wanted if place == real else os.X_OK):
                yield Finding("missing", about, f"{user.name} may not use {path}: {place} is {describe(mode)}", do)
                return
    except OSError as error:
        yield unusable(about, path, error, do)


def unusable(about: str, path: Path, error: OSError, do: str) -> Finding:
    """The finding for a path that cannot be used: ``unknown`` if only this user may not look at it."""
    if isinstance(error, PermissionError):
        return Finding("unknown", about, f"{error.filename or path}: {error.strerror}", "run it as root")
    return Finding("missing", about, f"{path}: {error.strerror}", do)


def absent(path: str | Path) -> bool:
    """Whether ``path`` certainly does not exist."""
    try:
        Path(path).stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def describe(mode: os.stat_result) -> str:
    """``0640 root:check_failover``."""
    try:
        group = grp.getgrgid(mode.st_gid).gr_name
    except KeyError:
        group = str(mode.st_gid)
    return f"{stat.S_IMODE(mode.st_mode):04o} {user_name(mode.st_uid)}:{group}"


def output(*argv: str) -> str | None:
    """A program's output; None if it fails or does not exist."""
    try:
        done = programs.run(argv, COMMAND_LIMIT)
    except (OSError, programs.LateError):
        return None
    return done.out.decode(errors="replace") if done.code == 0 else None


def _allows(user: User, mode: os.stat_result, wanted: int) -> bool:
    if user.uid == 0:  # root enters and writes anything, but runs only what somebody may run
        return not wanted & os.X_OK or stat.S_ISDIR(mode.st_mode) or bool(mode.st_mode & 0o111)
    shift = 6 if mode.st_uid == user.uid else 3 if mode.st_gid in user.gids else 0
    return (mode.st_mode >> shift) & wanted == wanted
