"""Servers that misbehave as a test demands: wrong answers, slow answers, no answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable

HOST = "127.0.0.1"


class Scripted:
    """A listening socket that gives every client to ``serve`` in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self._socket = socket.create_server((HOST, port))
        self.port = self._socket.getsockname()[1]
        self._serve = serve
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._client, args=(client,), daemon=True).start()

    def _client(self, client: socket.socket) -> None:
        with client:
            try:
                self._serve(client)
            except OSError:
                return

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._socket)


class ScriptedUdp:
    """A UDP socket that answers every datagram with those that ``answers`` makes of it."""

    def __init__(self, answers: Callable[[bytes], Iterable[bytes]], host: str = HOST) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self.port = self._socket.getsockname()[1]
        self._answers = answers
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                asked, client = self._socket.recvfrom(65536)
                if client is None:  # woken by _close
                    return
                for answer in self._answers(asked):
                    self._socket.sendto(answer, client)
            except OSError:
                return

    def __enter__(self) -> ScriptedUdp:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._socket)


def silent(client: socket.socket) -> None:
    """For ``Scripted``: accept, read, say nothing."""
    while client.recv(4096):
        pass


def dribble(text: bytes, every: float = 0.05) -> Callable[[socket.socket], None]:
    """For ``Scripted``: read once, then a byte now and then."""

    def serve(client: socket.socket) -> None:
        client.recv(4096)
        for byte in text:
            client.sendall(bytes([byte]))
            time.sleep(every)

    return serve


def closed_port() -> int:
    """A port without a listener, neither for TCP nor for UDP."""
    while True:
        with socket.create_server((HOST, 0)) as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            port: int = stream.getsockname()[1]
            try:
                datagrams.bind((HOST, port))
            except OSError:
                continue
            return port


def _close(sock: socket.socket) -> None:
    """Close, and wake the thread that waits for it, which would keep the port open (shutdown(2))."""
    with contextlib.suppress(OSError):  # a datagram socket says "not connected" and wakes all the same
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
