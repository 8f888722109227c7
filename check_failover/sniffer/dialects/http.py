"""HTTP/1.1: replies come in the order of the requests (RFC 9112, 9.3.2). Pure.

Only start lines are read: bodies need no framing here, because any byte from the server proves that it works on the
request. 5xx is an error, 1xx is not yet an answer, 101 turns the connection into something else (RFC 9110, 15.2.2).
"""

from __future__ import annotations

import re
from collections.abc import Hashable

from check_failover.sniffer.dialects import ALL, ANY, Reply

_REQUEST = re.compile(rb"(?:^|\r\n\r\n)(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE) [^\r\n]{1,8000}")
_STATUS = re.compile(rb"(?:^|\r\n|\n|})HTTP/1\.[01] ([1-5]\d\d)[ \r]")


class Http:
    """One connection. See ``dialects``."""

    __slots__ = ("_asked", "encrypted")

    def __init__(self) -> None:
        self.encrypted = False
        self._asked = 0

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]:
        if self.encrypted or data[:2] == b"\x16\x03":
            self.encrypted = True
            return [("bytes", "encrypted")]
        found: list[tuple[Hashable, str]] = []
        for match in _REQUEST.finditer(data):
            self._asked += 1
            found.append((self._asked, match[1].decode()))
        return found

    def reply(self, data: bytes, missing: int) -> list[Reply]:
        if self.encrypted:
            return [Reply(ALL, True, False)]
        found: list[Reply] = []
        for match in _STATUS.finditer(data):
            code = int(match[1])
            if code == 101:
                self.encrypted = True
            if code >= 200 or code == 101:
                found.append(Reply(ANY, True, code >= 500))
        if missing and len(found) != 1:
            found.append(Reply(ALL, True, False))  # further status lines may be in what was not captured
        return found

    def gap(self, from_client: bool) -> None:
        """Nothing to find again: start lines are looked for in every segment."""
