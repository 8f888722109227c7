"""TLS for the probes: always verified. There is no option to disable the verification (RFC 9525)."""

import ssl
from collections.abc import Mapping

from check_failover.bounded import trust
from check_failover.checks import ProbeError
from check_failover.model import Endpoint


def context(options: Mapping[str, object]) -> ssl.SSLContext:
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
