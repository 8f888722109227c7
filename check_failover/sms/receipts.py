"""Delivery receipts: Kannel fetches an address of ours (``dlr-url``), for as long as a text waits for one.

A listener and not polling, because Kannel cannot be asked: it keeps receipts in its own storage and hands them out by
this way alone. No daemon more either: whoever sends is the one that waits, and listens meanwhile. A receipt that comes
when nobody listens is asked again by Kannel (``http-request-retry``) or lost: then the second gateway tells it once
more, for a text too much is better than one too few.

The address holds a random word for each text, so that nobody can claim the delivery of one. Kannel puts the kind of
receipt in for ``%d`` (User's Guide 1.4.5, "Delivery Reports").
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

DELIVERED, UNDELIVERABLE, REJECTED = "delivered", "undeliverable", "rejected"
KINDS = {"1": DELIVERED, "2": UNDELIVERABLE, "16": REJECTED}  # 4 and 8: on their way
READ_TIMEOUT = 5.0  # seconds for one request


class Receipts:
    """What was told of texts since the last look, by the word that stands for each."""

    def __init__(self, url: str) -> None:
        self._url, self._listening = url.rstrip("/"), False
        self._got: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take receipts until the block ends. Raises OSError: the address is not ours, or the port is taken."""
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
        """A word for a new text; empty while nobody listens."""
        return secrets.token_hex(16) if self._listening else ""

    def url(self, token: str) -> str:
        """What the gateway is to fetch."""
        return f"{self._url}/{token}/%d" if token else ""

    def take(self) -> dict[str, str]:
        """Word -> kind, since the last call."""
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
                """Nothing: the spool's log tells of receipts."""

        return Handler
