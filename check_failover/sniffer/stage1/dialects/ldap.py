"""LDAP: requests and replies by messageID (RFC 4511, 4.1.1). Pure.

Counted as requests: bind, search, modify, add, delete, modify DN, compare, extended. Not counted: unbind and abandon,
which have no reply and end other requests (4.3, 4.11); a persistent search and syncrepl's refreshAndPersist, which
never end and may send their first entry late (draft-ietf-ldapext-psearch, RFC 4533). After a successful StartTLS the
connection is encrypted.
"""

from collections.abc import Hashable

from check_failover.sniffer.stage1.dialects.messages import ALL, GIVEN_UP, UNREADABLE, Reply
from check_failover.sniffer.stage1.dialects.stream import NotAMessageError, Stream

OPERATIONS = {0x60: "bind", 0x63: "search", 0x66: "modify", 0x68: "add", 0x4A: "delete", 0x6C: "modify-dn"}
OPERATIONS |= {0x6E: "compare", 0x77: "extended"}
_UNBIND, _ABANDON, _SEARCH, _EXTENDED = 0x42, 0x50, 0x63, 0x77
_SILENT = frozenset({_UNBIND, _ABANDON})
_FINAL = frozenset({0x61, 0x65, 0x67, 0x69, 0x6B, 0x6D, 0x6F, 0x78})
_PARTIAL = frozenset({0x64, 0x73, 0x79})  # entry, reference, intermediate
# Result code -> whether a client can cause it (RFC 4511, A.2): busy, unavailable; unwillingToPerform (a bind without a
# password, RFC 4513, 5.1.2), other (an error that only this request meets).
FAULT_CODES = {51: False, 52: False, 53: True, 80: True}
_START_TLS = b"1.3.6.1.4.1.1466.20037"
_PERSISTENT = (b"2.16.840.1.113730.3.4.3", b"1.3.6.1.4.1.4203.1.9.1.1")  # psearch, Sync Request control
_REFRESH_AND_PERSIST = b"\x0a\x01\x03"

Message = tuple[int, int, int, bool]  # id, tag, (result code | abandoned id | -1), StartTLS or an endless search
_MAX_ID = 0x7FFFFFFF  # maxInt (RFC 4511, 4.1.1)
_MAX_LENGTH = 1 << 26  # bytes: a greater length is no LDAP message


class Ldap:
    """One connection. See ``dialects``."""

    __slots__ = ("_client", "_server", "_tls", "encrypted")

    def __init__(self) -> None:
        self.encrypted = False
        self._client: Stream[Message] = Stream(message)
        self._server: Stream[Message] = Stream(message)
        self._tls: int | None = None

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]:
        if self.encrypted or data[:2] == b"\x16\x03":  # a TLS record: ldaps, or a capture that began after StartTLS
            self.encrypted = True
            return [("bytes", "encrypted")]
        found: list[tuple[Hashable, str]] = []
        for number, tag, abandoned, special in self._client.feed(data, missing):
            if tag == _UNBIND:
                found.append((ALL, GIVEN_UP))
            elif tag == _ABANDON:
                found.append((abandoned, GIVEN_UP))
            elif tag in OPERATIONS and not (tag == _SEARCH and special):
                found.append((number, OPERATIONS[tag]))
            if tag == _EXTENDED and special:
                self._tls = number
        return found

    def reply(self, data: bytes, missing: int) -> list[Reply]:
        if self.encrypted:
            return [Reply(ALL, True, False)]
        found: list[Reply] = []
        for number, tag, code, _ in self._server.feed(data, missing):
            if tag in _FINAL:
                if number == self._tls and code == 0:
                    self.encrypted = True
                found.append(Reply(number, True, code in FAULT_CODES, FAULT_CODES.get(code, False)))
            elif tag in _PARTIAL:
                found.append(Reply(number, False, False))
        if self._server.out_of_sync:
            found.append(UNREADABLE)  # these bytes may have held a reply
        return found

    def resync(self, from_client: bool) -> None:
        (self._client if from_client else self._server).resync()


def message(data: bytes, last: bool) -> tuple[int, Message] | None:
    """LDAPMessage ::= SEQUENCE { messageID INTEGER, protocolOp CHOICE, ... }: its length and its first fields.

    A search is parsed only when it is complete, because the controls that make it endless stand at its end.
    """
    if data[0] != 0x30:
        raise NotAMessageError
    outer = _length(data, 1)
    if outer is None:
        return None
    length, at = outer
    total = at + length
    if length > _MAX_LENGTH:
        raise NotAMessageError
    if len(data) < at + 3:
        return None
    if data[at] != 0x02 or not 1 <= data[at + 1] <= 5:
        raise NotAMessageError
    after = at + 2 + data[at + 1]
    if len(data) <= after:
        return None
    number = int.from_bytes(data[at + 2 : after], "big")
    tag = data[after]
    if number > _MAX_ID or not (tag in OPERATIONS or tag in _SILENT or tag in _FINAL or tag in _PARTIAL):
        raise NotAMessageError
    if tag in (_SEARCH, _EXTENDED, _ABANDON) and len(data) < total and not last:
        return None
    body = data[after:total]
    if tag in (_SEARCH, _EXTENDED):
        return total, (number, tag, -1, _special(tag, body))
    if tag == _ABANDON:  # primitive: tag, length, the id
        return total, (number, tag, int.from_bytes(body[2:7], "big"), False)
    code = -1
    if tag in _FINAL:
        inner = _length(data, after + 1)
        if inner is None or len(data) < inner[1] + 3:
            return None
        if data[inner[1]] == 0x0A and data[inner[1] + 1] == 1:
            code = data[inner[1] + 2]
    return total, (number, tag, code, False)


def _special(tag: int, body: bytes) -> bool:
    """Whether a search is endless, or an extended request is StartTLS."""
    if tag == _EXTENDED:
        return _START_TLS in body[:40]
    return _PERSISTENT[0] in body or (_PERSISTENT[1] in body and _REFRESH_AND_PERSIST in body)


def _length(data: bytes, at: int) -> tuple[int, int] | None:
    """A BER length (X.690, 8.1.3) and the offset behind it; None when it is cut."""
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
