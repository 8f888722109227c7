"""Clients that write numbered entries (LDAP) or files (HTTP PUT) all the time, each number once. Runs in a namespace.

As a program: ``python -m tests.chaos.data.clients ldap|files ADDRESS RATE`` writes a line of JSON for each write that
was answered or given up. Half of the clients keep their connection, the others connect for each write.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ldap3

from tests.lab.slapd import ADMIN, BASE, PASSWORD

CLIENTS = 4
PATIENCE = 2  # seconds for one step of a write; ldap3 wants an int
PORTS = {"ldap": 389, "files": 80}


class Ldap:
    """One connection; each entry is ``cn=nNUMBER``."""

    def __init__(self, address: str) -> None:
        server = ldap3.Server(address, PORTS["ldap"], get_info=ldap3.NONE, connect_timeout=PATIENCE)
        how: dict[str, Any] = {"receive_timeout": PATIENCE, "raise_exceptions": True}
        self._connection = ldap3.Connection(server, ADMIN, PASSWORD, **how)
        if not self._connection.bind():
            raise OSError("the bind failed")

    def write(self, number: int) -> None:
        name = f"n{number}"
        dn = f"cn={name},ou=people,{BASE}"
        if not self._connection.add(dn, "inetOrgPerson", {"cn": name, "sn": name}):
            raise OSError("the add failed")

    def close(self) -> None:
        self._connection.unbind()


class Files:
    """One connection; each file is ``nNUMBER``."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, PORTS["files"], timeout=PATIENCE)
        self._connection.connect()

    def write(self, number: int) -> None:
        self._connection.request("PUT", f"/n{number}", body=f"{number}\n" * (1 + number % 9))
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != http.client.CREATED:
            raise OSError(f"status {answer.status}")

    def close(self) -> None:
        self._connection.close()


KINDS: dict[str, Callable[[str], Ldap | Files]] = {"ldap": Ldap, "files": Files}


def client(kind: str, address: str, pause: float, take: Callable[[], int], *, keep: bool) -> None:
    """Write for ever."""
    connection: Ldap | Files | None = None
    while True:
        number, error = take(), None
        try:
            connection = connection or KINDS[kind](address)
            connection.write(number)
        except Exception as problem:  # whatever a library makes of a connection that breaks: the write is not confirmed
            error = f"{type(problem).__name__}: {problem}"
        said = {"number": number, "at": time.time(), "error": error, "kept": keep}
        os.write(1, f"{json.dumps(said)}\n".encode())  # one write, so that lines of threads do not mix
        if connection is not None and (error or not keep):
            try:
                connection.close()
            except Exception as problem:
                print(problem, file=sys.stderr)
            connection = None
        time.sleep(pause)


def main(kind: str, address: str, rate: float) -> None:
    count = itertools.count(1)
    lock = threading.Lock()

    def take() -> int:
        with lock:
            return next(count)

    for index in range(CLIENTS):
        arguments = (kind, address, CLIENTS / rate, take)
        threading.Thread(target=client, args=arguments, kwargs={"keep": index % 2 == 0}, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
