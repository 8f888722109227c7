"""check_failover_http: one HTTP or HTTPS request to the server's address, without a name lookup (RFC 9110).

The request goes to the server's address; ``Host``, SNI and the certificate's name are ``server_name``, so the probe can
address a primary and a standby with the same virtual hosts separately. The probe passes when the status is an expected
one (200 to 399; redirects are not followed) and the body contains the expected text, if any. The probe always reads the
body: a server that stops in the middle is faulty.

The timeout of requests starts again with each read, so a server that sends single bytes would never be late. Therefore
a timer shuts the connection down at the deadline. The probe opens the connection itself, to the given address; proxies,
netrc and CA settings of the environment have no effect.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import PoolManager

from check_failover import __version__
from check_failover.checks import ProbeError, probing, tls
from check_failover.checks.plugin import clean
from check_failover.checks.talk import failed, left
from check_failover.model import Endpoint, Probe

MAX_BODY = 1024 * 1024  # bytes read of a body
HEADERS = {"User-Agent": f"check_failover/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


class _Connection:
    """The one connection of a probe: opened to ``server``, shut at ``end`` (monotonic)."""

    def __init__(self, server: Endpoint, end: float) -> None:
        self._server, self._end = server, end
        self._handle: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self.late = False

    def open(self) -> socket.socket:
        sock = socket.create_connection((self._server.address, self._server.port), left(self._end))
        self._handle = sock.dup()  # TLS takes over the socket; the duplicate can still shut the connection down
        self._timer = threading.Timer(max(0.0, self._end - time.monotonic()), self._expire)
        self._timer.daemon = True
        self._timer.start()
        return sock

    def _expire(self) -> None:
        self.late = True
        self._shut()

    def _shut(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _where: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._handle is not None:
            self._shut()
            self._handle.close()


class _Adapter(HTTPAdapter):
    """Sends over the probe's connection, with the probe's TLS context only (requests would add its own CAs)."""

    def __init__(self, connection: _Connection, context: ssl.SSLContext | None) -> None:
        super().__init__(max_retries=0)
        self.poolmanager = PoolManager(num_pools=1, ssl_context=context)
        self.poolmanager.pool_classes_by_scheme = _pools(connection)

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """The context verifies."""


def _pools(connection: _Connection) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's pool classes, which open the probe's connection."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connection.open()

    class Secured(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connection.open()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecuredPool(HTTPSConnectionPool):
        ConnectionCls = Secured

    return {"http": PlainPool, "https": SecuredPool}


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: path, method, status, expect, tls, ca_file, server_name."""
    began = time.monotonic()
    context = tls.context(options) if options.get("tls") else None
    with requests.Session() as session, _Connection(server, began + timeout) as connection:
        session.trust_env = False
        adapter = _Adapter(connection, context)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        request = _request(session, server, options)
        try:
            status, body = _ask(session, request, options, timeout)
            if connection.late:  # the shutdown may have looked like the end of the body
                raise TimeoutError
        except Exception as error:  # requests, urllib3, http.client and ssl have different exceptions
            late = connection.late or time.monotonic() - began >= timeout
            return failed(began, TimeoutError() if late else _cause(error))
    wrong = _judge(status, body, options)
    return Probe(wrong is None, time.monotonic() - began, wrong or f"status {status}")


def _request(session: requests.Session, server: Endpoint, options: Mapping[str, object]) -> requests.PreparedRequest:
    """The prepared request. Raises ProbeError: an error here is a fault of the configuration."""
    name = tls.server_name(server, options)
    with contextlib.suppress(ValueError):
        name = f"[{name}]" if ipaddress.ip_address(name).version == 6 else name
    scheme = "https" if options.get("tls") else "http"
    url = f"{scheme}://{name}:{server.port}{options.get('path', '/')}"
    headers = HEADERS | ({"Host": name} if options.get("server_name") else {})
    method = str(options.get("method", "GET"))
    if method == "HEAD" and options.get("expect"):
        raise ProbeError("method: an answer to HEAD has no body that could have the expected text; use GET")
    try:
        return session.prepare_request(requests.Request(method, url, headers=headers))
    except (requests.RequestException, ValueError) as error:
        raise ProbeError(f"no request to send: {error}") from None


def _ask(
    session: requests.Session, request: requests.PreparedRequest, options: Mapping[str, object], timeout: float
) -> tuple[int, bytes]:
    """Status and body; reading stops after the expected text or ``MAX_BODY``."""
    expect = str(options.get("expect") or "").encode()
    body = b""
    with session.send(request, stream=True, timeout=timeout, allow_redirects=False) as response:
        if _wanted(response.status_code, options.get("status")):
            for chunk in response.iter_content(8192):
                body += chunk
                if len(body) > MAX_BODY or (expect and expect in body[-len(chunk) - len(expect) :]):
                    break
        return response.status_code, body


def _judge(status: int, body: bytes, options: Mapping[str, object]) -> str | None:
    """What is wrong with the answer, or None."""
    if not _wanted(status, options.get("status")):
        return f"status {status}"
    expect = str(options.get("expect") or "")
    if expect.encode() not in body:
        return clean(f"status {status}, but {expect[:60]!r} is not in the {len(body)} bytes of the body")
    return None


def _wanted(status: int, wanted: object) -> bool:
    return status in wanted if isinstance(wanted, Sequence) else 200 <= status < 400


def _cause(error: BaseException) -> BaseException:
    """The socket, TLS or protocol error that the libraries' exceptions wrap."""
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    plain = [e for e in chain if isinstance(e, OSError) and not isinstance(e, requests.RequestException)]
    return plain[-1] if plain else chain[-1]


def _statuses(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch("[1-5][0-9][0-9]", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of statuses such as 200,401")
    return [int(part) for part in parts]


OPTIONS: dict[str, dict[str, object]] = {
    "path": {"metavar": "PATH", "help": "path and query to ask for (/)"},
    "method": {"choices": ("GET", "HEAD"), "help": "GET or HEAD (GET)"},
    "status": {"type": _statuses, "metavar": "LIST", "help": "statuses that pass, e.g. 200,401 (200 to 399)"},
    "expect": {"metavar": "TEXT", "help": "text that the body must contain"},
    "tls": {"action": "store_const", "const": True, "help": "HTTPS, verified"},
    "ca_file": {"metavar": "FILE", "help": "CA certificates that sign the server's certificate"},
    "server_name": {"metavar": "NAME", "help": "the site's name: Host, SNI, and the name in the certificate"},
}


def main() -> None:
    probing.main("check_failover_http", __doc__, probe, OPTIONS, kind="http", default_port=80, tls_port=443)


if __name__ == "__main__":
    main()
