"""Clients with unusual but valid behaviour, and a slow server. Run in a namespace.

    python -m tests.lab.odd KIND ADDRESS PORT SECONDS [SOURCE]        prints one line for each thing it did

========== ===========================================================================================
waves      eighty clients ask at once, all close, and come again two seconds later
half       asks, closes its half of the connection (FIN), and reads the answer; or the end, because slapd drops what
           it still works on when it meets the FIN first
pieces     sends each request in two writes without TCP_NODELAY, so that Nagle waits for a delayed ACK
slow       one search of five seconds after the other, without other clients (see ``serve``)
scan       connects to every port up to 1100, then leaves half-open connections at the service's own
flood      500 SYN a second from forged addresses, which never answer (needs root)
burst      40,000 such SYNs as fast as it goes
cut        connects and asks from SOURCE, and gets no answer, because the test drops the replies
========== ===========================================================================================

    python -m tests.lab.odd serve ADDRESS PORT SERVER_PORT            passes on to an LDAP server of that address

``serve`` has a request for the base ``cn=slow`` wait for five seconds; everything else passes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable

from check_failover.rawip import finish
from tests.lab.load import UNBIND, FailedError, bind, bind_request, message, read_entry, search_request

SLOW, SLOW_FOR = "cn=slow", 5.0
BASE = "dc=example,dc=org"
PATIENCE = 8.0
FORGED = "198.51.100."


async def _ask(address: str, port: int, base: str = BASE) -> str:
    """One short request; returns its outcome."""
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(address, port)
            await bind(reader, writer)
            found = await read_entry(reader, writer, 2, base, "description")
            writer.write(UNBIND)
            return f"ok {found}"
    except FailedError as error:
        return f"answered {error}"
    except (OSError, EOFError, TimeoutError) as error:
        return f"failed {type(error).__name__} {error}"
    finally:
        if writer is not None:
            writer.close()


async def waves(address: str, port: int, _source: str) -> None:
    for said in await asyncio.gather(*(_ask(address, port) for _ in range(80))):
        print(said, flush=True)
    await asyncio.sleep(2.0)


async def half(address: str, port: int, _source: str) -> None:
    reader, writer = await asyncio.open_connection(address, port)
    await bind(reader, writer)
    writer.write(search_request(2, BASE, "description"))
    writer.write_eof()
    try:
        said = "ok" if (await asyncio.wait_for(message(reader), PATIENCE))[0] == 0x64 else "odd"
    except TimeoutError:  # an OSError too
        said = "late"
    except (EOFError, OSError):
        said = "closed"
    print(said, flush=True)
    writer.close()
    await asyncio.sleep(0.2)


async def pieces(address: str, port: int, _source: str) -> None:
    reader, writer = await asyncio.open_connection(address, port)
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)  # asyncio switches it on
    await bind(reader, writer)
    for number in range(2, 30):
        request = search_request(number, BASE, "description")
        for part in (request[:20], request[20:]):
            writer.write(part)
            await asyncio.sleep(0)
        while (await asyncio.wait_for(message(reader), PATIENCE))[0] != 0x65:
            pass
        print("ok", flush=True)
        await asyncio.sleep(0.05)
    writer.close()


async def slow(address: str, port: int, _source: str) -> None:
    began = time.monotonic()
    said = await _ask(address, port, SLOW)
    print(f"{said} after {time.monotonic() - began:.1f} s", flush=True)
    await asyncio.sleep(2.0)


async def scan(address: str, port: int, _source: str) -> None:
    gate = asyncio.Semaphore(50)

    async def touch(number: int) -> str:
        async with gate:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(address, number), 2.0)
            except (OSError, TimeoutError):
                return "closed"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()  # resets
            return "open"

    states = await asyncio.gather(*(touch(number) for number in range(1, 1101)))
    print(f"{states.count('open')} open", flush=True)
    with _raw() as raw:
        for number in range(200):  # the kernel resets what it knows nothing of, as nmap -sS has it do
            raw.sendto(_syn("192.0.2.7", address, port, 2000 + number), (address, 0))
            await asyncio.sleep(0.01)
    await asyncio.sleep(3.0)


async def flood(address: str, port: int, _source: str) -> None:
    with _raw() as raw:
        for _ in range(50):
            for _ in range(10):
                forged = f"{FORGED}{random.randrange(1, 255)}"
                raw.sendto(_syn(forged, address, port, random.randrange(1024, 65536)), (address, 0))
            await asyncio.sleep(0.02)
    print("flooded", flush=True)


async def burst(address: str, port: int, _source: str) -> None:
    packets = [_syn(f"{FORGED}{n % 254 + 1}", address, port, 2000 + n) for n in range(500)]
    with _raw() as raw:
        for number in range(40_000):
            with contextlib.suppress(BlockingIOError):
                raw.sendto(packets[number % 500], (address, 0))
    print("sent", flush=True)


async def cut(address: str, port: int, source: str) -> None:
    with socket.socket() as raw:
        raw.setblocking(False)
        raw.bind((source, 0))
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.5):
                await asyncio.get_running_loop().sock_connect(raw, (address, port))
                await asyncio.get_running_loop().sock_sendall(raw, bind_request(1))
                await asyncio.get_running_loop().sock_recv(raw, 100)
                print("heard something", flush=True)
    print("cut", flush=True)


def _raw() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _syn(source: str, address: str, port: int, source_port: int) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", source_port, port, random.randrange(1 << 32), 0, 5 << 4, 2, 64240, 0, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0)
    packet = finish(head + socket.inet_aton(source) + socket.inet_aton(address) + tcp)
    assert packet is not None
    return packet


async def serve(address: str, port: int, to: int) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(address, to)
        await asyncio.gather(_pass(reader, onward), _pass(there, writer), return_exceptions=True)

    async with await asyncio.start_server(client, address, port) as server:
        print("ready", flush=True)
        await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            if SLOW.encode() in data:
                await asyncio.sleep(SLOW_FOR)
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


KINDS: dict[str, Callable[[str, int, str], Awaitable[None]]] = {
    "waves": waves,
    "half": half,
    "pieces": pieces,
    "slow": slow,
    "scan": scan,
    "flood": flood,
    "burst": burst,
    "cut": cut,
}


async def main(argv: list[str]) -> None:
    kind, address, port, number = argv[0], argv[1], int(argv[2]), float(argv[3])
    if kind == "serve":
        await serve(address, port, int(number))
    end = time.monotonic() + number
    while time.monotonic() < end:
        await KINDS[kind](address, port, argv[4] if len(argv) > 4 else "")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
