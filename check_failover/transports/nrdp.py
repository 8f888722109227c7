"""Results for a remote core through NRDP (Nagios Remote Data Processor): one POST for several results, as JSON.

Properties of NRDP that shape the code:

- The request is a form: ``token``, ``cmd=submitcheck``, ``json``. JSON since NRDP 1.5 (2017).
- Errors come with HTTP 200 and ``status`` -1 in the body ("BAD TOKEN"), so the transport reads the body.
- NRDP turns newlines into ``\\n`` and does not escape backslashes: the transport doubles them for Nagios.
- NRDP passes no time that Nagios Core would use. It writes results to ``check_result_path``, which Nagios reads every
  ``check_result_reaper_frequency`` seconds (10): set that to 1.

Source: github.com/NagiosEnterprises/nrdp 2.0.6: server/plugins/nagioscorepassivecheck, server/includes/utils.inc.php.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from check_failover.bounded import trust
from check_failover.http_client import Answer, HttpClient, HttpError, secret
from check_failover.model import PassiveResult, clean
from check_failover.transports import TransportError, name, output

TIMEOUT = 5.0  # seconds for a whole request


class Nrdp:
    """Options: url, token_file, ca_file, timeout (seconds)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._url = str(options["url"])
        self._token_file = str(options["token_file"])
        self._client = HttpClient(float(options.get("timeout", TIMEOUT)), trusted=lambda: trust(options.get("ca_file")))

    def send(self, results: Sequence[PassiveResult]) -> None:
        """One POST for all of them, in order. Raises TransportError."""
        now = time.time()
        form = {"cmd": "submitcheck", "json": json.dumps({"checkresults": [_row(result, now) for result in results]})}
        try:
            form["token"] = secret(self._token_file)
            answer = self._client.request("POST", self._url, data=form)
        except HttpError as error:
            raise TransportError(f"NRDP {self._url}: {error}") from None
        except OSError as error:
            raise TransportError(str(error)) from None
        self._check(answer)

    def _check(self, answer: Answer) -> None:
        if answer.status != 200:
            raise TransportError(f"NRDP {self._url}: HTTP {answer.status} {answer.reason}")
        try:
            result = answer.json()["result"]
            status, message = int(result["status"]), str(result.get("message", ""))
        except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError):
            raise TransportError(f"NRDP {self._url}: the answer is not from NRDP 1.5 or later: check url") from None
        if status != 0:
            said = clean(message) or status
            raise TransportError(f"NRDP {self._url}: not accepted: {said}; check the token in {self._token_file}")


def _row(result: PassiveResult, now: float) -> dict[str, Any]:
    return {
        "checkresult": {"type": "service", "checktype": "1"},
        "hostname": name(result.host),
        "servicename": name(result.service),
        "state": str(int(result.state)),
        "output": output(result, now).replace("\\", "\\\\"),
    }
