"""One HTTP client for gateways, cores and the HTTP check: requests, within a deadline and a size (RFC 9110).

requests' timeout starts again with each read, and it reads a body of any size. So the sockets are ours (``bounded``):
one deadline from the name look-up to the last byte, and a limit for all bytes, headers included. Proxies, netrc and CA
settings of the environment have no effect, redirects are not followed (they would disclose passwords), TLS is always
verified, and a body is never decompressed.
"""

import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import PoolManager

from check_failover import __version__
from check_failover.bounded import Budget, cause, connect, reason, securing, trust
from check_failover.model import clean

MAX_ANSWER = 1 << 20  # bytes
_HEADERS = {"User-Agent": f"check_failover/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


def secret(path: object) -> str:
    """A password's or token's file, read at each request, so that a changed one needs no restart. Raises OSError."""
    try:
        return Path(str(path)).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise OSError(f"{path}: cannot read the secret: {why}") from None


class HttpError(Exception):
    """No whole answer: one line, without the URL. ``cause`` is the socket's or TLS's error."""

    def __init__(self, error: BaseException) -> None:
        self.cause = cause(error)
        super().__init__(reason(self.cause))

    @property
    def lost(self) -> bool:
        """Whether the connection broke: the server may have closed one that was kept."""
        return isinstance(self.cause, OSError) and not isinstance(self.cause, TimeoutError)


@dataclass(frozen=True, slots=True)
class Answer:
    """``body`` is what was read of it; ``more``: the reader stopped before its end."""

    status: int
    reason: str
    body: bytes
    more: bool = False

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:  # noqa: ANN401 - as json.loads
        """The body as JSON. Raises ValueError, also for one that is too long or nested too deeply."""
        if self.more:
            raise ValueError(f"more than {len(self.body)} bytes")
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class HttpClient:
    """Keeps its connection. ``trusted`` makes the TLS context of each new one, so that renewed certificates count;
    ``name``: the name in the server's certificate; ``server``: where every request goes, whatever host its URL has.
    """

    def __init__(
        self,
        timeout: float,
        *,
        connect_timeout: float | None = None,
        trusted: Callable[[], ssl.SSLContext] = lambda: trust(None),
        name: str | None = None,
        server: tuple[str, int] | None = None,
    ) -> None:
        self._timeout, self._connect_timeout, self._server = timeout, connect_timeout, server
        self._trusted, self.name, self._budget = trusted, name, Budget(timeout, 0)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers = CaseInsensitiveDict(_HEADERS)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self))

    def prepare(self, method: str, url: str, **what: Any) -> requests.PreparedRequest:  # noqa: ANN401 - as requests takes them
        """A request; ``what`` is params, data, json, headers and auth of requests. Raises ValueError."""
        return self._session.prepare_request(requests.Request(method, url, **what))

    def send(
        self,
        request: requests.PreparedRequest,
        until: bytes = b"",
        read: Callable[[int], bool] = bool,
        limit: int = MAX_ANSWER,
    ) -> Answer:
        """Send; if ``read`` wants the body of this status, read ``limit`` bytes of it or until ``until`` is in it.

        Raises HttpError.
        """
        self._budget.restart(self._timeout, limit + MAX_ANSWER)
        body, more = bytearray(), False
        try:
            with self._session.send(request, stream=True, allow_redirects=False) as answer:
                for chunk in answer.raw.stream(8192, decode_content=False) if read(answer.status_code) else ():
                    body += chunk
                    more = len(body) > limit or bool(until and until in body[-len(chunk) - len(until) :])
                    if more:
                        break
                return Answer(answer.status_code, clean(answer.reason or ""), bytes(body), more)
        except Exception as error:  # requests, urllib3, http.client and ssl have different exceptions
            raise HttpError(error) from None

    def request(self, method: str, url: str, **what: Any) -> Answer:  # noqa: ANN401 - as requests takes them
        """``prepare`` and ``send``. Raises HttpError."""
        try:
            prepared = self.prepare(method, url, **what)
        except (ValueError, OSError) as error:
            raise HttpError(error) from None
        return self.send(prepared)

    def close(self) -> None:
        self._session.close()

    def connected(self, host: str, port: int) -> socket.socket:
        """A connection within the budget of the request at hand. Raises OSError."""
        host, port = self._server or (host.strip("[]"), port)
        return connect(host, port, self._budget, self._connect_timeout)

    def context(self) -> ssl.SSLContext:
        """The TLS context of a new connection. Raises OSError."""
        return securing(self._trusted(), self._budget)


class _Adapter(HTTPAdapter):
    """Sends over the client's connections, with its TLS context only (requests would add its own CAs)."""

    def __init__(self, client: HttpClient) -> None:
        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return client.connected(self.host, self.port)

        class Secured(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return client.connected(self.host, self.port)

            def connect(self) -> None:
                self.ssl_context, self.server_hostname = client.context(), client.name or self.host
                super().connect()

        super().__init__(max_retries=0)
        self.poolmanager = PoolManager(num_pools=4)
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("_PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain}),
            "https": type("_SecuredPool", (HTTPSConnectionPool,), {"ConnectionCls": Secured}),
        }

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """The context verifies."""
