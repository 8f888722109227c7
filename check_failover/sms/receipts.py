"""Delivery receipts: Kannel requests a URL of ours (``dlr-url``); the sender listens while texts wait for receipts.

Kannel has no query for receipts, so polling is not possible. The sender itself listens, so no other daemon is needed.
If Kannel reports while no sender listens, it tries again (``http-request-retry``) or the receipt is lost; then the
second gateway sends the text once more, because a duplicate text is better than a lost one.

The URL contains a random token for each text, so that no other client can confirm a delivery. Kannel replaces ``%d``
by the kind of receipt (User's Guide 1.4.5, "Delivery Reports").
"""

import contextlib
import re
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

DELIVERED, UNDELIVERABLE, REJECTED = "delivered", "undeliverable", "rejected"
KINDS = {"1": DELIVERED, "2": UNDELIVERABLE, "16": REJECTED}  # 4 and 8: still in transit
READ_TIMEOUT = 5.0  # seconds for one request


class Receipts:
    """The receipts since the last ``take``, by the token of the text."""

    def __init__(self, url: str) -> None:
        self._url, self._listening = url.rstrip("/"), False
        self._got: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Accept receipts until the block ends. Raises OSError: the address is not local, or the port is in use."""
        place = urlsplit(self._url)
        server = ThreadingHTTPServer((place.hostname or "127.0.0.1", place.port or 80), self._handler())
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            server.shutdown()
            server.server_close()

    def token(self) -> str:
        """A token for a new text; empty while this process does not listen."""
        return secrets.token_hex(16) if self._listening else ""

    def url(self, token: str) -> str:
        """The URL that the gateway must request for the text with this token."""
        return f"{self._url}/{token}/%d" if token else ""

    def take(self) -> dict[str, str]:
        """The receipts since the last call: token -> kind."""
        with self._lock:
            got, self._got = self._got, {}
        return got

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receipts = self

        class Handler(BaseHTTPRequestHandler):
            timeout = READ_TIMEOUT

            def do_GET(self) -> None:
                match = re.search(r"/([0-9a-f]{32})/(\d+)$", self.path)
                if match and (kind := KINDS.get(match[2])):
                    with receipts._lock:
                        receipts._got[match[1]] = kind
                self.send_response(200 if match else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: the spool's log contains the receipts."""

        return Handler
