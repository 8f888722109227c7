"""Web and DNS servers that start at once and can be had to fail, and clients that say who answered.

python -m tests.lab.cheap web|dns NAME ADDRESS PORT      SIGUSR1: from now on 503 or SERVFAIL; SIGUSR2: well again
python -m tests.lab.cheap clients ADDRESS RATE           of both kinds; a line for each request (``load.Request``)

``Cheap`` has what ``tests.lab.faults`` asks of a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.rcode
import dns.rrset

from tests.lab.daemon import Housed
from tests.lab.load import PATIENCE, ROOT, Load, Request
from tests.lab.netns import House, poll, python_argv

PORTS = {"web": 80, "dns": 53}
NAME = "www.example.org."
WHO = {"10.0.0.11": "primary", "10.0.0.12": "standby"}  # what the DNS servers answer with


class Cheap(Housed):
    """One server, in one namespace."""

    patience = 5.0

    def __init__(self, house: House, kind: str, who: str, address: str, log: Path) -> None:
        argv = python_argv("tests.lab.cheap", kind, who, address, str(PORTS[kind]))
        super().__init__(house, who, argv, log, lambda: "ready" in self.said(), cwd=ROOT)

    def start(self) -> None:
        (self.directory / self.out).write_text("")
        super().start()

    def restrict(self, operation: str | None) -> None:
        """Whatever the operation: all of them. It is so when this returns: two pending signals come in any order."""
        said = len(self.said())
        os.kill(self.pid, signal.SIGUSR1 if operation else signal.SIGUSR2)
        poll(lambda: len(self.said()) > said, 10.0, f"{self.out}: the signal is taken")


class Asking(Load):
    """The web and DNS clients as a process in the client's namespace; ``kind`` of a request is the service."""

    def __init__(self, house: House, directory: Path, *, address: str, rate: float) -> None:
        super().__init__(house, directory, base="", attribute="", address=address)
        self._argv = [sys.executable, "-m", "tests.lab.cheap", "clients", address, str(rate)]


# ------------------------------------------------------------ the programs


async def _serve(kind: str, who: str, address: str, port: int) -> None:
    state, loop = {"sick": False}, asyncio.get_running_loop()

    def become(sick: bool) -> None:
        state["sick"] = sick
        print("sick" if sick else "well", flush=True)

    loop.add_signal_handler(signal.SIGUSR1, become, True)
    loop.add_signal_handler(signal.SIGUSR2, become, False)

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            status = "503 Service Unavailable" if state["sick"] else "200 OK"
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(who)}\r\nConnection: close\r\n\r\n"
            writer.write(f"{head}{who}".encode())
            await writer.drain()
        writer.close()

    class Zone(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, client: Any) -> None:
            with contextlib.suppress(dns.exception.DNSException):
                answer = dns.message.make_response(dns.message.from_wire(data))
                if state["sick"]:
                    answer.set_rcode(dns.rcode.SERVFAIL)
                else:
                    answer.answer.append(dns.rrset.from_text(NAME, 60, "IN", "A", address))
                self.transport.sendto(answer.to_wire(), client)

    if kind == "web":
        await asyncio.start_server(page, address, port, backlog=1024)
    else:
        await loop.create_datagram_endpoint(Zone, (address, port))
    print("ready", flush=True)
    await asyncio.Event().wait()


async def _web(address: str) -> str:
    reader, writer = await asyncio.open_connection(address, PORTS["web"])
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise OSError(head[:20].decode() or "the connection ended")
    return body.decode()


async def _dns(address: str) -> str:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    class Resolver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _server: Any) -> None:
            if not answer.done():
                answer.set_result(data)

    make = asyncio.get_running_loop().create_datagram_endpoint(Resolver, remote_addr=(address, PORTS["dns"]))
    transport, _ = await make
    try:
        for _ in range(3):  # a stub resolver repeats itself
            transport.sendto(dns.message.make_query(NAME, "A").to_wire())
            with contextlib.suppress(TimeoutError):
                found = dns.message.from_wire(await asyncio.wait_for(asyncio.shield(answer), 0.9))
                break
        else:
            raise TimeoutError
    finally:
        transport.close()
    if not found.answer:
        raise OSError(dns.rcode.to_text(found.rcode()))
    return WHO[str(found.answer[0][0])]


ASK: dict[str, Callable[[str], Coroutine[Any, Any, str]]] = {"web": _web, "dns": _dns}


async def _once(kind: str, address: str) -> None:
    start, server, error = time.monotonic(), None, None
    try:
        async with asyncio.timeout(PATIENCE):
            server = await ASK[kind](address)
    except TimeoutError:
        error = "no answer in time"
    except (OSError, dns.exception.DNSException) as problem:
        error = str(problem) or type(problem).__name__
    print(json.dumps(asdict(Request(kind, start, time.monotonic(), server, error))), flush=True)


async def _clients(address: str, rate: float) -> None:
    tasks: set[asyncio.Task[None]] = set()
    start, count = time.monotonic(), 0
    while True:
        count += 1
        await asyncio.sleep(max(0.0, start + count / rate - time.monotonic()))
        for kind in ASK:
            tasks.add(task := asyncio.create_task(_once(kind, address)))
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    if sys.argv[1] == "clients":
        asyncio.run(_clients(sys.argv[2], float(sys.argv[3])))
    else:
        asyncio.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
