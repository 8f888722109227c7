"""Shared by the probes: texts with escapes, the meaning of errors, and TLS.

TLS is always verified. There is no option to disable the verification (RFC 9525).
"""

import errno
import re
import ssl
import time
from collections.abc import Mapping

from check_failover.bounded import reason, trust
from check_failover.checks import ProbeError
from check_failover.model import Endpoint, Probe, clean

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


def tls_context(options: Mapping[str, object]) -> ssl.SSLContext:
    """A client context that verifies against ``ca_file``, or the system's CAs. Raises ProbeError."""
    ca_file = options.get("ca_file")
    try:
        return trust(None if ca_file is None else str(ca_file))
    except OSError as error:
        raise ProbeError(str(error)) from None


def server_name(server: Endpoint, options: Mapping[str, object]) -> str:
    """The name that the server's certificate must carry: ``server_name``, or the address itself. In ASCII (RFC 5890).

    Raises ProbeError: an invalid name must not look like a failed server.
    """
    name = str(options.get("server_name") or server.address)
    try:
        encoded = name.encode("idna").decode("ascii")
    except UnicodeError:
        encoded = ""
    if not encoded or encoded.startswith(".") or not encoded.isprintable() or set(encoded) & set(" /?#@"):
        raise ProbeError(f"server_name: {name!r} cannot be a server's name")
    return encoded
