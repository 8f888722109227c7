"""The language of the daemons' Unix sockets: one JSON object per line each way, fixed verbs, and the kernel says
who speaks (SO_PEERCRED and its like).

A request is ``{"verb": "fail-over", "service": "ldap", ...}``; a reply is ``{"ok": true, ...}`` or
``{"ok": false, "error": "one line"}``. A connection carries one request, except ``subscribe``: there the server goes
on writing events. The redirector's verbs:

==========  ==========================================  =========================================================
verb        request                                     reply
==========  ==========================================  =========================================================
status      --                                          ``services``: name -> see ``redirector.status``
fail-over   service, perfdata | facts, by, manual       ``flipped``, ``reason``, ``text``, ``id``
drain       service, by, manual, deadline               the same; ``deadline``: seconds, null: the policy's
fail-back   service, by, deadline                       the same
downtime    host, description, begin, by                ``text``: a downtime began or ended (description: of a service)
recovered   service, by                                 the core withdraws its order (a recovery)
evidence    service, facts                              fresh facts for an order that is pending
hold        service, by, reason                         ``text``
release     service, by                                 ``text``
forget      service, client, port                       ``forgotten``: no unanswered conntrack entry is left (rescue);
                                                        ``reason``: why nothing of the service may be rescued now
drill       service, client, seconds, by                ``id``, ``client``, ``in_use``: the primary answered it lately
drilled     service, id, part, problem                  ``text``: the core ran its handler or notification (drill)
drill-end   service, id, failed, by                     ``text``
history     limit                                       ``entries``: the journal's last lines
state       --                                          ``state``: name -> what is saved of a service
follow      state (of the other controller)             ``followed``: names of the services that changed
subscribe   --                                          ``targets``, then events ``{"event": "flip", ...}``
==========  ==========================================  =========================================================

The sniffer's: ``status``, ``probe`` (service, target -> ``passed``, ``seconds``, ``text``) and ``drill`` (service, id,
step -> ``taken``: the core took the drill's result; ``step``: ``begin``, ``passed``, or the step that failed).

Threads, not an event loop: a handful of short requests, each with a deadline; what may not run twice holds the
owner's lock. The client half imports little, because the event handler starts anew for each event.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading

TYPE_CHECKING = False  # as typing.TYPE_CHECKING; typing and pathlib cost the event handler 14 ms at each start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Any, TypeAlias

    Message: TypeAlias = dict[str, Any]
    Handler: TypeAlias = "Callable[[Message, Peer], Message]"
    Authorise: TypeAlias = "Callable[[str, Peer], str | None]"  # (verb, peer) -> None, or why not
else:
    Message = dict

REDIRECTOR_VERBS = frozenset(
    {
        "status",
        "fail-over",
        "drain",
        "fail-back",
        "downtime",
        "recovered",
        "evidence",
        "hold",
        "release",
        "forget",
        "drill",
        "drilled",
        "drill-end",
        "history",
        "state",
        "follow",
        "subscribe",
    }
)
DRILL_STEPS = ("standby", "redirect", "client", "result", "handler", "notification", "sms", "untouched")
SNIFFER_VERBS = frozenset({"status", "probe", "drill"})

MAX_LINE = 65536  # bytes of one request or reply line; history is cut to fit
SERVER_DEADLINE = 5.0  # seconds a client may take to send its request line
MAX_CLIENTS = 128
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEEREID = 0, 1, 3  # FreeBSD and NetBSD, <sys/un.h>
_PEERGROUPS = 59  # SO_PEERGROUPS, Linux 4.13 (socket(7) does not name it; asm-generic/socket.h)


class ControlError(Exception):
    """The other end is not there, said no, or talks nonsense: one line."""


class Peer:
    """Who is at the other end, as the kernel says: process, user and all its groups."""

    __slots__ = ("gids", "pid", "uid")

    def __init__(self, pid: int, uid: int, gids: frozenset[int]) -> None:
        self.pid, self.uid, self.gids = pid, uid, gids


class UnreachableError(ControlError):
    """Nobody answered: asking again may help, as it does not where a living daemon said no."""


class RefusedError(Exception):
    """Raised by a server's handler to answer ``{"ok": false, "error": text}``."""


# ---------------------------------------------------------------- client end


def ask(path: str | Path, request: Mapping[str, Any], timeout: float = 5.0) -> Message:
    """Send one request, return its reply. Raises ControlError when there is none or it is a refusal of the protocol."""
    with _connect(path, timeout) as sock:
        _send(sock, request, path)
        return _checked(_read_line(sock, path), path)


def subscribe(path: str | Path, timeout: float = 5.0) -> tuple[socket.socket, Message]:
    """Open a subscription: the socket (read it with ``split_lines``, then close it) and the first reply."""
    sock = _connect(path, timeout)
    try:
        _send(sock, {"verb": "subscribe"}, path)
        return sock, _checked(_read_line(sock, path, exact=True), path)
    except BaseException:
        sock.close()
        raise


def split_lines(buffer: bytearray) -> Iterator[Message]:
    """Take the complete lines out of ``buffer``; a line that is not a JSON object raises ControlError."""
    while (end := buffer.find(b"\n")) >= 0:
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        yield parse(line)


def parse(line: bytes) -> Message:
    """One line to a message. Raises ControlError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("bogus message: not JSON") from None
    if not isinstance(message, dict):
        raise ControlError("bogus message: not an object")
    return message


def _connect(path: str | Path, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        why = "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise UnreachableError(f"{path}: {why}: is the daemon running, and are you in its group?") from None
    return sock


def _send(sock: socket.socket, request: Mapping[str, Any], path: str | Path) -> None:
    try:
        sock.sendall(json.dumps(request).encode() + b"\n")
    except OSError as error:
        raise UnreachableError(f"{path}: cannot send: {error.strerror or error}") from None


def _read_line(sock: socket.socket, path: str | Path, exact: bool = False) -> bytes:
    """One line. ``exact`` reads byte by byte so that nothing behind it is swallowed."""
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        try:
            chunk = sock.recv(1 if exact else 65536)
        except TimeoutError:
            raise UnreachableError(f"{path}: no reply in time") from None
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


# ---------------------------------------------------------------- server end


class Server:
    """A listening control socket.

    ``handle`` runs in the connection's thread, after ``authorise`` agreed; it may raise RefusedError. ``hello`` is the
    first line of a subscription; it is called under the server's lock, so that no event falls between it and the first
    event, and must take no lock of its own. ``publish`` writes an event to every subscriber and drops those that do
    not keep up.
    """

    def __init__(
        self,
        path: Path,
        verbs: frozenset[str],
        handle: Handler,
        authorise: Authorise,
        hello: Callable[[], Message] | None = None,
    ) -> None:
        self.path, self.verbs, self.handle, self.authorise, self.hello = path, verbs, handle, authorise, hello
        self._subscribers: list[socket.socket] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        self._closing = False
        self._thread: threading.Thread | None = None
        self._sock = _listen(path)

    def start(self) -> None:
        """Serve in a background thread until ``close``."""
        self._thread = threading.Thread(target=self._accept, name=f"control {self.path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and remove the socket from the file system."""
        self._closing = True
        self.path.unlink(missing_ok=True)
        # Only shutdown wakes a thread that waits in accept(2); left there, it would serve whoever gets the descriptor.
        try:  # noqa: SIM105 -- contextlib costs the event handler's start
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # FreeBSD wakes the thread and says ENOTCONN all the same
            pass
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(SERVER_DEADLINE)
        self._sock.close()
        with self._lock:
            for sock in self._subscribers:
                sock.close()
            self._subscribers.clear()

    def publish(self, event: Message) -> None:
        """Send an event line to all subscribers; one whose buffer is full is cut off and will subscribe again."""
        line = json.dumps(event).encode() + b"\n"
        with self._lock:
            for sock in list(self._subscribers):
                try:
                    sock.sendall(line)
                except OSError:  # gone, or its buffer is full: half a line is worse than none
                    self._subscribers.remove(sock)
                    sock.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                if self._closing:
                    return
                threading.Event().wait(0.05)  # out of descriptors: let the running ones finish
                continue
            if not self._slots.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        keep = False
        try:
            sock.settimeout(SERVER_DEADLINE)
            reply, keep = self._answer(sock)
            if keep and self.hello is not None:
                with self._lock:
                    sock.sendall(json.dumps({"ok": True, **self.hello()}).encode() + b"\n")
                    sock.setblocking(False)
                    self._subscribers.append(sock)
            else:
                sock.sendall(json.dumps(reply).encode() + b"\n")
        except OSError:
            keep = False  # the client went away: nobody to tell
        finally:
            if not keep:
                sock.close()
            self._slots.release()

    def _answer(self, sock: socket.socket) -> tuple[Message, bool]:
        try:
            message = parse(_request_line(sock))
            verb = message.get("verb")
            if not isinstance(verb, str) or verb not in self.verbs:
                return _no("bogus message: unknown verb"), False
            peer = peer_of(sock)
            why = self.authorise(verb, peer)
            if why is not None:
                return _no(f"{verb}: {why}"), False
            if verb == "subscribe" and self.hello is not None:
                return {}, True
            return {"ok": True, **self.handle(message, peer)}, False
        except (ControlError, RefusedError) as error:
            return _no(str(error)), False
        except Exception as error:  # a fault of our own must not leave the caller without an answer
            import logging  # here, because the event handler should not pay for it

            logging.getLogger(__name__).exception("control socket %s", self.path.name)
            return _no(f"internal error: {type(error).__name__}: see the daemon's log"), False


def _request_line(sock: socket.socket) -> bytes:
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        try:
            chunk = sock.recv(4096)
        except TimeoutError:
            raise ControlError("bogus message: no complete line in time") from None
        if not chunk:
            raise ControlError("bogus message: no newline at its end")
        buffer += chunk
        if len(buffer) > MAX_LINE:
            raise ControlError("bogus message: too long")
    return bytes(buffer)


def _no(text: str) -> Message:
    return {"ok": False, "error": text}


def _listen(path: Path) -> socket.socket:
    """Bind, taking over a dead predecessor's socket but never a living one's. Raises ControlError."""
    if path.exists():
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise ControlError(f"{path}: another daemon already listens here; stop it first")
        finally:
            probe.close()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o660)  # the directory's group may talk; SO_PEERCRED decides about what
        sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        raise ControlError(
            f"{path}: cannot listen: {error.strerror}: does the directory exist and is it ours?"
        ) from None
    return sock


def peer_of(sock: socket.socket) -> Peer:
    """Credentials of the process that connected, supplementary groups included. Raises ControlError where unknown."""
    try:
        return _PEER_OF[sys.platform.rstrip("0123456789")](sock)
    except KeyError:
        raise ControlError(f"{sys.platform} does not tell who is at the other end of a socket") from None


def _peer_linux(sock: socket.socket) -> Peer:
    """SO_PEERCRED, SO_PEERGROUPS (unix(7))."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, 4 * 1024)
        groups = frozenset(struct.unpack(f"{len(raw) // 4}I", raw))
    except OSError:
        groups = frozenset()
    return Peer(pid, uid, groups | {gid})


def _peer_freebsd(sock: socket.socket) -> Peer:
    """LOCAL_PEERCRED (FreeBSD unix(4)): struct xucred, whose last member is a pid since FreeBSD 13."""
    raw = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, struct.calcsize("IIh16IP"))
    _version, uid, count, *groups, pid = struct.unpack("IIh16IP", raw.ljust(struct.calcsize("IIh16IP"), b"\0"))
    return Peer(pid & 0xFFFFFFFF, uid, frozenset(groups[:count]))


def _peer_netbsd(sock: socket.socket) -> Peer:
    """LOCAL_PEEREID (NetBSD unix(4)): struct unpcbid; supplementary groups are not told, so they are looked up."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEEREID, 12))
    try:
        import pwd

        groups = frozenset(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except KeyError:
        groups = frozenset()
    return Peer(pid, uid, groups | {gid})


_PEER_OF = {"linux": _peer_linux, "freebsd": _peer_freebsd, "netbsd": _peer_netbsd}


def self_peer() -> Peer:
    """This process as a peer; what a daemon uses for its own actions."""
    return Peer(os.getpid(), os.getuid(), frozenset(os.getgroups()) | {os.getgid()})
