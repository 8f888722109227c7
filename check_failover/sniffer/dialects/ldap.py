"""LDAP: requests and replies by messageID (RFC 4511, 4.1.1). Pure.

Waited for: bind, search, modify, add, delete, modify DN, compare, extended. Not waited for: unbind and abandon have no
reply (4.3, 4.11); a persistent search and syncrepl's refreshAndPersist never end, and their first entry may be long in
coming (draft-ietf-ldapext-psearch, RFC 4533). After a successful StartTLS the rest is encrypted.
"""

from __future__ import annotations

from collections.abc import Hashable

from check_failover.sniffer.dialects import ALL, Reply
from check_failover.sniffer.dialects.stream import NotAMessageError, Stream

OPERATIONS = {
    0x60: "bind",
    0x63: "search",
    0x66: "modify",
    0x68: "add",
    0x4A: "delete",
    0x6C: "modify-dn",
    0x6E: "compare",
    0x77: "extended",
}
_SILENT = frozenset({0x42, 0x50})  # unbind, abandon
_FINAL = frozenset({0x61, 0x65, 0x67, 0x69, 0x6B, 0x6D, 0x6F, 0x78})
_PARTIAL = frozenset({0x64, 0x73, 0x79})  # entry, reference, intermediate
SICK = frozenset({51, 52, 53, 80})  # busy, unavailable, unwillingToPerform, other (RFC 4511, 4.1.9)
_START_TLS = b"1.3.6.1.4.1.1466.20037"
_PERSISTENT = (b"2.16.840.1.113730.3.4.3", b"1.3.6.1.4.1.4203.1.9.1.1")  # psearch, Sync Request control
_REFRESH_AND_PERSIST = b"\x0a\x01\x03"

Message = tuple[int, int, int, bool]  # id, operation tag, result code or -1, the request is StartTLS
_NOTHING = 0x7FFFFFFF


class Ldap:
    """One connection. See ``dialects``."""

    __slots__ = ("_client", "_endless", "_server", "_tls", "encrypted")

    def __init__(self) -> None:
        self.encrypted = False
        self._client: Stream[Message] = Stream(message)
        self._server: Stream[Message] = Stream(message)
        self._tls: int | None = None
        self._endless: set[int] = set()

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]:
        if self.encrypted:
            return [("bytes", "encrypted")]
        if data[:2] == b"\x16\x03":  # a TLS record: ldaps, or a capture that began behind StartTLS
            self.encrypted = True
            return [("bytes", "encrypted")]
        found: list[tuple[Hashable, str]] = []
        for number, tag, _code, starts_tls in self._client.feed(data, missing):
            if tag not in OPERATIONS:
                continue
            if starts_tls:
                self._tls = number
            if tag == 0x63 and _persistent(data):
                self._endless.add(number)
                continue
            found.append((number, OPERATIONS[tag]))
        return found

    def reply(self, data: bytes, missing: int) -> list[Reply]:
        if self.encrypted:
            return [Reply(ALL, True, False)]
        found: list[Reply] = []
        for number, tag, code, _ in self._server.feed(data, missing):
            if tag in _FINAL:
                if number == self._tls and code == 0:
                    self.encrypted = True
                found.append(Reply(number, True, code in SICK))
            elif tag in _PARTIAL:
                found.append(Reply(number, False, False))
        if missing and not self._server.synced:
            found.append(Reply(ALL, True, False))  # an answer may have been in what was not captured
        return found

    def gap(self, from_client: bool) -> None:
        (self._client if from_client else self._server).gap()


def _persistent(data: bytes) -> bool:
    if _PERSISTENT[0] in data:
        return True
    return _PERSISTENT[1] in data and _REFRESH_AND_PERSIST in data


def message(data: bytes) -> tuple[int, Message] | None:
    """LDAPMessage ::= SEQUENCE { messageID INTEGER, protocolOp CHOICE, ... }: its length and its beginning."""
    if data[0] != 0x30:
        raise NotAMessageError
    outer = _length(data, 1)
    if outer is None:
        return None
    length, at = outer
    total = at + length
    if len(data) < at + 3:
        return None
    if data[at] != 0x02 or not 1 <= data[at + 1] <= 5:
        raise NotAMessageError
    after = at + 2 + data[at + 1]
    if len(data) <= after:
        return None
    number = int.from_bytes(data[at + 2 : after], "big")
    tag = data[after]
    if number > _NOTHING or not (tag in OPERATIONS or tag in _SILENT or tag in _FINAL or tag in _PARTIAL):
        raise NotAMessageError
    code = -1
    starts_tls = False
    if tag in _FINAL:
        inner = _length(data, after + 1)
        if inner is None or len(data) < inner[1] + 3:
            return None
        if data[inner[1]] == 0x0A and data[inner[1] + 1] == 1:
            code = data[inner[1] + 2]
    elif tag == 0x77:
        starts_tls = _START_TLS in data[after : after + 40]
    return total, (number, tag, code, starts_tls)


def _length(data: bytes, at: int) -> tuple[int, int] | None:
    """A BER length (X.690, 8.1.3) and where it ends; None when cut off."""
    if len(data) <= at:
        return None
    first = data[at]
    if first < 0x80:
        return first, at + 1
    count = first & 0x7F
    if not 1 <= count <= 4:
        raise NotAMessageError
    if len(data) < at + 1 + count:
        return None
    return int.from_bytes(data[at + 1 : at + 1 + count], "big"), at + 1 + count
