"""A server for any shape of service: answers with its name, over TCP or UDP, IPv4 or IPv6. And a client for it.

    python -m tests.lab.echo serve NAME tcp|udp ADDRESS PORT
    python -m tests.lab.echo talk ADDRESS PORT                          asks on, an answer a line
    python -m tests.lab.echo ask tcp|udp ADDRESS PORT SECONDS [SOURCE_PORT]     prints the answer: "NAME client-address"

The answer carries the client's address as the server sees it, which tells whether the way kept it.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Housed
from tests.lab.netns import ROOT, House, python_argv

LATER = 2.0  # seconds until the answer to "later"


class Echo(Housed):
    """The server on one of a house's machines; answers with its name. ``argv``: another that prints "ready", too."""

    patience = 5.0

    def __init__(
        self, house: House, who: str, protocol: str, address: str, port: int, log: Path, argv: Sequence[str] = ()
    ) -> None:
        argv = argv or python_argv("tests.lab.echo", "serve", who, protocol, address, str(port))
        super().__init__(house, who, argv, log, lambda: "ready" in self.said(), cwd=ROOT)


def serve(name: str, protocol: str, address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    print("ready", flush=True)
    if protocol == "udp":
        while True:
            _, client = sock.recvfrom(2048)
            sock.sendto(f"{name} {client[0]}".encode(), client)
    sock.listen(1024)
    while True:
        connection, client = sock.accept()
        threading.Thread(target=_talk, args=(connection, f"{name} {client[0]}".encode()), daemon=True).start()


def _talk(connection: socket.socket, answer: bytes) -> None:
    with connection:
        while True:
            try:
                asked = connection.recv(2048)
                if not asked:
                    return
                if asked == b"later\n":
                    time.sleep(LATER)
                if asked != b"wait\n":  # a client that only waits gets nothing
                    connection.sendall(answer + b"\n")
            except OSError:
                return


def ask(protocol: str, address: str, port: int, timeout: float, source_port: int = 0) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source_port:
            sock.bind(("", source_port))
        sock.settimeout(timeout)
        try:
            sock.connect((address, port))
            sock.sendall(b"who\n")
            return sock.recv(2048).decode().strip()
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return error.strerror or str(error)


def talk(address: str, port: int) -> None:
    """Ask ten times a second; ends with exit code 1 when the connection breaks or 2 s bring no answer."""
    with socket.create_connection((address, port), timeout=2.0) as sock, sock.makefile("r") as answers:
        while True:
            sock.sendall(b"who\n")
            answer = answers.readline()
            if not answer:
                sys.exit("the server closed the connection")
            print(answer, end="", flush=True)
            time.sleep(0.1)


def main(argv: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if argv[0] == "serve":
        serve(argv[1], argv[2], argv[3], int(argv[4]))
    elif argv[0] == "talk":
        talk(argv[1], int(argv[2]))
    else:
        print(ask(argv[1], argv[2], int(argv[3]), float(argv[4]), int(argv[5]) if len(argv) > 5 else 0))


if __name__ == "__main__":
    main(sys.argv[1:])
