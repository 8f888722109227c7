"""LDAP clients as an office has them: many short requests, a few sessions that stay open. Runs in a namespace.

    with Load(house, directory) as load:
        ...
        load.requests()          # [Request(start, end, server, error, kind), ...] so far

A *short* request is what a login does: connect, anonymous bind, read one entry, unbind; it has 3 s in all and is not
repeated. A *kept* session stays open and reads the entry again and again; when its connection breaks it connects anew
and repeats the read, as client libraries do, and the time a person waited counts over all of it. The two servers differ
in one value of that entry, so the answer tells who served. Times are the monotonic clock, which is one for the machine.

As a program: ``python -m tests.lab.load ADDRESS PORT RATE KEPT`` writes one line for each request until it is ended
(SIGTERM ends it at once: an exit from inside a task would leave a traceback among the lines).
Raw BER (RFC 4511, section 4) over asyncio: at 50 requests/s it takes a few percent of a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.lab.netns import SERVICE_ADDRESS, House, end, poll

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 3.0  # seconds that one short request may take in all
KEPT_PAUSE = 0.2  # seconds between two reads of a kept session


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a client saw it. ``server`` is the value that the answer carried, None without an answer."""

    kind: str  # short | kept
    start: float
    end: float
    server: str | None
    error: str | None = None
    reconnects: int = 0  # kept: connections that broke before the answer came
    session: int = 0  # kept: which of them

    @property
    def waited(self) -> float:
        return self.end - self.start


def tlv(tag: int, *parts: bytes) -> bytes:
    """One BER element, definite length (X.690, 8.1)."""
    body = b"".join(parts)
    size = len(body)
    head = bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + head + body


def bind_request(message_id: int) -> bytes:
    """Anonymous simple bind, version 3."""
    return tlv(0x30, tlv(2, bytes([message_id])), tlv(0x60, tlv(2, b"\x03"), tlv(4), tlv(0x80)))


def search_request(message_id: int, base: str, attribute: str) -> bytes:
    """Base search for (objectClass=*), one attribute."""
    number = message_id.to_bytes(4, "big").lstrip(b"\0")
    number = b"\0" + number if number[0] & 0x80 else number
    body = (
        tlv(4, base.encode()),
        tlv(10, b"\x00"),
        tlv(10, b"\x00"),
        tlv(2, b"\x00"),
        tlv(2, b"\x00"),
        tlv(1, b"\x00"),
        tlv(0x87, b"objectClass"),
        tlv(0x30, tlv(4, attribute.encode())),
    )
    return tlv(0x30, tlv(2, number), tlv(0x63, *body))


UNBIND = tlv(0x30, tlv(2, b"\x03"), b"\x42\x00")


async def message(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """(tag of the operation, its content) of the next LDAPMessage."""
    head = await reader.readexactly(2)
    size = head[1]
    if size & 0x80:
        size = int.from_bytes(await reader.readexactly(size & 0x7F), "big")
    body = await reader.readexactly(size)
    operation = body[2 + body[1] :]
    skip = 2 if operation[1] < 128 else 2 + (operation[1] & 0x7F)
    return operation[0], operation[skip:]


class FailedError(Exception):
    """The server answered, but with an error."""


async def bind(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bind_request(1))
    tag, body = await message(reader)
    if tag != 0x61 or body[:3] != b"\x0a\x01\x00":
        raise FailedError(f"bind: result {body[2] if len(body) > 2 else tag}")


async def read_entry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, base: str, attribute: str
) -> str:
    """The attribute's first value; raises FailedError when the result is not success."""
    writer.write(search_request(number, base, attribute))
    value = ""
    while True:
        tag, body = await message(reader)
        if tag == 0x64:
            where = body.find(attribute.encode())
            rest = body[where + len(attribute) :]
            value = rest[4 : 4 + rest[3]].decode("utf-8", "replace") if where >= 0 else ""
        elif tag == 0x65:
            if body[:3] != b"\x0a\x01\x00":
                raise FailedError(f"search: result {body[2]}")
            return value


class Clients:
    """All clients of one run; ``out`` gets each finished request."""

    def __init__(self, address: str, port: int, base: str, attribute: str) -> None:
        self.address, self.port, self.base, self.attribute = address, port, base, attribute
        self._tasks: set[asyncio.Task[None]] = set()

    def out(self, request: Request) -> None:
        print(json.dumps(asdict(request)), flush=True)

    async def short(self) -> None:
        start, server, error, writer = time.monotonic(), None, None, None
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(self.address, self.port)
                await bind(reader, writer)
                server = await read_entry(reader, writer, 2, self.base, self.attribute)
        except (OSError, EOFError, FailedError, TimeoutError) as problem:
            error = _name(problem)
        self.out(Request("short", start, time.monotonic(), server, error))
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.write(UNBIND)
            writer.close()

    async def kept(self, session: int) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        number = 1
        while True:
            start, reconnects, error = time.monotonic(), 0, None
            while True:
                number += 1
                try:
                    async with asyncio.timeout(PATIENCE):
                        if streams is None:
                            streams = await asyncio.open_connection(self.address, self.port)
                            await bind(*streams)
                            number = 2
                        server = await read_entry(*streams, number, self.base, self.attribute)
                    self.out(Request("kept", start, time.monotonic(), server, error, reconnects, session))
                    break
                except (OSError, EOFError, FailedError, TimeoutError) as problem:
                    error = _name(problem)
                    reconnects += 1
                    if streams is not None:
                        streams[1].close()
                    streams = None
                    await asyncio.sleep(0.02)
            await asyncio.sleep(KEPT_PAUSE)

    async def run(self, rate: float, kept: int) -> None:
        for session in range(kept):
            self._spawn(self.kept(session))
        start, count = time.monotonic(), 0
        while rate:
            count += 1
            await asyncio.sleep(max(0.0, start + count / rate - time.monotonic()))
            self._spawn(self.short())
        await asyncio.Event().wait()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name(problem: BaseException) -> str:
    if isinstance(problem, TimeoutError):
        return "no answer in time"
    if isinstance(problem, ConnectionRefusedError):
        return "connection refused"
    if isinstance(problem, ConnectionResetError):
        return "connection reset"
    return str(problem) or type(problem).__name__


class Load:
    """The clients as a process in the client's namespace, and what they saw."""

    def __init__(
        self,
        house: House,
        directory: Path,
        *,
        base: str,
        attribute: str,
        address: str = SERVICE_ADDRESS,
        port: int = 389,
        rate: float = 50.0,
        kept: int = 3,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._house, self._path = house, directory / f"load-{time.monotonic_ns()}.jsonl"
        self._argv = [sys.executable, "-m", "tests.lab.load", address, str(port), str(rate), str(kept), base, attribute]
        self._process: subprocess.Popen[Any] | None = None
        self._seen: list[Request] = []
        self._offset = 0

    def __enter__(self) -> Load:
        self._process = self._house.start("client", *self._argv, log=self._path, cwd=ROOT)
        poll(lambda: any(r.server for r in self.requests()), 10.0, "the clients' first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the clients: no new requests from here on."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def requests(self, since: float = 0.0) -> list[Request]:
        """Finished requests that started at or after ``since``, in the order they finished."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        cut = data.rfind(b"\n") + 1
        self._offset += cut
        for line in data[:cut].decode().splitlines():
            try:
                self._seen.append(Request(**json.loads(line)))
            except (ValueError, TypeError):
                raise AssertionError(f"the load client says: {line}") from None
        return [request for request in self._seen if request.start >= since]

    def answered_by(self, server: str, since: float = 0.0) -> Request | None:
        """The first request started since then that this server answered."""
        return next((r for r in self.requests(since) if r.server == server), None)


def _main(argv: list[str]) -> None:
    address, port, rate, kept, base, attribute = argv
    asyncio.run(Clients(address, int(port), base, attribute).run(float(rate), int(kept)))


if __name__ == "__main__":
    _main(sys.argv[1:])
