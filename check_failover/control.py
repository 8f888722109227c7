"""The protocol of the daemons' control sockets (Unix sockets): one JSON object per line each way and fixed verbs. The
kernel identifies the client (SO_PEERCRED or its equivalent).

A request is ``{"verb": "fail-over", "service": "ldap", ...}``; a reply is ``{"ok": true, ...}`` or
``{"ok": false, "error": "one line"}``. A connection carries one request. After ``subscribe`` the server keeps the
connection open and writes events. The verbs: nagios-conf/doc/protocol.md.

This module is the client side. It imports little, because the event handler starts anew for each event. The server side
is ``listening``.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time

TYPE_CHECKING = False  # as typing.TYPE_CHECKING; typing and pathlib cost the event handler 14 ms at each start
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any, TypeAlias

    Message: TypeAlias = dict[str, Any]
else:
    Message = dict

DRILL_STEPS = ("standby", "redirect", "client", "result", "handler", "notification", "sms", "untouched")

MAX_LINE = 65536  # bytes of one request line
HISTORY_PAGE, MAX_HISTORY = 500, 10_000  # entries of the journal in one reply, and in one request
MAX_DIGITS = 19  # of a whole number, so that it fits in 64 bits
ELSEWHERE_PAGE = 1000  # clients in one reply: fits in MAX_LINE, IPv6 too
MAX_ELSEWHERE = 100_000  # clients of one service that are ever listed


class ControlError(Exception):
    """The daemon is unreachable, refused the request or sent an invalid message: one line."""


class UnreachableError(ControlError):
    """The daemon did not answer: a second attempt may help, other than after a refusal."""


class DeniedError(UnreachableError):
    """This user may not connect: that says nothing about the daemon."""


class SilentError(UnreachableError):
    """The daemon's process is there, and does not answer: it hangs, or somebody stopped it (SIGSTOP)."""

    def __init__(self, path: str | Path) -> None:
        daemon = "failover-" + str(path).rpartition("/")[2].partition(".")[0]
        super().__init__(f"{path}: {daemon} runs and does not answer: restart it")


def ask(path: str | Path, request: Mapping[str, Any], timeout: float = 5.0) -> Message:
    """Send one request, return its reply, within ``timeout`` seconds in all.

    Raises ControlError when there is none or it is a refusal of the protocol.
    """
    end = time.monotonic() + timeout
    with _connect(path, timeout) as sock:
        _send(sock, request, path)
        return _checked(_read_line(sock, path, end), path)


def subscribe(path: str | Path, timeout: float = 5.0) -> tuple[socket.socket, Message]:
    """Open a subscription: the socket (read it with ``split_lines``, then close it) and the first reply."""
    sock = _connect(path, timeout)
    try:
        _send(sock, {"verb": "subscribe"}, path)
        return sock, _checked(_read_line(sock, path, time.monotonic() + timeout, exact=True), path)
    except BaseException:
        sock.close()
        raise


def split_lines(buffer: bytearray) -> Iterator[Message]:
    """Remove the complete lines from ``buffer`` and yield them; a line that is no JSON object raises ControlError."""
    while (end := buffer.find(b"\n")) >= 0:
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        yield parse(line)


def parse(line: bytes) -> Message:
    """Decode one line: valid Unicode (a byte or half of a character that is none becomes "?"), finite numbers.

    Raises ControlError.
    """
    try:
        message = json.loads(line.decode(errors="replace"), parse_int=_whole)
        text = json.dumps(message, ensure_ascii=False, allow_nan=False)
        if not text.isascii():
            message = json.loads(text.encode(errors="replace"))
    except (ValueError, RecursionError):
        raise ControlError("bogus message: not JSON") from None
    if not isinstance(message, dict):
        raise ControlError("bogus message: not an object")
    return message


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number without an end")
    return int(digits)


def _connect(path: str | Path, timeout: float) -> socket.socket:
    sock = None
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        sock.connect(str(path))
        _verify(sock, path)
    except OSError as error:
        if sock is not None:
            sock.close()
        if isinstance(error, TimeoutError | BlockingIOError):
            raise SilentError(path) from None
        why = error.strerror or str(error)
        if isinstance(error, PermissionError):
            raise DeniedError(f"{path}: {why}: is this user in the group of its directory?") from None
        raise UnreachableError(f"{path}: {why}: is the daemon running?") from None
    return sock


def _verify(sock: socket.socket, path: str | Path) -> None:
    """Raises PermissionError for a socket that another user put up: the directory's owner is the daemon's user."""
    from check_failover.peer import peer_of

    uid, owner = peer_of(sock).uid, os.stat(os.path.dirname(os.path.realpath(path))).st_uid  # noqa: PTH116, PTH120
    if uid not in (0, owner):
        raise PermissionError(errno.EPERM, f"user {uid} answers there, not the daemon")


def _send(sock: socket.socket, request: Mapping[str, Any], path: str | Path) -> None:
    try:
        sock.sendall(json.dumps(request, ensure_ascii=False).encode(errors="replace") + b"\n")
    except OSError as error:
        raise UnreachableError(f"{path}: cannot send: {error.strerror or error}") from None


def _read_line(sock: socket.socket, path: str | Path, end: float, exact: bool = False) -> bytes:
    """One line until ``end`` (monotonic). ``exact`` reads byte by byte so that nothing behind it is swallowed."""
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        try:
            sock.settimeout(max(0.001, end - time.monotonic()))
            chunk = sock.recv(1 if exact else 65536)
        except TimeoutError:
            raise SilentError(path) from None
        except OSError as error:
            raise UnreachableError(f"{path}: cannot receive: {error.strerror or error}") from None
        if not chunk:
            raise UnreachableError(f"{path}: closed without a reply")
        buffer += chunk
        if len(buffer) > 64 * MAX_LINE:
            raise ControlError(f"{path}: reply too long")
    return bytes(buffer)


def _checked(line: bytes, path: str | Path) -> Message:
    reply = parse(line)
    if reply.get("ok") is not True:
        raise ControlError(f"{path}: {reply.get('error', 'refused')}")
    return reply
