"""Clients of a DNS, web or echo service: each sends five requests a second and prints each outcome.

python -m tests.lab.asking dns|http|echo ADDRESS PORT CLIENTS
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections.abc import Callable

import dns.exception
import dns.message
import dns.query
import dns.rcode

from tests.lab import echo

PATIENCE = 2.0  # seconds for one request
NAME = "www.example.org"


def ask_dns(address: str, port: int) -> str:
    """As a stub resolver asks, without repeating itself."""
    try:
        answer = dns.query.udp(dns.message.make_query(NAME, "A"), address, PATIENCE, port)
    except (dns.exception.DNSException, OSError) as error:
        return type(error).__name__
    return "ok" if answer.rcode() == dns.rcode.NOERROR and answer.answer else dns.rcode.to_text(answer.rcode())


def ask_http(address: str, port: int) -> str:
    """One page over one connection."""
    connection = http.client.HTTPConnection(address, port, timeout=PATIENCE)
    try:
        connection.request("GET", "/", headers={"Host": "www.test"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
    return "ok" if answer.status == 200 else str(answer.status)


def ask_echo(address: str, port: int) -> str:
    """Ask the server's name."""
    said = echo.ask("tcp", address, port, PATIENCE)
    return "ok" if said.split()[0] in ("primary", "standby") else said


KINDS: dict[str, Callable[[str, int], str]] = {"dns": ask_dns, "http": ask_http, "echo": ask_echo}


def main(kind: str, address: str, port: int, clients: int) -> None:
    def client() -> None:
        while True:
            began = time.monotonic()
            sys.stdout.write(KINDS[kind](address, port) + "\n")
            sys.stdout.flush()
            time.sleep(max(0.0, began + 0.2 - time.monotonic()))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
        time.sleep(0.2 / clients)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
