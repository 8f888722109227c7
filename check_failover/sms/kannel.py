"""Kannel's sendsms interface (User's Guide 1.4.5, "Using HTTP interface to send SMS").

HTTP 202 means accepted or queued, nothing more; a delivery receipt (``dlr-url``, see ``receipts``) reports the delivery
to the phone. Texts outside the GSM 7-bit alphabet need ``coding=2&charset=UTF-8``.

``answers`` sends a request with the account and without a number. Kannel sends nothing: it answers 400 (no number) to
a valid account, and another status to an invalid one. smsbox accepts texts even while bearerbox has no message centre;
only bearerbox's status page (``status_url``) shows that.
"""

from collections.abc import Mapping
from typing import Any

from check_failover.http_client import Answer, HttpClient, HttpError, secret
from check_failover.model import clean
from check_failover.sms import GatewayError
from check_failover.sms.text import is_gsm

CONNECT_TIMEOUT, TIMEOUT = 3.0, 10.0  # seconds; of the whole request
ALL_RECEIPTS = "31"  # delivered, failed, buffered, accepted and rejected by the message centre


class Kannel:
    """Options: ``url``, ``username``, ``password_file``, ``sender``, ``status_url``."""

    receipts = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        if not options.get("url"):
            raise GatewayError("the config's [sms] has no url (address of Kannel's sendsms interface)")
        self._options = options
        self._client = HttpClient(TIMEOUT, connect_timeout=CONNECT_TIMEOUT)

    def send(self, text: str, number: str, receipt_url: str) -> None:
        """Send one HTTP request. Raises GatewayError."""
        query = {"to": number, "text": text, "charset": "UTF-8", "coding": "0" if is_gsm(text) else "2"}
        query |= self._account()
        if receipt_url:
            query |= {"dlr-mask": ALL_RECEIPTS, "dlr-url": receipt_url}
        reply = self._get(self._options["url"], query)
        said = clean(reply.text[:400])
        if reply.status not in (200, 202):
            # Permanent: Kannel will never accept this text or number. A person can fix everything else (a password).
            permanent = reply.status == 400 or "do not try again" in said.lower() or "denied" in said.lower()
            raise GatewayError(f"{self._options['url']}: HTTP {reply.status}: {said}", permanent=permanent)

    def answers(self) -> str:
        """Test account and message centres, see the module. Raises GatewayError."""
        url = self._options["url"]
        reply = self._get(url, self._account())
        if reply.status != 400:
            said = clean(reply.text[:100])
            raise GatewayError(f"{url}: HTTP {reply.status}: {said or 'no text'}: check url and account")
        if not self._options.get("status_url"):
            return "Kannel answers"
        return f"Kannel answers, {self._message_centres()}"

    def _message_centres(self) -> str:
        """How many message centres the status page (``status.xml`` or ``status.txt``) shows as connected."""
        url = str(self._options["status_url"])
        reply = self._get(url.replace("/status.txt", "/status.xml"), {})
        if reply.status != 200 or "<gateway>" not in reply.text:
            raise GatewayError(f"{url}: HTTP {reply.status}: this is not bearerbox's status page")
        parts = reply.text.split("<smsc>")[1:]
        states = [part.partition("<status>")[2].partition("</status>")[0] for part in parts]
        up = sum(state.startswith("online") for state in states)
        if not up:
            raise GatewayError(f"no message centre is connected ({clean(', '.join(states)) or 'none configured'})")
        return f"{up} of {len(states)} message centres connected"

    def _get(self, url: str, query: Mapping[str, str]) -> Answer:
        try:
            return self._client.request("GET", url, params=query)
        except HttpError as error:
            raise GatewayError(f"{url}: {error}") from None

    def _account(self) -> dict[str, str]:
        found = {"username": str(self._options.get("username", ""))}
        if self._options.get("password_file"):
            try:
                found["password"] = secret(self._options["password_file"])
            except OSError as error:
                raise GatewayError(str(error)) from None
        if self._options.get("sender"):
            found["from"] = str(self._options["sender"])
        return {key: value for key, value in found.items() if value}
