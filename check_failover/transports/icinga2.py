"""Results for Icinga 2 over its REST API: ``POST /v1/actions/process-check-result``.

Source: Icinga 2 documentation, "Icinga 2 API", actions; tested with 2.13. Properties of the API that shape the code:

- HTTP 200 is not enough: ``results[].code`` and ``status`` of the answer count too (a node whose parent is away says
  "Ignoring passive check result").
- ``execution_start`` must not go back for a service: since 2.14 Icinga answers an older result with 409 and discards
  it. The outbox keeps the order, so our result is newer (after an outage Icinga's own "stale" may have the later time,
  and clocks are set back): the transport sends it again without times, as of its arrival.
- A service that no node knows (404) must not block the others: the transport logs it once and drops its results. The
  sniffer acts on that service's verdicts itself (``core_deadline``).
- Of several nodes (an HA zone) the transport first asks the one that accepted the last result.
- The session is kept, but Icinga closes a connection after ten idle seconds: a request on a closed connection is
  repeated on a new one.
- ``trust_env`` is off; otherwise REQUESTS_CA_BUNDLE in the environment would override the site's CA.
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from check_failover.model import PassiveResult
from check_failover.transports import TransportError
from check_failover.transports.wording import reason

log = logging.getLogger(__name__)

ACTION = "/v1/actions/process-check-result"
CONFLICT = 409
TTL = 180.0  # seconds after which Icinga calls the result stale; heartbeats come every 60
CONNECT_TIMEOUT, TIMEOUT = 1.0, 3.0  # seconds; they delay the reaction to a verdict


class _UnknownServiceError(TransportError):
    """The node has no such service, or the API user's filter hides it."""


class Icinga2:
    """Options: url (one or several), ca_file, server_name (one, or one for each url), username + password_file or
    certificate + key_file, ttl (seconds), timeout (of an answer, seconds).
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        urls = options["url"]
        self._urls = [f"{url.rstrip('/')}{ACTION}" for url in ([urls] if isinstance(urls, str) else urls)]
        self._ttl = float(options.get("ttl", TTL))
        self._timeout = float(options.get("timeout", TIMEOUT))
        self._username, self._password_file = options.get("username"), options.get("password_file")
        self._unknown: set[tuple[str, str]] = set()  # services that no node knew
        self._started: dict[tuple[str, str], float] = {}  # execution_start of a service's last result
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(options["ca_file"])
        self._session.headers["Accept"] = "application/json"
        if "certificate" in options:
            self._session.cert = (str(options["certificate"]), str(options["key_file"]))
        names = options.get("server_name", [])
        for url, name in zip(self._urls, [names] * len(self._urls) if isinstance(names, str) else names, strict=False):
            self._session.mount(f"{url.removesuffix(ACTION)}/v1/", _Named(name))

    def send(self, results: Sequence[PassiveResult]) -> None:
        """One request for each result, in order. Raises TransportError at the first that no node accepts."""
        for result in results:
            self._send(result)

    def query(self, path: str, wanted: Mapping[str, str]) -> Mapping[str, Any]:
        """The first row that a node has for a question below ``/v1/``. Raises TransportError, also without a row."""
        problem = ""
        for url in self._urls:
            base = url.removesuffix(ACTION)
            try:
                answer = self._request(f"{base}/v1/{path}", wanted, {"X-HTTP-Method-Override": "GET"})
            except TransportError as error:
                problem = str(error)
                continue
            row = _row(answer)
            if answer.ok and row and "code" not in row:
                return row
            problem = f"Icinga API {base}: {path}: {answer.status_code} {row.get('status', '')}"
        raise TransportError(problem)

    def _send(self, result: PassiveResult) -> None:
        problems = []
        for url in tuple(self._urls):
            try:
                self._post(url, result)
            except TransportError as error:
                problems.append(error)
                continue
            self._urls.remove(url)
            self._urls.insert(0, url)
            self._unknown.discard((result.host, result.service))
            return
        known = [error for error in problems if not isinstance(error, _UnknownServiceError)]
        if known:
            raise known[0]
        if (result.host, result.service) not in self._unknown:
            self._unknown.add((result.host, result.service))
            log.error("%s; its results are dropped", problems[0])

    def _post(self, url: str, result: PassiveResult) -> None:
        name = (result.host, result.service)
        started = max(result.at, self._started.get(name, 0.0))
        body = _body(result, self._ttl)
        answer = self._request(url, body | {"execution_start": started, "execution_end": started})
        if CONFLICT in (answer.status_code, _row(answer).get("code")):
            answer = self._request(url, body)
        _check(f"Icinga API {url.removesuffix(ACTION)}: {result.host}!{result.service}", answer)
        self._started[name] = started

    def _request(
        self, url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        limits = (min(CONNECT_TIMEOUT, self._timeout), self._timeout)
        for again in (True, False):
            try:
                return self._session.post(url, json=body, headers=headers, auth=self._credentials(), timeout=limits)
            except (requests.RequestException, OSError) as error:
                stale = isinstance(error, requests.ConnectionError) and not isinstance(error, requests.Timeout)
                if not (again and stale):
                    raise TransportError(f"Icinga API {url.removesuffix(ACTION)}: {reason(error)}") from None
        raise AssertionError("the second attempt returns or raises")

    def _credentials(self) -> tuple[str, str] | None:
        """Read at each request, so that a changed password needs no restart."""
        if self._username is None:
            return None
        try:
            return str(self._username), Path(str(self._password_file)).read_text("utf-8").strip()
        except OSError as error:
            raise TransportError(f"{self._password_file}: cannot read the API password: {error.strerror}") from None
        except UnicodeDecodeError:
            raise TransportError(f"{self._password_file}: the API password is not UTF-8") from None


class _Named(HTTPAdapter):
    """Accepts a certificate for ``name``, whatever host the URL has: a URL with an address needs no name server."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: object) -> None:
        names = {"server_hostname": self._name, "assert_hostname": self._name}
        super().init_poolmanager(connections, maxsize, block, **options, **names)


def _body(result: PassiveResult, ttl: float) -> dict[str, Any]:
    return {
        "type": "Service",
        "service": f"{result.host}!{result.service}",
        "exit_status": int(result.state),
        "plugin_output": f"{result.text}\n{result.details}" if result.details else result.text,
        "performance_data": result.perfdata,
        "check_source": socket.gethostname(),
        "ttl": ttl,
    }


def _row(answer: requests.Response) -> Mapping[str, Any]:
    """The answer's one result; without one, the error of the whole request; empty when the answer is no JSON."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    if not isinstance(body, dict):
        return {}
    rows = body.get("results")
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        return rows[0]
    return {"code": body.get("error", answer.status_code), "status": body.get("status", "")} if not rows else {}


def _check(where: str, answer: requests.Response) -> None:
    row = _row(answer)
    status = " ".join(str(row.get("status") or answer.reason).split())
    if answer.status_code == requests.codes.not_found:
        raise _UnknownServiceError(f"{where}: no such service there, or the API user's filter hides it")
    if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise TransportError(f"{where}: {status}: check the API user and its permission actions/process-check-result")
    taken = answer.status_code == row.get("code") == requests.codes.ok and "ignoring" not in status.lower()
    if not taken:
        raise TransportError(f"{where}: not taken: {row.get('code', answer.status_code)} {status}")
