"""Results for Icinga 2 over its REST API: ``POST /v1/actions/process-check-result``.

Source: Icinga 2 documentation, "Icinga 2 API", actions; measured with 2.13. What it needs to know:

- The API user needs one permission only: ``actions/process-check-result``, with a filter on our services.
- HTTP 200 is not enough: the answer's ``results[].code`` and ``status`` are read too ("Ignoring passive check
  result" is what a node says whose parent is away).
- ``execution_start`` never goes back for one service: a result that is older than one already taken is answered with
  409 since 2.14. Then the core has newer news, and the old result counts as delivered.
- One session is kept: the first request costs about 100 ms (TLS), the following 7 to 20 ms.
- ``trust_env`` is off, or REQUESTS_CA_BUNDLE in the environment would overrule the site's CA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from check_failover.model import PassiveResult
from check_failover.transports import TransportError

CONFLICT = 409
TTL = 180.0  # seconds after which Icinga calls the result stale; heartbeats come every 60


class Icinga2:
    """Options: url, ca_file, username + password_file or certificate + key_file, ttl, timeout (seconds)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.url = f"{str(options['url']).rstrip('/')}/v1/actions/process-check-result"
        self.ttl = float(options.get("ttl", TTL))
        self.timeout = float(options.get("timeout", 5.0))
        self._username = options.get("username")
        self._password_file = options.get("password_file")
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(options.get("ca_file", True)) if "ca_file" in options else True
        self._session.headers["Accept"] = "application/json"
        if "certificate" in options:
            self._session.cert = (str(options["certificate"]), str(options["key_file"]))

    def send(self, results: Sequence[PassiveResult]) -> None:
        """One request for each result, in order. Raises TransportError at the first that Icinga did not take."""
        for result in results:
            self._send(result)

    def _send(self, result: PassiveResult) -> None:
        try:
            answer = self._session.post(
                self.url, json=self._body(result), auth=self._credentials(), timeout=(self.timeout, self.timeout)
            )
        except (requests.RequestException, OSError) as error:
            raise TransportError(f"Icinga API {self.url}: {_reason(error)}") from None
        self._check(result, answer)

    def _body(self, result: PassiveResult) -> dict[str, Any]:
        text = f"{result.text}\n{result.details}" if result.details else result.text
        return {
            "service": f"{result.host}!{result.service}",
            "exit_status": int(result.state),
            "plugin_output": text,
            "performance_data": result.perfdata.split(),
            "check_source": "check_failover",
            "execution_start": result.at,
            "execution_end": result.at,
            "ttl": self.ttl,
        }

    def _credentials(self) -> tuple[str, str] | None:
        """Read at each request, so that a changed password needs no restart."""
        if self._username is None:
            return None
        try:
            return str(self._username), Path(str(self._password_file)).read_text("utf-8").strip()
        except OSError as error:
            raise TransportError(f"{self._password_file}: cannot read the API password: {error.strerror}") from None

    def _check(self, result: PassiveResult, answer: requests.Response) -> None:
        where = f"Icinga API: {result.host}!{result.service}"
        try:
            body = answer.json()
        except ValueError:
            body = {}
        rows = body.get("results") if isinstance(body, dict) else None
        row = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
        code = int(row.get("code", answer.status_code))
        if code == CONFLICT or answer.status_code == CONFLICT:
            return
        status = (
            str(row.get("status") or body.get("status") or answer.reason) if isinstance(body, dict) else answer.reason
        )
        if answer.status_code == requests.codes.not_found:
            raise TransportError(f"{where}: no such service there, or the API user's filter hides it")
        if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
            raise TransportError(
                f"{where}: {status}: check the API user and its permission actions/process-check-result"
            )
        if not 200 <= code < 300 or answer.status_code >= 300 or "ignoring" in status.lower() or not row:
            raise TransportError(f"{where}: not taken: {code} {status}")


def _reason(error: Exception) -> str:
    """The innermost reason, in one line: requests wraps it three times."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return f"{type(cause).__name__}: {cause}".replace("\n", " ")[:200]
