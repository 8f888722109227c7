"""A server that drips or floods: each probe of it ends in time, with a bounded memory, and has failed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from check_failover.checks import PROBES, probe_function
from check_failover.model import CheckSpec, Endpoint
from tests.attack.servers import Serve, after, drip, flood, ldap, peak, reset_peak, within_tls
from tests.attack.table import measured
from tests.lab.scripted import HOST, Scripted

TIMEOUT = 0.6  # seconds
MIB = 1 << 20
ROOM = 48 * MIB  # what a probe may hold, far below what a flood sends in TIMEOUT

BOUND = ldap("61070a010004000400")  # BindResponse, success
STARTED = ldap("78070a010004000400")  # ExtendedResponse, success: StartTLS may begin
HALF = ldap("648400ffff00", b"\x84\x7f\xff\xff\xff")  # an entry of 2 GiB begins
ENTRY = ldap("64050401783000")  # an entry without attributes
HELLO = bytes.fromhex("160303400002")  # a TLS record of 16 KiB begins
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

LDAP = {"base": "dc=x"}
TCP = {"send": "hello", "expect": "never"}

# name: check type, options, what the server does; {tls}: within TLS, {starttls}: after StartTLS
ATTACKS: dict[str, tuple[str, dict[str, object], Serve, str]] = {
    "ldap-bind-drips": ("ldap", LDAP, drip(HALF), ""),
    "ldap-search-drips": ("ldap", LDAP, after([BOUND], drip(HALF)), ""),
    "ldap-search-floods": ("ldap", LDAP, after([BOUND], flood(HALF)), ""),
    "ldap-entries-without-end": ("ldap", LDAP, after([BOUND], flood(piece=lambda request: ENTRY(request) * 5000)), ""),
    "ldap-starttls-drips": ("ldap", LDAP | {"tls": "starttls"}, drip(HALF), "starttls"),
    "ldap-starttls-handshake-drips": ("ldap", LDAP | {"tls": "starttls"}, after([STARTED], drip(HELLO)), ""),
    "ldaps-handshake-drips": ("ldap", LDAP | {"tls": "ldaps"}, drip(HELLO), ""),
    "ldaps-floods": ("ldap", LDAP | {"tls": "ldaps"}, flood(HALF), "tls"),
    "http-status-drips": ("http", {}, drip(), ""),
    "http-status-floods": ("http", {}, flood(), ""),
    "http-header-drips": ("http", {}, drip(HEAD + b"X: "), ""),
    "http-headers-flood": ("http", {}, flood(HEAD, b"X: y\r\n" * 1000), ""),
    "http-informational-without-end": ("http", {}, flood(piece=b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), ""),
    "http-body-drips": ("http", {"expect": "never"}, drip(HEAD + b"\r\n"), ""),
    "http-body-floods": ("http", {"expect": "never"}, flood(HEAD + b"\r\n"), ""),
    "http-chunks-without-end": ("http", {"expect": "never"}, flood(CHUNKED, b"1\r\nx\r\n" * 1000), ""),
    "http-chunk-size-floods": ("http", {"expect": "never"}, flood(CHUNKED, b"1" * 65536), ""),
    "https-handshake-drips": ("http", {"tls": True}, drip(HELLO), ""),
    "https-body-drips": ("http", {"tls": True, "expect": "never"}, drip(HEAD + b"\r\n"), "tls"),
    "https-body-floods": ("http", {"tls": True, "expect": "never"}, flood(HEAD + b"\r\n"), "tls"),
    "dns-length-drips": ("dns", {"name": "x.test", "transport": "tcp"}, drip(byte=b"\xff"), ""),
    "tcp-drips": ("tcp", TCP, drip(), ""),
    "tcp-floods": ("tcp", TCP, flood(), ""),
    "tcp-tls-drips": ("tcp", TCP | {"tls": True}, drip(), "tls"),
    "tcp-tls-handshake-drips": ("tcp", TCP | {"tls": True}, drip(HELLO), ""),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ca")


@pytest.mark.parametrize("name", ATTACKS)
def test_a_probe_ends(name: str, place: Path) -> None:
    """In time, with little memory and no thread left; the server has failed."""
    kind, options, serve, wrapped = ATTACKS[name]
    assert kind in PROBES
    if wrapped:
        serve = within_tls(place, serve, STARTED if wrapped == "starttls" else b"")
        options = options | {"ca_file": str(place / "ca.pem")}
    probe = probe_function(CheckSpec(kind, options, TIMEOUT))
    with Scripted(serve) as server:
        before, threads = reset_peak(), {thread.name for thread in threading.enumerate()}
        began = time.monotonic()
        outcome = probe(Endpoint(HOST, server.port), options, TIMEOUT)
        took = time.monotonic() - began
        new = {thread.name for thread in threading.enumerate()} - threads
    measured("endless" if "flood" in name or "without" in name else "drip", "a probe failed after", took, "{:.1f} s")
    measured("endless", "with", (peak() - before) / MIB, "{:.0f} MiB")
    assert not outcome.passed, outcome
    assert took < TIMEOUT + 1.0, outcome
    assert peak() - before < ROOM, outcome
    assert not [thread for thread in new if not thread.startswith("Thread-")], new  # those are the server's
