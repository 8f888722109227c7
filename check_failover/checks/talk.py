"""Shared by the probes over plain sockets: texts with escapes, the meaning of errors."""

import errno
import re
import ssl
import time

from check_failover.bounded import reason
from check_failover.checks import ProbeError
from check_failover.model import Probe, clean

MAX_ANSWER = 131072  # bytes read
MAX_TEXT = 160  # characters of a probe's text
_ESCAPES = {rb"\r": b"\r", rb"\n": b"\n", rb"\t": b"\t", rb"\0": b"\0", rb"\\": b"\\"}
_ESCAPED = re.compile(rb"\\x([0-9A-Fa-f]{2})|\\[rnt0\\]")
# Errors of this machine, not of the server: out of descriptors, memory or local ports, missing protocol, rejected by
# the local firewall, a datagram that is too long.
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_OURS |= {errno.EPERM, errno.EMSGSIZE}


def failed(began: float, error: BaseException) -> Probe:
    """The failed probe for an exception. Raises ProbeError for a fault of this machine."""
    # an SSLError's number is TLS's own, and 1 is EPERM elsewhere
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in _OURS:
        raise ProbeError(f"cannot ask: {reason(error)}") from None
    text = clean(reason(error))[:MAX_TEXT]
    return Probe(False, time.monotonic() - began, text, refused=isinstance(error, ConnectionRefusedError))


def unescape(text: str) -> bytes:
    r"""``\r``, ``\n``, ``\t``, ``\0``, ``\\`` and ``\xNN`` as bytes; the rest in UTF-8."""
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]) if found[1] else _ESCAPES[found[0]], text.encode())


def unexpected(answer: bytes, expect: bytes) -> str:
    """The text for an answer without the expected text."""
    said = clean(answer[:60].decode("utf-8", "replace"))
    return f"expected {clean(expect[:60].decode('utf-8', 'replace'))!r}, got {said!r}"
