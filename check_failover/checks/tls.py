"""TLS for the probes: always verified. There is no option to disable the verification (RFC 9525)."""

import ssl
from collections.abc import Mapping

from check_failover.checks import ProbeError
from check_failover.model import Endpoint


def context(options: Mapping[str, object]) -> ssl.SSLContext:
    """A client context that verifies against ``ca_file``, or the system's CAs. Raises ProbeError."""
    ca_file = options.get("ca_file")
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ProbeError(f"{ca_file}: cannot use as CA certificates: {error}") from None


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


def reason(error: BaseException) -> str:
    """A short text for an error of the socket or of TLS."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"
