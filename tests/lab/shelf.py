"""A web server whose clients PUT files into a directory; an answer of 201 means that the file is there.

``python -m tests.lab.shelf DIRECTORY ADDRESS PORT``. The directory is looked up for each file, so it may be a link that
failover-sync moves. A file gets its name only when it is complete, as servers that accept uploads do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import sys
from pathlib import Path

REQUEST = re.compile(rb"(PUT|GET|HEAD) /(\w*) HTTP/1\.1\r\n")
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_numbers = itertools.count(1)


def put(directory: Path, name: str, body: bytes) -> str:
    """Keep the file; the status line's end."""
    new = directory.parent / f".{name}.{next(_numbers)}"
    try:
        new.write_bytes(body)
        new.rename(directory / name)
    except OSError as error:
        new.unlink(missing_ok=True)
        return f"500 {error.strerror}"
    return "201 Created"


async def serve(directory: Path, address: str, port: int) -> None:
    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked, size = REQUEST.match(head), LENGTH.search(head)
                body = await reader.readexactly(int(size[1])) if size else b""
                if asked is None:
                    status = "400 Bad Request"
                elif asked[1] == b"PUT":
                    status = put(directory, asked[2].decode(), body)
                else:
                    status = "200 OK" if directory.is_dir() else "404 Not Found"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()

    await asyncio.start_server(session, address, port, backlog=1024)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
