"""Clients that ask as fast as they are answered: what a way to the server can carry, and what it adds to each request.

    python -m tests.bench.full_load ADDRESS PORT CLIENTS SECONDS BASE ATTRIBUTE     prints {"per_second", "median"}

Each client does what a login does, again and again: connect, anonymous bind, read one entry, unbind. Blocking sockets
and one process for each client: the least that Python can put between the clock and the network. ``median`` in seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import statistics
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.load import UNBIND, bind_request, search_request
from tests.lab.netns import House, python_argv

ROOT = Path(__file__).resolve().parents[2]
SEARCH_DONE = 0x65


@dataclass(frozen=True)
class Carried:
    """What was carried: requests per second of all clients, and the median time of one in seconds."""

    per_second: float
    median: float


def full_load(house: House, address: str, port: int, *, clients: int, seconds: float, base: str) -> Carried:
    """Run it in the client's namespace. Raises AssertionError when a request failed."""
    argv = ["tests.bench.full_load", address, str(port), str(clients), str(seconds), base, "description"]
    said = house.run("client", "/usr/bin/env", f"PYTHONPATH={ROOT}", *python_argv(*argv), timeout=seconds + 30)
    return Carried(**json.loads(said))


def _client(address: str, port: int, end: float, search: bytes) -> list[float]:
    times = []
    while (start := time.monotonic()) < end:
        with socket.create_connection((address, port), timeout=3.0) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no port waits in TIME_WAIT
            sock.sendall(bind_request(1))
            assert sock.recv(4096)[5:6] == b"\x61", "bind"
            sock.sendall(search)
            data = b""
            while not _done(data):
                more = sock.recv(4096)
                assert more, "the connection ended before the answer"
                data += more
            times.append(time.monotonic() - start)
            sock.sendall(UNBIND)
    return times


def _done(data: bytes) -> bool:
    """Whether the last whole message in ``data`` is a SearchResultDone (all lengths here are short)."""
    at = 0
    while at + 2 <= len(data):
        size, skip = data[at + 1], 2
        if size & 0x80:
            skip += size & 0x7F
            size = int.from_bytes(data[at + 2 : at + skip], "big")
        body = data[at + skip : at + skip + size]
        if len(body) == size and size and body[2 + body[1]] == SEARCH_DONE:
            return True
        at += skip + size
    return False


def main(argv: list[str]) -> None:
    address, port, clients, seconds, base, attribute = argv
    end = time.monotonic() + float(seconds)
    job = (address, int(port), end, search_request(2, base, attribute))
    with multiprocessing.Pool(int(clients)) as pool:
        times = [t for part in pool.starmap(_client, [job] * int(clients)) for t in part]
    print(json.dumps({"per_second": len(times) / float(seconds), "median": statistics.median(times)}))


if __name__ == "__main__":
    main(sys.argv[1:])
