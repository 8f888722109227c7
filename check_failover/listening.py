"""The server side of a control socket; ``control`` describes the protocol.

Each connection has a thread. That suffices for a few short requests, each with a deadline. A handler that must not run
twice at once takes its own lock.
"""

import contextlib
import json
import logging
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from check_failover.control import MAX_LINE, ControlError, Message, parse
from check_failover.peer import Peer, peer_of

Handler: TypeAlias = Callable[[Message, Peer], Message]
Authorise: TypeAlias = Callable[[str, Peer], str | None]  # (verb, peer) -> None, or why not

SERVER_DEADLINE = 5.0  # seconds a client may take to send its request line
INHERITED = "CHECK_FAILOVER_LISTENING"  # the descriptor that ``hand_over`` leaves to the program that begins anew
MAX_CLIENTS = 128  # connections per user, subscriptions included: one user cannot lock out the others
QUESTIONS = 2  # of lookers, at once: so an order has a fair share of the processor
PATIENCE = 4.0  # seconds that a looker's question waits for its turn
log = logging.getLogger(__name__)


class RequestRefusedError(Exception):
    """A handler raises it; the server answers ``{"ok": false, "error": text}``."""


class Server:
    """A listening control socket.

    ``handle`` runs in the connection's thread, after ``authorise`` returned None; it may raise RequestRefusedError.
    ``looks``: whether a peer may only look; its questions wait their turn.
    ``hello`` makes the first line of a subscription. The server calls it under its lock, so that a subscriber misses no
    event; ``hello`` must take no lock itself. ``publish`` writes an event to every subscriber and disconnects a
    subscriber with a full buffer. Only a connection's own thread closes it; other threads shut it down.
    """

    def __init__(
        self,
        path: Path,
        verbs: Collection[str],
        handle: Handler,
        authorise: Authorise,
        hello: Callable[[], Message] | None = None,
        looks: Callable[[Peer], bool] = lambda _peer: False,
    ) -> None:
        self.path, self.verbs, self.handle, self.authorise, self.hello = path, verbs, handle, authorise, hello
        self.looks, self._turns = looks, _Turns()
        self._subscribers: list[socket.socket] = []
        self._lock = threading.Lock()
        self._clients: Counter[int] = Counter()  # user -> connections
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
        Path(os.path.realpath(self.path)).unlink(missing_ok=True)
        # Only shutdown wakes a thread in accept(2). If it stayed there, it would accept on a reused descriptor.
        with contextlib.suppress(OSError):  # FreeBSD wakes the thread, but returns ENOTCONN
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(SERVER_DEADLINE)
        self._sock.close()
        with self._lock:
            for sock in list(self._subscribers):
                self._disconnect(sock)

    def hand_over(self) -> None:
        """Answer what was asked, and leave the listening socket to the program that ``os.execv`` begins."""
        self._closing = True
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.settimeout(SERVER_DEADLINE)
            last.connect(str(self.path))  # one more client wakes the thread in accept(2), and no other is turned away
        if self._thread is not None:
            self._thread.join(SERVER_DEADLINE)
        end = time.monotonic() + SERVER_DEADLINE
        while sum(self._clients.values()) > len(self._subscribers) and time.monotonic() < end:
            time.sleep(0.01)
        descriptor = self._sock.detach()
        os.set_inheritable(descriptor, True)
        os.environ[INHERITED] = str(descriptor)

    def publish(self, event: Message) -> None:
        """Send an event line to all subscribers. One with a full buffer is disconnected and will subscribe again."""
        line = json.dumps(event).encode() + b"\n"
        with self._lock:
            for sock in list(self._subscribers):
                try:
                    sock.sendall(line)
                except OSError:  # the subscriber is gone or its buffer is full: it must not get half a line
                    self._disconnect(sock)

    def _disconnect(self, sock: socket.socket) -> None:
        self._subscribers.remove(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(0.05)  # out of descriptors: wait until open connections end
                continue
            peer = self._admit(sock)
            if peer is None:
                sock.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(sock, peer), daemon=True).start()
            except RuntimeError:  # no thread can start: the client will ask again, the daemon goes on
                log.exception("control socket %s", self.path.name)
                self._release(sock, peer.uid)

    def _admit(self, sock: socket.socket) -> Peer | None:
        """The client of a new connection; None: it is gone, or its user has ``MAX_CLIENTS`` connections already."""
        try:
            peer = peer_of(sock)
        except (ControlError, OSError) as error:
            log.warning("control socket %s: %s", self.path.name, error)
            return None
        with self._lock:
            if self._clients[peer.uid] >= MAX_CLIENTS:
                return None
            self._clients[peer.uid] += 1
        return peer

    def _release(self, sock: socket.socket, uid: int) -> None:
        with self._lock:
            self._clients[uid] -= 1
            if sock in self._subscribers:
                self._subscribers.remove(sock)
        sock.close()

    def _serve(self, sock: socket.socket, peer: Peer) -> None:
        try:
            reply = self.answer(_request_line(sock), peer)
            if reply is None and self.hello is not None:
                self._subscribe(sock, self.hello)
            else:
                sock.sendall(json.dumps(reply).encode() + b"\n")
        except OSError:
            pass  # the client is gone
        finally:
            self._release(sock, peer.uid)

    def _subscribe(self, sock: socket.socket, hello: Callable[[], Message]) -> None:
        """Serve until the subscriber closes the connection, sends anything, or is disconnected."""
        with self._lock:
            sock.sendall(json.dumps({"ok": True, **hello()}).encode() + b"\n")
            sock.setblocking(False)
            self._subscribers.append(sock)
        end = select.poll()
        end.register(sock, select.POLLIN)
        end.poll()

    def answer(self, line: bytes, peer: Peer) -> Message | None:
        """The reply to a request; None: it subscribes."""
        try:
            if not line.endswith(b"\n"):
                raise ControlError("bogus message: too long, too late, or without a newline at its end")
            message = parse(line)
            verb = message.get("verb")
            if not isinstance(verb, str) or verb not in self.verbs:
                raise ControlError("bogus message: unknown verb")
            why = self.authorise(verb, peer)
            if why is not None:
                log.warning("%s refused to uid %d: %s", verb, peer.uid, why)
                raise RequestRefusedError(f"{verb}: {why}")
            if verb == "subscribe" and self.hello is not None:
                return None
            with self._turns.of(peer.uid if self.looks(peer) else None):
                return {"ok": True, **self.handle(message, peer)}
        except (ControlError, RequestRefusedError) as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:  # after an internal error the client still gets an answer
            log.exception("control socket %s", self.path.name)
            return {"ok": False, "error": f"internal error: {type(error).__name__}: see the daemon's log"}


class _Turns:
    """Orders do not wait. A looker's question waits for them, for its user's other ones, and for ``QUESTIONS``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._orders = 0
        self._asking: set[int] = set()  # lookers' users

    @contextlib.contextmanager
    def of(self, looker: int | None) -> Iterator[None]:
        """The time of a request. ``looker``: the user, if it may only look. Raises RequestRefusedError."""
        with self._changed:
            if looker is None:
                self._orders += 1
            elif self._changed.wait_for(
                lambda: not self._orders and looker not in self._asking and len(self._asking) < QUESTIONS, PATIENCE
            ):
                self._asking.add(looker)
            else:
                raise RequestRefusedError("busy with orders or with this user's other questions: ask again later")
        try:
            yield
        finally:
            with self._changed:
                if looker is None:
                    self._orders -= 1
                else:
                    self._asking.remove(looker)
                self._changed.notify_all()


def _request_line(sock: socket.socket) -> bytes:
    """What the client sends until a newline, its end, ``MAX_LINE`` or ``SERVER_DEADLINE``. Raises OSError."""
    buffer, end = bytearray(), time.monotonic() + SERVER_DEADLINE
    with contextlib.suppress(TimeoutError):
        while not buffer.endswith(b"\n") and len(buffer) <= MAX_LINE:
            sock.settimeout(max(0.001, end - time.monotonic()))
            chunk = sock.recv(4096)
            if not chunk:
                break
            buffer += chunk
    sock.settimeout(SERVER_DEADLINE)
    return bytes(buffer) if len(buffer) <= MAX_LINE else b""


def _listen(path: Path) -> socket.socket:
    """Bind and listen. Replaces the socket of a dead daemon, never of a running one. Raises ControlError."""
    inherited = os.environ.pop(INHERITED, None)
    if inherited is not None:
        sock = socket.socket(fileno=int(inherited))
        sock.set_inheritable(False)
        return sock
    path = Path(os.path.realpath(path))  # it may be a link into the daemon's own directory
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            answers = probe.connect_ex(str(path)) == 0
        if answers:
            raise ControlError(f"{path}: another daemon already listens here; stop it first")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ControlError(f"{path}: not our socket, and cannot be removed: {error.strerror}: remove it") from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o660)  # the directory's group may connect; each verb is authorised by SO_PEERCRED
        sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        text = f"{path}: cannot listen: {error.strerror}: does the directory exist and is it ours?"
        raise ControlError(text) from None
    return sock
