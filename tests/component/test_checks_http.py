"""The HTTP probe against a real apache2 with a CA of its own, and against servers that lie, dribble, or say nothing."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_failover.checks import ProbeError, http, talk
from check_failover.config import ConfigError, load
from check_failover.model import Endpoint, Probe, State
from tests.lab.apache import NAME, Apache, certificate
from tests.lab.scripted import HOST, Scripted, closed_port, dribble, silent
from tests.unit.test_plugins import proper, run

PORT, TLS_PORT = 13080, 13443


@pytest.fixture(scope="module")
def apache() -> Iterator[Apache]:
    with tempfile.TemporaryDirectory() as place:  # not pytest's own, which apache's user may not enter
        Path(place).chmod(0o755)
        with Apache(Path(place) / "a", HOST, PORT, TLS_PORT) as server:
            yield server


def ask(options: dict[str, object], port: int = PORT, timeout: float = 3.0) -> Probe:
    return http.probe(Endpoint(HOST, port), options, timeout)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    ("options", "passes", "said"),
    [
        ({}, True, "status 200"),
        ({"expect": "welcome"}, True, "status 200"),
        ({"method": "HEAD"}, True, "status 200"),
        ({"path": "/count?a=b", "expect": "\n150000\n"}, True, "status 200"),
        ({"path": "/count"}, True, "status 200"),
        ({"path": "/moved"}, True, "status 301"),
        ({"path": "/moved", "status": [200]}, False, "status 301"),
        ({"path": "/gone"}, False, "status 404"),
        ({"path": "/gone", "status": [404, 410]}, True, "status 404"),
        ({"path": "/sick"}, False, "status 503"),
        ({"path": "/sick", "method": "HEAD"}, False, "status 503"),
        ({"expect": "bye"}, False, "status 200, but 'bye' is not in the 27 bytes of the body"),
    ],
    ids=str,
)
def test_apache(apache: Apache, options: dict[str, object], passes: bool, said: str, tls: bool) -> None:
    """Status and text, in the clear and over TLS; the name is the site's, the address the server's."""
    more: dict[str, object] = {"tls": True, "ca_file": str(apache.ca_file)} if tls else {}
    probe = ask({"server_name": NAME, **more, **options}, TLS_PORT if tls else PORT)
    assert (probe.passed, probe.text) == (passes, said)


def test_the_name_chooses_the_site(apache: Apache) -> None:
    """Without a name it is the default site: Host is what tells virtual hosts apart."""
    assert ask({"expect": "no such site"}).passed
    assert ask({"expect": "no such site", "server_name": "default.test"}).passed
    assert not ask({"expect": "no such site", "server_name": NAME}).passed


@pytest.mark.parametrize(
    ("name", "subject", "days", "said"),
    [
        ("www.test", "DNS:www.test", 2, None),
        ("WWW.site.test", "DNS:*.site.test", 2, None),
        ("bücher.test", "DNS:xn--bcher-kva.test", 2, None),
        (None, f"IP:{HOST}", 2, None),
        ("other.test", "DNS:www.test", 2, "certificate not accepted: Hostname mismatch"),
        ("www.test", f"IP:{HOST}", 2, "certificate not accepted: Hostname mismatch"),
        (None, "DNS:www.test", 2, "certificate not accepted: IP address mismatch"),
        ("www.test", "DNS:www.test", 0, "certificate not accepted: certificate has expired"),
    ],
)
def test_tls_is_verified(tmp_path: Path, name: str | None, subject: str, days: int, said: str | None) -> None:
    """The certificate must be good for the configured name; the address stands in for it only where there is none."""
    certificate(tmp_path, "server", subject, days=days)
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.sni_callback = lambda _socket, sni, _context: asked.append(sni)

    def serve(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as secured:
            asked.append(secured.recv(4096).decode().split("Host: ")[1].split("\r\n")[0])
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with Scripted(serve) as server:
        options: dict[str, object] = {"tls": True, "ca_file": str(tmp_path / "ca.pem"), "expect": "ok"}
        probe = ask(options | ({"server_name": name} if name else {}), server.port)
        assert probe.passed is (said is None), probe.text
        assert said is None or said in probe.text
        if name and said is None:
            assert [str(sent).lower() for sent in asked] == [name.lower().encode("idna").decode()] * 2
        strange = ask({"tls": True, "server_name": NAME}, server.port)
        assert "certificate not accepted" in strange.text


def test_the_environment_counts_for_nothing(apache: Apache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy or a CA bundle of the environment must not stand between probe and server."""
    for name in ("http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{HOST}:{closed_port()}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(apache.ca_file))
    assert ask({}).passed
    assert "certificate not accepted" in ask({"tls": True, "server_name": NAME}, TLS_PORT).text


@pytest.mark.parametrize(
    "options",
    [
        {"tls": True, "ca_file": "/nowhere"},
        {"server_name": "a" * 64 + ".test"},
        {"server_name": "two words"},
        {"server_name": "x\r\nEvil: yes"},
        {"server_name": ".test", "tls": True},
        {"method": "HEAD", "expect": "x"},
    ],
    ids=str,
)
def test_errors_of_our_own_are_no_failures_of_the_server(options: dict[str, object]) -> None:
    """A request that cannot be sent must never look like a dead server."""
    with pytest.raises(ProbeError):
        ask(options, closed_port())


def test_refused() -> None:
    """A refusal is known at once, over TLS too."""
    for options in ({}, {"tls": True}):
        probe = ask(options, closed_port())
        assert (probe.passed, probe.refused, probe.text) == (False, True, "connection refused")


def test_out_of_descriptors_is_our_own_fault() -> None:
    """What this machine lacks says nothing about the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept: list[socket.socket] = []
    with Scripted(silent) as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        try:
            with contextlib.suppress(OSError):
                while len(kept) < 100:
                    kept.append(socket.socket())
            with pytest.raises(ProbeError, match="Too many open files"):
                ask({}, server.port)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in kept:
                sock.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        (silent, "no answer in time"),
        (dribble(HEAD * 10), "no answer in time"),
        (dribble(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.001), "no answer in time"),
        (dribble(HEAD + b"\r\n" + b"x" * 100, 0.01), "no answer in time"),
        (dribble(HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 100, 0.01), "no answer in time"),
        (dribble(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50, 0.01), "no answer in time"),
        (lambda client: client.recv(4096) and client.sendall(HEAD + b"Content-Length: 9\r\n\r\nx"), "IncompleteRead"),
        (lambda client: client.recv(4096) and None, "connection reset"),
        (lambda client: client.recv(1) and None, "connection reset"),
        (lambda client: client.recv(4096) and client.sendall(b"220 mail.test ESMTP\r\n"), "BadStatusLine"),
    ],
    ids=["silent", "head", "continue", "until-close", "length", "chunked", "short", "closed", "reset", "smtp"],
)
def test_servers_that_misbehave(serve: Callable[[socket.socket], None], said: str) -> None:
    """One deadline over all, and every way to end early; requests alone would wait for each read anew."""
    with Scripted(serve) as server:
        began = time.monotonic()
        probe = ask({}, server.port, timeout=0.3)
        assert time.monotonic() - began < 0.8
        assert not probe.passed
        assert said in probe.text


def test_tls_that_never_comes() -> None:
    """A server that accepts and says nothing, or anything but TLS."""
    with Scripted(silent) as server:
        assert ask({"tls": True}, server.port, timeout=0.2).text == "no answer in time"
    with Scripted(dribble(b"\x16\x03\x03\x00\x40" + b"\x02" * 99)) as server:
        began = time.monotonic()
        assert ask({"tls": True}, server.port, timeout=0.3).text == "no answer in time"
        assert time.monotonic() - began < 0.8
    with Scripted(lambda client: client.recv(4096) and client.sendall(HEAD + b"\r\n")) as server:
        assert "TLS failed" in ask({"tls": True}, server.port).text


def test_a_body_without_end_is_left() -> None:
    """What is looked at has a limit, so that a probe costs no memory to speak of."""

    def serve(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(HEAD + b"\r\n")
        while True:
            client.sendall(b"x" * 65536)

    with Scripted(serve) as server:
        assert ask({}, server.port).passed
        assert "is not in the 10" in ask({"expect": "y"}, server.port).text


@settings(max_examples=150, deadline=None)
@given(head=st.sampled_from([b"", HEAD, HEAD + b"Content-Encoding: gzip\r\n\r\n"]), garbage=st.binary(max_size=200))
def test_garbage_is_a_failed_probe(head: bytes, garbage: bytes) -> None:
    """Whatever comes back, the probe ends in order."""

    def serve(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(head + garbage)

    with Scripted(serve) as server:
        probe = ask({"expect": "such a text will not come up"}, server.port, timeout=1.0)
    assert not probe.passed
    assert probe.text.isprintable()
    assert "|" not in probe.text
    assert len(probe.text) <= talk.MAX_TEXT


def test_nothing_stays_behind(apache: Apache) -> None:
    """No thread and no connection outlives a probe."""
    before = threading.active_count()
    for _ in range(5):
        ask({}, closed_port())
        ask({})
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_plugin_against_apache(apache: Apache, tmp_path: Path) -> None:
    """The shipped program, by hand and from the config."""
    where = ("-H", HOST, "-p", str(TLS_PORT), "--tls", "--ca-file", str(apache.ca_file), "--server-name", NAME)
    assert "time=" in proper(run("http", *where, "--expect", "welcome", "--status", "200,304"), State.OK)
    proper(run("http", *where, "-w", "0"), State.WARNING)
    proper(run("http", *where, "--path", "/sick"), State.CRITICAL)
    proper(run("http", *where, "--status", "999"), State.UNKNOWN)
    named = run("http", "-H", "localhost", "-p", str(TLS_PORT), "--tls", "--ca-file", str(apache.ca_file))
    proper(named, State.CRITICAL)
    assert "'localhost'" in named.stdout  # the name given by hand is the one that the certificate must carry
    config = tmp_path / "config.toml"
    text = (
        '[[service]]\nname = "www"\nhost = "h"\nprotocol = "tcp"\naddress = "192.0.2.1"\nport = 443\n'
        f'primary = "{HOST}:{TLS_PORT}"\nstandby = "{HOST}:{closed_port()}"\n'
        f'[service.check]\ntype = "http"\ntls = true\nca_file = "{apache.ca_file}"\nserver_name = "{NAME}"\n'
        'status = [200]\nexpect = "welcome"\n'
    )
    config.write_text(text)
    where = ("--config", str(config), "--service", "www")
    proper(run("http", *where), State.OK)
    proper(run("http", *where, "--target", "standby"), State.CRITICAL)
    for bad in ('path = "x"', 'path = "/a b"', 'path = "/x\\n"', 'method = "POST"', "status = [99]", "status = []"):
        config.write_text(text.replace("status = [200]", bad))
        with pytest.raises(ConfigError):
            load(config)
