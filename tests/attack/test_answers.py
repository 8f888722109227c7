"""A core or gateway that drips or floods: the sender ends in time, keeps the result, and goes another way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from check_failover.model import PassiveResult, State
from check_failover.sms import GatewayError
from check_failover.sms.flush import SendPlan, SmsSender
from check_failover.sms.kannel import Kannel
from check_failover.sms.smstools import Smstools
from check_failover.sms.spool import SENT, Spool, Text
from check_failover.transports import TransportError
from check_failover.transports.icinga2 import Icinga2
from check_failover.transports.nrdp import Nrdp
from check_failover.transports.outbox import Outbox
from tests.attack.servers import Serve, drip, flood, peak, reset_peak, within_tls
from tests.lab.scripted import HOST, Scripted

TIMEOUT = 0.6  # seconds
ROOM = 48 << 20  # bytes
HEAD = b"HTTP/1.1 200 OK\r\n"
BOMB = HEAD + b"Content-Encoding: gzip\r\n\r\n"
RESULT = PassiveResult("h", "ldap primary", State.CRITICAL, "CRITICAL: gone", time.time())

SERVERS: dict[str, Serve] = {
    "drips-status": drip(),
    "drips-body": drip(HEAD + b"\r\n"),
    "drips-space-in-json": drip(HEAD + b"\r\n{", b" "),
    "floods": flood(),
    "floods-body": flood(HEAD + b"\r\n"),
    "floods-nesting": flood(HEAD + b"\r\n", b"[" * 65536),
    "floods-headers": flood(HEAD, b"X: y\r\n" * 1000),
    "floods-informational": flood(piece=b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "floods-packed": flood(BOMB),
    "nested": lambda client: client.sendall(HEAD + b"Content-Length: 200000\r\n\r\n" + b"[" * 200000),
    "infinite": lambda client: client.sendall(HEAD + b'Content-Length: 31\r\n\r\n{"result": {"status":Infinity}}'),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ca")
    for name in ("token", "password"):
        (made / name).write_text("secret\n")
    return made


def icinga2(port: int, place: Path) -> Callable[[], None]:
    """Twice the time: a connection that broke is tried once more."""
    options: dict[str, Any] = {"url": f"https://{HOST}:{port}", "ca_file": place / "ca.pem", "timeout": TIMEOUT / 2}
    account = {"username": "x", "password_file": place / "password"}
    return lambda: Icinga2(options | account).send([RESULT])


def nrdp(port: int, place: Path) -> Callable[[], None]:
    options = {"url": f"https://{HOST}:{port}/", "ca_file": str(place / "ca.pem"), "timeout": TIMEOUT}
    return lambda: Nrdp(options | {"token_file": place / "token"}).send([RESULT])


@pytest.mark.parametrize("sender", [icinga2, nrdp])
@pytest.mark.parametrize("name", SERVERS)
def test_a_core_that_does_not_end(name: str, sender: Callable[[int, Path], Callable[[], None]], place: Path) -> None:
    """TransportError in time and within little memory, in one line."""
    with Scripted(within_tls(place, SERVERS[name])) as server:
        send = sender(server.port, place)
        before, began = reset_peak(), time.monotonic()
        with pytest.raises(TransportError) as caught:
            send()
        assert time.monotonic() - began < TIMEOUT + 1.0
    assert peak() - before < ROOM
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_outbox_tells_that_the_core_is_out_of_reach(place: Path) -> None:
    """A core that drips is not reachable; the result stays in the queue."""
    options = {"url": f"https://{HOST}:{{}}/", "ca_file": str(place / "ca.pem"), "timeout": TIMEOUT}
    with Scripted(within_tls(place, drip(HEAD + b"\r\n"))) as server:
        options["url"] = f"https://{HOST}:{server.port}/"
        outbox = Outbox(Nrdp(options | {"token_file": place / "token"}))
        outbox.submit(RESULT)
        until = time.monotonic() + TIMEOUT + 2.0
        while outbox.reachable and time.monotonic() < until:
            time.sleep(0.05)
        assert not outbox.reachable
        assert outbox.waiting() == 1
        outbox.close(0.0)


class Second:
    """A gateway that accepts all."""

    receipts = False

    def send(self, text: str, number: str, receipt_url: str) -> None:
        pass

    def answers(self) -> str:
        return "yes"


@pytest.mark.parametrize("name", SERVERS)
def test_a_gateway_that_does_not_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second gateway gets the text that the first one does not end to answer."""
    monkeypatch.setattr("check_failover.sms.kannel.TIMEOUT", TIMEOUT)
    with Scripted(SERVERS[name]) as server:
        kannel = Kannel({"url": f"http://{HOST}:{server.port}/"})
        before, began = reset_peak(), time.monotonic()
        with pytest.raises(GatewayError) as caught:
            kannel.answers()
        assert time.monotonic() - began < TIMEOUT + 1.0
        assert str(caught.value).isprintable()
        spool = Spool(tmp_path / "spool")
        spool.put(Text("k", "+49", "gone", time.time() - 1000))
        SmsSender(spool, "first", kannel, SendPlan(second=("second", Second()), patience=10.0)).run(0)
        assert time.monotonic() - began < 2 * TIMEOUT + 2.0
    assert peak() - before < ROOM
    assert len(spool.pending(SENT)) == 1


class Broken(Second):
    """A gateway with a fault of its own."""

    def send(self, text: str, number: str, receipt_url: str) -> None:
        raise PermissionError(13, "Permission denied")


def test_a_fault_of_a_gateway_leaves_the_second_one_its_turn(tmp_path: Path) -> None:
    """Whatever the first gateway raises, the text goes out, and so do the texts behind it."""
    spool = Spool(tmp_path / "spool")
    for key in ("a", "b"):
        spool.put(Text(key, "+49", "gone", time.time() - 1000))
    SmsSender(spool, "first", Broken(), SendPlan(second=("second", Second()), patience=10.0)).run(0)
    assert [text.gateway for text in spool.pending(SENT)] == ["second", "second"]


def test_smstools_without_permission_is_a_gateway_error(tmp_path: Path) -> None:
    """No permission even to enter the directory: the reason in one line, in a process without root's rights."""
    outgoing = tmp_path / "outgoing"
    outgoing.mkdir(mode=0o700)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            Smstools({"outgoing": str(outgoing)}).send("gone", "+49", "")
        except GatewayError as error:
            code = 0 if "Permission denied" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
