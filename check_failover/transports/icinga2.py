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
- The connection is kept, but Icinga closes it after ten idle seconds: a request on a closed connection is repeated on a
  new one.
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from check_failover.bounded import trust
from check_failover.http_client import Answer, HttpClient, HttpError, secret
from check_failover.model import PassiveResult, clean
from check_failover.transports import TransportError

log = logging.getLogger(__name__)

ACTION = "/v1/actions/process-check-result"
OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 200, 401, 403, 404, 409
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
        self._urls = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        self._ttl = float(options.get("ttl", TTL))
        self._username, self._password_file = options.get("username"), options.get("password_file")
        self._unknown: set[tuple[str, str]] = set()  # services that no node knew
        self._started: dict[tuple[str, str], float] = {}  # execution_start of a service's last result
        pair = (str(options["certificate"]), str(options["key_file"])) if "certificate" in options else None
        names = options.get("server_name")
        self._clients = {
            url: HttpClient(
                (timeout := float(options.get("timeout", TIMEOUT))),
                connect_timeout=min(CONNECT_TIMEOUT, timeout),
                trusted=lambda: trust(str(options["ca_file"]), pair),
                name=names[index] if isinstance(names, list) else names,
            )
            for index, url in enumerate(self._urls)
        }

    def send(self, results: Sequence[PassiveResult]) -> None:
        """One request for each result, in order. Raises TransportError at the first that no node accepts."""
        for result in results:
            self._send(result)

    def query(self, path: str, wanted: Mapping[str, str]) -> Mapping[str, Any]:
        """The first row that a node has for a question below ``/v1/``. Raises TransportError, also without a row."""
        problem = ""
        for url in self._urls:
            try:
                answer = self._request(url, wanted, f"/v1/{path}", {"X-HTTP-Method-Override": "GET"})
            except TransportError as error:
                problem = str(error)
                continue
            row = _row(answer)
            if answer.status == OK and row and "code" not in row:
                return row
            problem = f"Icinga API {url}: {path}: {answer.status} {row.get('status', '')}"
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
        if CONFLICT in (answer.status, _row(answer).get("code")):
            answer = self._request(url, body)
        _check(f"Icinga API {url}: {result.host}!{result.service}", answer)
        self._started[name] = started

    def _request(
        self, url: str, body: Mapping[str, Any], path: str = ACTION, headers: Mapping[str, str] | None = None
    ) -> Answer:
        accept = {"Accept": "application/json", **(headers or {})}
        for again in (True, False):
            try:
                user = None if self._username is None else (str(self._username), secret(self._password_file))
                return self._clients[url].request("POST", url + path, json=body, headers=accept, auth=user)
            except OSError as error:
                raise TransportError(str(error)) from None
            except HttpError as error:
                if not (again and error.lost):
                    raise TransportError(f"Icinga API {url}: {error}") from None
        raise AssertionError("the second attempt returns or raises")


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


def _row(answer: Answer) -> Mapping[str, Any]:
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
    return {"code": body.get("error"), "status": body.get("status", "")} if not rows else {}


def _check(where: str, answer: Answer) -> None:
    row = _row(answer)
    status = clean(str(row.get("status") or answer.reason))
    if answer.status == NOT_FOUND:
        raise _UnknownServiceError(f"{where}: no such service there, or the API user's filter hides it")
    if answer.status in (UNAUTHORIZED, FORBIDDEN):
        raise TransportError(f"{where}: {status}: check the API user and its permission actions/process-check-result")
    if not answer.status == row.get("code") == OK or "ignoring" in status.lower():
        raise TransportError(f"{where}: not taken: {clean(str(row.get('code') or answer.status))} {status}")
