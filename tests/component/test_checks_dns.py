"""The DNS probe against a real bind9, and against servers that lie, dribble, or say nothing."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_failover.checks import ProbeError
from check_failover.checks import dns as check
from check_failover.config import load
from check_failover.model import Endpoint, Probe, State
from tests.lab.named import Named
from tests.lab.netns import freeze
from tests.lab.scripted import HOST, Scripted, ScriptedUdp, closed_port, dribble, silent
from tests.unit.test_plugins import proper, run

PORT = 13053
WWW = "www.example.org"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    with Named(tmp_path_factory.mktemp("named") / "a", HOST, PORT) as server:
        yield server


def ask(options: dict[str, object], port: int = PORT, timeout: float = 3.0) -> Probe:
    return check.probe(Endpoint(HOST, port), {"name": WWW, **options}, timeout)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"expect": "192.0.2.81"},
        {"name": "WWW.Example.org.", "record": "AAAA", "expect": "2001:DB8:0:0::80"},
        {"name": "alias.example.org", "expect": "192.0.2.80"},
        {"name": "alias.example.org", "record": "CNAME", "expect": "www.example.org"},
        {"name": "example.org", "record": "MX", "expect": "10 MAIL.example.org."},
        {"name": "text.example.org", "record": "TXT", "expect": "one and two"},
        {"name": "example.org", "record": "SOA"},
        {"name": "big.example.org", "expect": "10.9.0.100"},
        {"name": "none.example.org", "rcode": "NXDOMAIN"},
        {"name": "elsewhere.test", "rcode": "REFUSED"},
    ],
    ids=str,
)
def test_what_a_healthy_server_answers(named: Named, options: dict[str, object], transport: str) -> None:
    """Values are compared as values; what does not fit into a datagram is asked for again over TCP."""
    probe = ask({**options, "transport": transport})
    assert probe.passed, probe.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "none.example.org"}, "NXDOMAIN"),
        ({"name": "broken.test"}, "SERVFAIL"),
        ({"name": "elsewhere.test"}, "REFUSED"),
        ({"rcode": "NXDOMAIN"}, "NOERROR, expected NXDOMAIN"),
        ({"record": "MX"}, "www.example.org MX: no such record in the answer"),
        ({"name": "ns.example.org", "expect": "192.0.2.54"}, "A is 192.0.2.53, expected 192.0.2.54"),
        ({"name": "text.example.org", "record": "TXT", "expect": "one"}, "expected"),
    ],
    ids=str,
)
def test_what_is_a_failure(named: Named, options: dict[str, object], said: str) -> None:
    """An answer that is not the wanted one fails, with the reason."""
    probe = ask(options)
    assert not probe.passed
    assert said in probe.text


@pytest.mark.parametrize(
    "options",
    [
        {"record": "NONSENSE"},
        {"record": "AXFR"},
        {"name": "a" * 64},
        {"name": "a..b"},
        {"rcode": "FINE"},
        {"expect": "no address"},
        {"record": "MX", "expect": "mail"},
    ],
    ids=str,
)
def test_errors_of_our_own_are_no_failures_of_the_server(options: dict[str, object]) -> None:
    """A question that cannot be asked must never look like a dead server, whether there is one or not."""
    with pytest.raises(ProbeError):
        ask(options, closed_port())


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_refused_and_silent(named: Named, transport: str) -> None:
    """A closed port is known at once, over UDP too (ICMP); a stopped server costs the timeout and not more."""
    probe = ask({"transport": transport}, closed_port())
    assert (probe.passed, probe.refused, probe.text) == (False, True, "connection refused")
    assert probe.seconds < 1.0
    freeze(named.pid)
    try:
        probe = ask({"transport": transport}, timeout=0.3)
        assert (probe.passed, probe.refused, probe.text) == (False, False, "no answer in time")
        assert probe.seconds < 1.0
    finally:
        os.kill(named.pid, signal.SIGCONT)


def test_plugin_against_named(named: Named, tmp_path: Path) -> None:
    """The shipped program, by hand and from the config."""
    where = ("-H", HOST, "-p", str(PORT))
    assert "time=" in proper(run("dns", *where, "--name", WWW), State.OK)
    proper(run("dns", *where, "--name", "big.example.org", "--record", "A", "-w", "0"), State.WARNING)
    proper(run("dns", *where, "--name", "none.example.org"), State.CRITICAL)
    proper(run("dns", *where), State.UNKNOWN)
    proper(run("dns", *where, "--name", WWW, "--expect", "no address"), State.UNKNOWN)
    config = tmp_path / "config.toml"
    config.write_text(
        '[[service]]\nname = "dns"\nhost = "h"\nprotocol = "tcp"\naddress = "192.0.2.1"\nport = 53\n'
        f'primary = "{HOST}:{PORT}"\nstandby = "{HOST}:{closed_port()}"\n'
        f'[service.check]\ntype = "dns"\nname = "{WWW}"\n'
    )
    assert load(config).service("dns").check.options["transport"] == "tcp"
    where = ("--config", str(config), "--service", "dns")
    proper(run("dns", *where), State.OK)
    proper(run("dns", *where, "--target", "standby"), State.CRITICAL)


# ---------------------------------------------------------------- servers that misbehave


def reply_to(query: bytes, *, text: str = "192.0.2.80", rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> bytes:
    """A good reply to a query."""
    made = dns.message.make_response(dns.message.from_wire(query))
    made.set_rcode(rcode)
    made.answer.append(dns.rrset.from_text(made.question[0].name, 60, "IN", "A", text))
    return made.to_wire()


def with_id(message: bytes, offset: int = 1) -> bytes:
    number = (int.from_bytes(message[:2], "big") + offset) % 65536
    return struct.pack("!H", number) + message[2:]


def test_a_wrong_id_is_passed_over() -> None:
    """Somebody's guess neither passes nor fails the probe; the server's own reply counts."""
    with ScriptedUdp(lambda asked: [with_id(reply_to(asked, text="192.0.2.66")), b"", b"x", reply_to(asked)]) as server:
        probe = ask({"expect": "192.0.2.80"}, server.port)
        assert probe.passed, probe.text
    with ScriptedUdp(lambda asked: [with_id(reply_to(asked))]) as server:
        probe = ask({}, server.port, timeout=0.2)
        assert probe.text == "no answer in time, only replies with a wrong id"


def test_a_reply_from_elsewhere_does_not_count() -> None:
    """Another host or port answering in the server's place is nobody."""
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as stranger:
        server.bind((HOST, 0))

        def lie() -> None:
            asked, client = server.recvfrom(512)
            stranger.sendto(reply_to(asked), client)

        threading.Thread(target=lie, daemon=True).start()
        assert ask({}, server.getsockname()[1], timeout=0.2).text == "no answer in time"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda asked: asked, "the reply does not fit the question"),
        (lambda asked: reply_to(asked.replace(b"\x03www", b"\x03xxx")), "the reply does not fit the question"),
        (lambda asked: asked[:5], "the reply makes no sense"),
        (lambda asked: reply_to(asked)[:-3], "the reply makes no sense"),
        (lambda asked: reply_to(asked) + b"more", "the reply makes no sense"),
        (lambda asked: reply_to(asked, rcode=dns.rcode.SERVFAIL), "SERVFAIL"),
    ],
)
def test_liars(answer: object, said: str) -> None:
    """The right id and a wrong reply: a server that is sick, known at once."""
    with ScriptedUdp(lambda asked: [answer(asked)]) as server:  # type: ignore[operator]
        probe = ask({}, server.port)
        assert not probe.passed
        assert said in probe.text
        assert probe.seconds < 1.0


def test_a_chain_without_end() -> None:
    """CNAMEs in a circle are an answer that no client can use."""

    def circle(asked: bytes) -> list[bytes]:
        made = dns.message.make_response(dns.message.from_wire(asked))
        for owner, to in ((WWW, "b.test"), ("b.test", WWW)):
            made.answer.append(dns.rrset.from_text(f"{owner}.", 60, "IN", "CNAME", f"{to}."))
        return [made.to_wire()]

    with ScriptedUdp(circle) as server:
        assert not ask({}, server.port).passed


def test_truncated_and_no_tcp() -> None:
    """A truncated reply alone is no answer."""

    def truncated(asked: bytes) -> list[bytes]:
        made = dns.message.make_response(dns.message.from_wire(asked))
        made.flags |= dns.flags.TC
        return [made.to_wire()]

    with ScriptedUdp(truncated) as server:
        probe = ask({}, server.port)
        assert (probe.passed, probe.text) == (False, "connection refused")


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        (silent, "no answer in time"),
        (dribble(b"\x00\x40" + b"\x00" * 100), "no answer in time"),
        (lambda client: client.recv(1) and None, "connection reset"),
        (lambda client: client.recv(600) and client.sendall(b"\x00\x40abc"), "closed the connection without a whole"),
    ],
    ids=["silent", "dribble", "reset", "short"],
)
def test_tcp_that_does_not_end_well(serve: object, said: str) -> None:
    """One deadline over the whole reply, and every way to end early."""
    with Scripted(serve) as server:  # type: ignore[arg-type]
        began = time.monotonic()
        probe = ask({"transport": "tcp"}, server.port, timeout=0.3)
        assert not probe.passed
        assert said in probe.text
        assert time.monotonic() - began < 0.8


@settings(max_examples=150, deadline=None)
@given(garbage=st.binary(max_size=80), tcp=st.booleans(), at=st.integers(2, 60))
def test_garbage_is_a_failed_probe(garbage: bytes, tcp: bool, at: int) -> None:
    """Whatever comes back under the right id, whole or in the place of a part of a good reply: a probe in order."""

    def spoil(asked: bytes) -> bytes:
        return reply_to(asked)[:at] + garbage

    def serve(client: socket.socket) -> None:
        reply = spoil(client.recv(600)[2:])
        client.sendall(struct.pack("!H", len(reply)) + reply)

    if tcp:
        with Scripted(serve) as stream:
            probe = ask({"transport": "tcp", "expect": "192.0.2.80"}, stream.port, timeout=1.0)
    else:
        with ScriptedUdp(lambda asked: [spoil(asked)]) as datagrams:
            probe = ask({"expect": "192.0.2.80"}, datagrams.port, timeout=1.0)
    assert probe.seconds < 0.9
    assert probe.text.isprintable()
    assert "|" not in probe.text
    assert probe.passed is (probe.text == f"{WWW} A is 192.0.2.80")
