"""Servers that never end: a byte now and then, or bytes without limit; in the clear or within TLS."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.apache import certificate

EVERY = 0.15  # seconds between two bytes of a drip
FLOOD = b"x" * 65536
Serve = Callable[[socket.socket], None]
Answer = bytes | Callable[[bytes], bytes]  # a function gets the request


def ldap(operation: str, length: bytes = b"") -> Callable[[bytes], bytes]:
    """An LDAP message with the request's messageID (RFC 4511, 4.1.1): ``operation`` in hex, and a false ``length``."""

    def answer(request: bytes) -> bytes:
        body = request[2 : 4 + request[3]] + bytes.fromhex(operation)
        return b"\x30" + (length or bytes([len(body)])) + body

    return answer


def _said(answer: Answer, request: bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer(request)


def drip(begin: Answer = b"", byte: bytes = b"x") -> Serve:
    """Read once, send ``begin``, then a byte now and then, for ever."""

    def serve(client: socket.socket) -> None:
        client.sendall(_said(begin, client.recv(65536)))
        while True:
            client.sendall(byte)
            time.sleep(EVERY)

    return serve


def flood(begin: Answer = b"", piece: Answer = FLOOD) -> Serve:
    """Read once, send ``begin``, then as much as the client takes."""

    def serve(client: socket.socket) -> None:
        request = client.recv(65536)
        client.sendall(_said(begin, request))
        more = _said(piece, request)
        while True:
            client.sendall(more)

    return serve


def after(answers: list[Answer], then: Serve) -> Serve:
    """Give one answer to each request, then go on as ``then``."""

    def serve(client: socket.socket) -> None:
        for answer in answers:
            client.sendall(_said(answer, client.recv(65536)))
        then(client)

    return serve


def within_tls(place: Path, serve: Serve, first: Answer = b"") -> Serve:
    """``serve`` within TLS; ``first`` answers a request in the clear before it (StartTLS)."""
    if not (place / "server.pem").exists():
        certificate(place, "server", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.pem", place / "server.key")

    def secured(client: socket.socket) -> None:
        if first:
            client.sendall(_said(first, client.recv(65536)))
        with context.wrap_socket(client, server_side=True) as inner:
            serve(inner)

    return secured


def peak() -> int:
    """The most memory that this process held since ``reset_peak``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def reset_peak() -> int:
    """Begin a new measurement; returns what the process holds now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()
