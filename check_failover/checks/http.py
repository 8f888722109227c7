"""check_failover_http: one HTTP or HTTPS request to the server's address, without a name lookup (RFC 9110).

The request goes to the server's address; ``Host``, SNI and the certificate's name are ``server_name``, so the probe can
address a primary and a standby with the same virtual hosts separately. The probe passes when the status is an expected
one (200 to 399; redirects are not followed) and the body contains the expected text, if any. The probe always reads the
body: a server that stops in the middle is faulty.

Deadline, sizes and the connection itself: ``http_client``.
"""

import contextlib
import ipaddress
import ssl
import time
from collections.abc import Mapping, Sequence

import requests

from check_failover.checks import ProbeError, probing
from check_failover.checks.talk import failed, server_name, tls_context
from check_failover.http_client import HttpClient, HttpError
from check_failover.model import Endpoint, Probe, clean


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: path, method, status, expect, tls, ca_file, server_name."""
    began = time.monotonic()
    context = tls_context(options) if options.get("tls") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    name, at = server_name(server, options), (server.address, server.port)
    with contextlib.closing(HttpClient(timeout, trusted=lambda: context, name=name, server=at)) as client:
        request = _request(client, server, options, name)
        try:
            expect = str(options.get("expect") or "").encode()
            answer = client.send(request, expect, lambda status: _wanted(status, options.get("status")))
        except HttpError as error:
            return failed(began, error.cause)
    wrong = _judge(answer.status, answer.body, options)
    return Probe(wrong is None, time.monotonic() - began, wrong or f"status {answer.status}")


def _request(
    client: HttpClient, server: Endpoint, options: Mapping[str, object], name: str
) -> requests.PreparedRequest:
    """The request. Raises ProbeError: an error here is a fault of the configuration."""
    host = name
    with contextlib.suppress(ValueError):
        host = f"[{name}]" if ipaddress.ip_address(name).version == 6 else name
    scheme = "https" if options.get("tls") else "http"
    url = f"{scheme}://{host}:{server.port}{options.get('path', '/')}"
    method = str(options.get("method", "GET"))
    if method == "HEAD" and options.get("expect"):
        raise ProbeError("method: an answer to HEAD has no body that could have the expected text; use GET")
    try:
        return client.prepare(method, url, headers={"Host": host} if options.get("server_name") else {})
    except ValueError as error:
        raise ProbeError(f"no request to send: {error}") from None


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


OPTIONS = probing.options("http")
check = probing.check("http", __doc__, probe, OPTIONS, default_port=80, tls_port=443)
