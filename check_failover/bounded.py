"""Sockets with an end: one deadline and one size for everything that a peer sends.

``socket.settimeout`` limits one call, so a peer that sends a byte from time to time would never be late. Here each call
gets the rest of the time only (a TLS handshake, a TLS read and ``sendall`` each are one call with one deadline), and
the bytes read are counted below TLS's clients, so that no header, chunk or message escapes.
"""

import re
import socket
import ssl
import threading
import time

from check_failover.model import TooMuchError, clean


class Budget:
    """What one exchange may take: ``seconds``, and ``size`` bytes read."""

    def __init__(self, seconds: float, size: int) -> None:
        self.restart(seconds, size)

    def restart(self, seconds: float, size: int) -> None:
        self.end, self._size, self._rest = time.monotonic() + seconds, size, size

    def left(self) -> float:
        """Seconds until the end. Raises TimeoutError after it."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no answer in time")
        return seconds

    def take(self, count: int) -> None:
        """Count bytes read. Raises TooMuchError."""
        self._rest -= count
        if self._rest < 0:
            raise TooMuchError(f"sends more than {self._size} bytes")


class _Plain(socket.socket):
    """TCP within ``budget``."""

    budget: Budget

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        self.settimeout(self.budget.left())
        data = super().recv(bufsize, flags)
        self.budget.take(len(data))
        return data

    def recv_into(self, buffer: bytearray, nbytes: int = 0, flags: int = 0) -> int:  # type: ignore[override]
        self.settimeout(self.budget.left())
        count = super().recv_into(buffer, nbytes, flags)
        self.budget.take(count)
        return count

    def sendall(self, data: bytes, flags: int = 0, /) -> None:  # type: ignore[override]
        self.settimeout(self.budget.left())
        super().sendall(data, flags)


class _Secured(_Plain, ssl.SSLSocket):  # type: ignore[misc]
    """TLS within ``budget``."""


def bound(sock: socket.socket, budget: Budget) -> socket.socket:
    """The connected socket in a new object, within the budget."""
    made = _Plain(fileno=sock.detach())
    made.budget = budget
    made.settimeout(budget.left())
    return made


def connect(host: str, port: int, budget: Budget, limit: float | None = None) -> socket.socket:
    """Connect over TCP to one of the host's addresses, within the budget and ``limit`` seconds. Raises OSError."""
    until = time.monotonic() + (budget.left() if limit is None else min(limit, budget.left()))
    failed: OSError = TimeoutError()
    for address in lookup(host, until - time.monotonic()):
        try:
            return bound(socket.create_connection((address, port), max(0.001, until - time.monotonic())), budget)
        except OSError as error:
            failed = error
    raise failed


def securing(context: ssl.SSLContext, budget: Budget) -> ssl.SSLContext:
    """The context, whose connections keep to the budget; ``bound`` sockets keep to it during the handshake already."""
    context.sslsocket_class = type("_SecuredWithin", (_Secured,), {"budget": budget})
    return context


def trust(ca_file: str | None, pair: tuple[str, str] | None = None) -> ssl.SSLContext:
    """A client's context, verifying by ``ca_file`` or the system's CAs; ``pair``: certificate, key. Raises OSError."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise OSError(f"{ca_file}: cannot use as CA certificates: {reason(error)}") from None
    try:
        if pair is not None:
            context.load_cert_chain(*pair)
    except OSError as error:
        raise OSError(f"{pair}: cannot use as certificate and key: {reason(error)}") from None
    return context


def is_address(host: str) -> bool:
    """Whether this is an address, which needs no name server, and not a name."""
    return re.fullmatch(r"[0-9.]+|.*:.*", host) is not None


def lookup(host: str, limit: float) -> list[str]:
    """The addresses of a host. Raises OSError; TimeoutError after ``limit`` seconds.

    Nothing can interrupt the C library while a name server is silent, so a thread of its own waits for it.
    """
    found: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.append([str(row[4][0]) for row in rows])
        except (OSError, UnicodeError) as error:
            found.append(error)

    if is_address(host):
        ask()
    else:
        thread = threading.Thread(target=ask, name="lookup", daemon=True)
        thread.start()
        thread.join(limit)
    if not found:
        raise TimeoutError(f"no answer about {host!r} from the name servers")
    if isinstance(found[0], Exception):
        raise OSError(reason(found[0])) from None
    return found[0]


def cause(error: BaseException) -> BaseException:
    """The error of socket, TLS or protocol that a library's exceptions wrap."""
    chain: list[BaseException] = []
    below: BaseException | None = error
    while below is not None:
        chain.append(below)
        below = below.__cause__ or (None if below.__suppress_context__ else below.__context__)
    plain = [one for one in chain if isinstance(one, OSError | TooMuchError) and "requests" not in type(one).__module__]
    return plain[-1] if plain else chain[-1]


def reason(error: BaseException) -> str:
    """A short text for an error of a socket, of TLS or of a protocol, without control characters."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        text = f"TLS failed: {error.reason or error}"
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
    else:
        text = str(error) if isinstance(error, TooMuchError) else f"{type(error).__name__}: {error}"
    return clean(text)
