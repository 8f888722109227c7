"""The probes against the real thing: slapd, TLS, servers that lie, dribble, or say nothing."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_failover.checks import ProbeError, ldap, tcp
from check_failover.model import Endpoint, Probe, State
from tests.lab.netns import freeze
from tests.lab.scripted import Scripted, dribble
from tests.lab.slapd import ADMIN, BASE, PASSWORD, Slapd
from tests.unit.test_plugins import proper, run

HOST, PORT = "127.0.0.1", 13389


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "a", HOST, serves="primary", port=PORT, tls=True) as server:
        yield server


def ask(options: dict[str, object], port: int = PORT, timeout: float = 3.0) -> Probe:
    return ldap.probe(Endpoint(HOST, port), {"base": BASE, **options}, timeout)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attribute": "description", "value": "primary"},
        {"attribute": "DESCRIPTION"},
        {"scope": "sub", "filter": "(cn=joe)", "attribute": "mail", "value": "joe@example.org"},
        {"scope": "sub"},
        {"bind_dn": ADMIN, "bind_password_file": "{password}"},
        {"tls": "starttls", "ca_file": "{ca}"},
        {"tls": "starttls", "ca_file": "{ca}", "server_name": "ldap.test"},
    ],
    ids=str,
)
def test_what_a_healthy_server_answers(slapd: Slapd, tmp_path: Path, options: dict[str, str]) -> None:
    """Every way to ask passes against a slapd that is well."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    places = {"password": tmp_path / "password", "ca": slapd.ca_file}
    probe = ask({key: value.format(**places) for key, value in options.items()})
    assert probe.passed, probe.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base": "dc=elsewhere"}, "noSuchObject"),
        ({"attribute": "description", "value": "standby"}, "description is 'primary', expected 'standby'"),
        ({"attribute": "title"}, "no entry has the attribute title"),
        ({"filter": "(cn=nobody)"}, "no entry at"),
        ({"tls": "starttls"}, "certificate not accepted"),
        ({"tls": "starttls", "ca_file": "{ca}", "server_name": "other.test"}, "certificate not accepted"),
        ({"bind_dn": ADMIN, "bind_password_file": "{wrong}"}, "invalidCredentials"),
    ],
    ids=str,
)
def test_what_is_a_failure(slapd: Slapd, tmp_path: Path, options: dict[str, str], said: str) -> None:
    """An answer that is not the wanted one fails, with the reason."""
    (tmp_path / "wrong").write_text("guess\n")
    places = {"wrong": tmp_path / "wrong", "ca": slapd.ca_file}
    probe = ask({key: value.format(**places) for key, value in options.items()})
    assert not probe.passed
    assert said in probe.text


@pytest.mark.parametrize(("name", "passes"), [("ldap.test", True), ("other.test", False), (None, True)])
def test_ldaps_is_verified(slapd: Slapd, name: str | None, passes: bool) -> None:
    """LDAPS: the configured name must be the certificate's; the address does not stand in for it."""
    options = {"tls": "ldaps", "ca_file": str(slapd.ca_file)} | ({"server_name": name} if name else {})
    assert ask(options, PORT + 247).passed is passes


def test_errors_of_our_own_are_no_failures_of_the_server(slapd: Slapd) -> None:
    """A missing password or CA file must never look like a dead server."""
    for options in (
        {"bind_dn": ADMIN, "bind_password_file": "/nowhere"},
        {"bind_dn": ADMIN},
        {"tls": "starttls", "ca_file": "/nowhere"},
    ):
        with pytest.raises(ProbeError):
            ask(options)


def test_refused_and_silent(slapd: Slapd) -> None:
    """A refusal is known at once; a stopped slapd costs the timeout and not more."""
    probe = ask({}, port=13999)
    assert (probe.passed, probe.refused, probe.text) == (False, True, "connection refused")
    freeze(slapd.pid)
    try:
        began = time.monotonic()
        probe = ask({}, timeout=0.3)
        assert (probe.passed, probe.refused, probe.text) == (False, False, "no answer in time")
        assert time.monotonic() - began < 1.0
    finally:
        os.kill(slapd.pid, signal.SIGCONT)


def test_application_error(slapd: Slapd) -> None:
    """A slapd that binds and refuses every search is a failure."""
    slapd.restrict("search")
    try:
        assert "unwillingToPerform" in ask({}).text
    finally:
        slapd.restrict(None)


def test_plugin_against_slapd(slapd: Slapd) -> None:
    """The shipped program, the way Nagios calls it."""
    where = ("-H", HOST, "-p", str(PORT), "--base", BASE)
    assert "time=" in proper(run("ldap", *where), State.OK)
    proper(run("ldap", *where, "-w", "0"), State.WARNING)
    proper(run("ldap", *where, "--attribute", "title"), State.CRITICAL)
    proper(run("ldap", "-H", HOST, "-p", "13999", "--base", BASE), State.CRITICAL)
    proper(run("ldap", "-H", HOST, "-p", str(PORT)), State.UNKNOWN)


def test_plugin_takes_the_config(slapd: Slapd, tmp_path: Path) -> None:
    """``--service`` and ``--target`` ask what the sniffer asks."""
    config = tmp_path / "config.toml"
    config.write_text(
        '[[service]]\nname = "ldap"\nhost = "h"\nprotocol = "tcp"\naddress = "192.0.2.1"\nport = 389\n'
        f'primary = "{HOST}:{PORT}"\nstandby = "{HOST}:13999"\n'
        f'[service.check]\ntype = "ldap"\nbase = "{BASE}"\nattribute = "description"\nvalue = "primary"\n'
    )
    where = ("--config", str(config), "--service", "ldap")
    proper(run("ldap", *where, "--target", "primary"), State.OK)
    proper(run("ldap", *where, "--target", "standby"), State.CRITICAL)
    done = run("tcp", *where)
    proper(done, State.UNKNOWN)
    assert "check type 'ldap', not tcp" in done.stdout


# ---------------------------------------------------------------- servers that misbehave


def test_dribble_does_not_outlive_the_deadline() -> None:
    """A byte now and then is no answer: the whole probe has one deadline, not each recv."""
    with Scripted(dribble(b"\x30\x84\x00\x00\x00\x0c" + b"\x02" * 100)) as server:
        began = time.monotonic()
        probe = ask({}, server.port, timeout=0.4)
        assert not probe.passed
        assert time.monotonic() - began < 1.0


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(max_size=60))
def test_garbage_is_a_failed_probe(garbage: bytes) -> None:
    """Whatever comes back, the probe fails in order: ldap3 throws a dozen kinds of exceptions here."""

    def answer(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(garbage)

    with Scripted(answer) as server:
        probe = ask({}, server.port, timeout=1.0)
    assert not probe.passed
    assert probe.text.isprintable()
    assert "|" not in probe.text


@pytest.mark.parametrize(
    ("greeting", "options", "passes", "said"),
    [
        (b"220 hello\r\n", {"expect": "220 "}, True, ""),
        (b"554 no\r\n", {"expect": "220 "}, False, "expected '220', got '554 no'"),
        (b"", {"expect": "220 "}, False, "closed the connection"),
        (b"", {}, True, ""),
        (b"\x00\xffok", {"send": r"\x00\r\n", "expect": r"\xff"}, True, ""),
    ],
)
def test_tcp_send_and_expect(greeting: bytes, options: dict[str, object], passes: bool, said: str) -> None:
    """Connect, send, expect."""

    def serve(client: socket.socket) -> None:
        if options.get("send"):
            client.recv(100)
        for byte in greeting:
            client.sendall(bytes([byte]))

    with Scripted(serve) as server:
        probe = tcp.probe(Endpoint(HOST, server.port), options, 2.0)
        assert probe.passed is passes, probe.text
        assert said in probe.text


def test_tcp_silence_and_refusal() -> None:
    """A server that accepts and says nothing fails when an answer is expected; refused is known at once."""
    with Scripted(lambda client: client.recv(1) and None) as server:
        probe = tcp.probe(Endpoint(HOST, server.port), {"expect": "x"}, 0.2)
        assert probe.text == "no answer in time"
    assert tcp.probe(Endpoint(HOST, 13999), {}, 1.0).refused


def test_tcp_tls(slapd: Slapd, tmp_path: Path) -> None:
    """TLS is verified for tcp as well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(slapd.directory / "cert.pem", slapd.directory / "key.pem")

    def serve(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as secured:
            secured.sendall(b"hello")

    with Scripted(serve) as server:
        at = Endpoint(HOST, server.port)
        good = {"tls": True, "expect": "hello", "ca_file": str(slapd.ca_file)}
        assert tcp.probe(at, good, 3.0).passed
        assert "certificate not accepted" in tcp.probe(at, good | {"server_name": "other.test"}, 3.0).text
        assert "certificate not accepted" in tcp.probe(at, {"tls": True}, 3.0).text
