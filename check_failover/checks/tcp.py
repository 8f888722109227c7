"""check_failover_tcp: connect, send a text, and look for one in the answer; for any service over TCP.

Without ``send`` and ``expect`` an accepted connection is a pass, which a hung process gives too: give both where the
service has something to say.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping

from check_failover.checks import probing, tls
from check_failover.checks.plugin import clean
from check_failover.model import Endpoint, Probe

MAX_ANSWER = 65536  # bytes looked at
_ESCAPES = {"\\r": "\r", "\\n": "\n", "\\t": "\t", "\\0": "\0", "\\\\": "\\"}


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: send, expect, tls, ca_file, server_name."""
    began = time.monotonic()
    context = tls.context(options) if options.get("tls") else None
    try:
        with socket.create_connection((server.address, server.port), timeout) as plain:
            if context is None:
                failed = _talk(plain, options, began + timeout)
            else:
                with context.wrap_socket(plain, server_hostname=tls.server_name(server, options)) as secured:
                    failed = _talk(secured, options, began + timeout)
    except OSError as error:
        took = time.monotonic() - began
        return Probe(False, took, clean(tls.reason(error)), refused=isinstance(error, ConnectionRefusedError))
    took = time.monotonic() - began
    return Probe(failed is None, took, failed or "answers as expected")


def _talk(sock: socket.socket, options: Mapping[str, object], end: float) -> str | None:
    """Send and expect; returns what is wrong, or None."""
    send, expect = unescape(str(options.get("send") or "")), unescape(str(options.get("expect") or ""))
    if send:
        sock.sendall(send)
    answer = b""
    while (expect or send) and (not answer or (expect and expect not in answer)):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        chunk = sock.recv(4096)
        if not chunk:
            return "closed the connection without an answer" if not answer else _unexpected(answer, expect)
        answer += chunk
        if len(answer) > MAX_ANSWER:
            return _unexpected(answer, expect)
    return None


def _unexpected(answer: bytes, expect: bytes) -> str:
    said = clean(answer[:60].decode("utf-8", "replace"))
    return f"expected {clean(expect.decode('utf-8', 'replace'))!r}, got {said!r}"


def unescape(text: str) -> bytes:
    r"""``\r``, ``\n``, ``\t``, ``\0``, ``\\`` and ``\xNN`` as bytes; the rest in UTF-8."""
    parts = re.split(r"(\\x[0-9A-Fa-f]{2}|\\[rnt0\\])", text)
    return b"".join(
        bytes([int(part[2:], 16)]) if part.startswith("\\x") and len(part) == 4 else _ESCAPES.get(part, part).encode()
        for part in parts
    )


OPTIONS: dict[str, dict[str, object]] = {
    "send": {"metavar": "TEXT", "help": r"text to send after connecting (\r, \n, \t and \xNN are understood)"},
    "expect": {"metavar": "TEXT", "help": "text that the answer must contain"},
    "tls": {"action": "store_const", "const": True, "help": "speak TLS from the start, verified"},
    "ca_file": {"metavar": "FILE", "help": "CA certificates that sign the server's certificate"},
    "server_name": {"metavar": "NAME", "help": "name that the server's certificate must carry"},
}


def main() -> None:
    probing.main("check_failover_tcp", __doc__, probe, OPTIONS, kind="tcp")


if __name__ == "__main__":
    main()
