"""The sockets' language over real Unix sockets: fixed verbs, credentials, bogus messages, subscriptions."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover import control, listening, rights
from check_failover.control import ControlError, Message
from check_failover.listening import RequestRefusedError, Server
from check_failover.peer import Peer, peer_of
from tests.lab.netns import poll


def answer(message: Message, peer: Peer) -> Message:
    if message.get("service") == "unknown":
        raise RequestRefusedError("no service 'unknown'")
    return {"verb": message["verb"], "uid": peer.uid, "pid": peer.pid}


def authorise(verb: str, _peer: Peer) -> str | None:
    return "operators only" if verb == "fail-back" else None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(
        tmp_path / "test.sock",
        rights.OF_REDIRECTOR,
        answer,
        authorise,
        hello=lambda: {"targets": {"ldap": "primary"}},
    )
    made.start()
    yield made
    made.close()


def raw(path: Path, data: bytes) -> Message:
    """What a peer gets that writes ``data`` and then shuts its side."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return control.parse(sock.makefile("rb").readline())


def test_the_kernel_says_who_asks(server: Server) -> None:
    """Credentials come from SO_PEERCRED, not from the message."""
    reply = control.ask(server.path, {"verb": "status", "uid": 12345, "pid": 1})
    assert (reply["uid"], reply["pid"]) == (os.getuid(), os.getpid())


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\n", b"status\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b'{"verb": 7}\n', b'{"verb": "reboot"}\n'),
        b'{"verb": "status"}',
        b"[" * 60000 + b"\n",
        b"{" * 70000 + b"\n",
    ],
)
def test_anything_but_a_known_verb_is_bogus(server: Server, data: bytes) -> None:
    """One clear line, and the server lives on."""
    reply = raw(server.path, data)
    assert reply["ok"] is False
    assert reply["error"].startswith("bogus message: ")
    assert control.ask(server.path, {"verb": "status"})["ok"] is True


def test_authorise_decides_before_the_handler(server: Server) -> None:
    """A verb that is not for this peer never reaches the handler."""
    with pytest.raises(ControlError, match="fail-back: operators only"):
        control.ask(server.path, {"verb": "fail-back", "service": "unknown"})


def test_a_refusal_of_the_handler_is_the_error(server: Server) -> None:
    """RefusedError becomes the reply's error line."""
    with pytest.raises(ControlError, match="no service 'unknown'"):
        control.ask(server.path, {"verb": "status", "service": "unknown"})


def test_subscribers_get_the_greeting_then_events(server: Server) -> None:
    """No event is lost between the greeting and the first event."""
    sock, hello = control.subscribe(server.path)
    with sock:
        assert hello["targets"] == {"ldap": "primary"}
        server.publish({"event": "flip", "service": "ldap"})
        server.publish({"event": "hold", "service": "ldap"})
        buffer = bytearray()
        events: list[Message] = []
        while len(events) < 2:
            buffer += sock.recv(4096)
            events += control.split_lines(buffer)
        assert [event["event"] for event in events] == ["flip", "hold"]


def test_a_subscriber_that_does_not_read_is_dropped(server: Server) -> None:
    """It must not hold up the others; it will subscribe again."""
    sock, _ = control.subscribe(server.path)
    with sock:
        for _ in range(5000):
            server.publish({"event": "flip", "text": "x" * 1000})
        assert server._subscribers == []


def test_a_subscriber_that_goes_leaves_nothing(server: Server) -> None:
    """Without a flip for months, too: each one that stayed would cost a descriptor, until there is none for a flip."""
    for _ in range(2 * listening.MAX_CLIENTS):
        sock, _hello = control.subscribe(server.path)
        sock.close()
        poll(lambda: not server._subscribers, 5, "it is forgotten")
    poll(lambda: server._clients.total() == 0, 5, "all places free again")


def test_a_slow_writer_has_one_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the whole line, not for each byte of it."""
    monkeypatch.setattr(listening, "SERVER_DEADLINE", 0.5)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.path))

        def cut() -> bool:
            try:
                return not sock.send(b" ")
            except OSError:
                return True

        poll(cut, 5, "it is cut off")


def test_no_room_for_one_more_thread(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """This client asks again; the daemon does not live on without its socket."""
    start = threading.Thread.start
    failures = iter([True])

    def refuse(thread: threading.Thread) -> None:
        if next(failures, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(control.UnreachableError):
        control.ask(server.path, {"verb": "status"})
    assert control.ask(server.path, {"verb": "status"})["ok"] is True


def test_what_stands_in_the_sockets_place_is_one_clear_line(tmp_path: Path) -> None:
    """A directory, or somebody else's file in a directory with the sticky bit."""
    path = tmp_path / "x.sock"
    path.mkdir()
    with pytest.raises(ControlError, match=r"x\.sock: not our socket, and cannot be removed: .*: remove it"):
        Server(path, rights.OF_SNIFFER, answer, authorise)


def test_fifty_clients_at_once_are_all_answered(server: Server) -> None:
    """The core may start many handlers in the same moment."""
    replies: list[Message] = []
    threads = [
        threading.Thread(target=lambda: replies.append(control.ask(server.path, {"verb": "status"}))) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(replies) == 50


def test_a_dead_daemons_socket_is_taken_over_and_a_living_ones_is_not(server: Server, tmp_path: Path) -> None:
    """Two daemons on one socket would be two writers."""
    with pytest.raises(ControlError, match="another daemon already listens here"):
        Server(server.path, rights.OF_SNIFFER, answer, authorise)
    dead = tmp_path / "dead.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(dead))
    left.close()
    heir = Server(dead, rights.OF_SNIFFER, answer, authorise)
    heir.start()
    assert control.ask(dead, {"verb": "status"})["ok"] is True
    heir.close()
    assert not dead.exists()


def test_no_daemon_is_one_clear_line(tmp_path: Path) -> None:
    """What, where, and what to look at."""
    with pytest.raises(ControlError, match=r"none\.sock: No such file or directory: is the daemon running"):
        control.ask(tmp_path / "none.sock", {"verb": "status"})


def test_a_daemon_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """The client's deadline holds."""
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ControlError, match="failover-mute runs and does not answer: restart it"):
            control.ask(path, {"verb": "status"}, timeout=0.2)


def test_a_handler_that_breaks_answers_all_the_same(tmp_path: Path) -> None:
    """A fault of our own is a line for the caller, and the server lives on."""

    def broken(_message: Message, _peer: Peer) -> Message:
        raise KeyError("x")

    made = Server(tmp_path / "b.sock", rights.OF_SNIFFER, broken, authorise)
    made.start()
    with pytest.raises(ControlError, match="internal error: KeyError"):
        control.ask(made.path, {"verb": "status"})
    poll(lambda: made._clients.total() == 0, 5, "all places free again")
    made.close()


def test_messages_are_json_lines() -> None:
    """Lines are cut at newlines, what is incomplete stays."""
    buffer = bytearray(json.dumps({"a": 1}).encode() + b"\n" + b'{"b":')
    assert list(control.split_lines(buffer)) == [{"a": 1}]
    assert bytes(buffer) == b'{"b":'


def test_close_ends_the_thread_that_accepts(tmp_path: Path) -> None:
    """A thread left in accept(2) would answer for whoever gets the descriptor next."""
    made = Server(tmp_path / "closing.sock", frozenset({"status"}), answer, authorise)
    made.start()
    assert control.ask(made.path, {"verb": "status"})["ok"]
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "control closing.sock"]


class Recorded:
    """A socket whose kernel answers one getsockopt as FreeBSD's or NetBSD's does."""

    def __init__(self, level: int, option: int, answer: bytes) -> None:
        self.asked, self.answer = (level, option), answer

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == self.asked
        assert size >= len(self.answer)
        return self.answer


# struct xucred (<sys/ucred.h>), 64 bits: version, uid, number of groups, 16 groups, pid in a pointer's place.
XUCRED = struct.pack("=IIhxx16I4xQ", 0, 1001, 3, 1001, 5, 80, *[0] * 13, 4321)
UNPCBID = struct.pack("=iii", 4321, 0, 0)


@pytest.mark.parametrize(
    ("platform", "sock", "uid", "groups"),
    [
        ("freebsd14", Recorded(0, 1, XUCRED), 1001, {1001, 5, 80}),
        ("netbsd10", Recorded(0, 3, UNPCBID), 0, set(os.getgrouplist("root", 0))),
    ],
)
def test_who_speaks_on_a_bsd(
    monkeypatch: pytest.MonkeyPatch, platform: str, sock: Recorded, uid: int, groups: set[int]
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    peer = peer_of(sock)  # type: ignore[arg-type]
    assert (peer.pid, peer.uid, peer.gids) == (4321, uid, groups)


def test_who_speaks_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel's way is not known, nobody may do anything."""
    monkeypatch.setattr("sys.platform", "sunos5")
    with pytest.raises(ControlError, match="sunos5 does not tell"):
        peer_of(Recorded(0, 0, b""))  # type: ignore[arg-type]
