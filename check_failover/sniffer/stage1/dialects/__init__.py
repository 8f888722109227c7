"""Parsers that find requests and replies, one file per protocol. Pure: bytes in, messages out.

Each connection (or UDP port of a client) has its own dialect object::

    request(data, missing) -> [(key, operation), ...]     the client's requests; operation GIVEN_UP: it stopped waiting
    reply(data, missing)   -> [Reply, ...]                 the server's replies
    resync(from_client)                                    bytes were lost: find the start of the next message

``missing`` counts bytes that were on the wire and not captured. A dialect skips bytes that it cannot parse and never
guesses: stage 1 waits only for requests that the dialect understood. A new dialect is one file, one line in
``DIALECTS``, its name in ``config.schema.json`` (``dialect``), and a line in ``READS`` if a first packet shows that its
client only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

from check_failover.model import Service


class Reply(NamedTuple):
    """``key`` names the request (or ANY, ALL); ``final``: the reply is complete; ``error``: the server has a fault.

    ALL and not final: the server sends bytes that cannot be parsed, so no open request counts as evidence.
    """

    key: Hashable
    final: bool
    error: bool


ANY = "any"  # the oldest open request
ALL = "all"  # every open request
GIVEN_UP = "given up"  # an operation: the client no longer waits for this key (or ALL)
UNREADABLE = Reply(ALL, False, False)


class Dialect(Protocol):
    """See the module. ``encrypted``: the requests of this connection are not visible."""

    encrypted: bool

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]: ...

    def reply(self, data: bytes, missing: int) -> list[Reply]: ...

    def resync(self, from_client: bool) -> None: ...


def _ldap(_udp: bool) -> Dialect:
    from check_failover.sniffer.stage1.dialects.ldap import Ldap

    return Ldap()


def _dns(udp: bool) -> Dialect:
    from check_failover.sniffer.stage1.dialects.dns import Dns

    return Dns(udp)


def _http(_udp: bool) -> Dialect:
    from check_failover.sniffer.stage1.dialects.http import Http

    return Http()


def _generic(_udp: bool) -> Dialect:
    from check_failover.sniffer.stage1.dialects.generic import Generic

    return Generic(encrypted=False)


def _encrypted(_udp: bool) -> Dialect:
    from check_failover.sniffer.stage1.dialects.generic import Generic

    return Generic(encrypted=True)


DIALECTS: dict[str, Callable[[bool], Dialect]] = {
    "ldap": _ldap,
    "dns": _dns,
    "http": _http,
    "generic": _generic,
    "encrypted": _encrypted,
}


def _name(service: Service) -> str:
    """The configured dialect, else the one of the check type."""
    name = service.dialect or service.check.type
    tls = service.check.options.get("tls")
    if service.dialect is None and (tls is True or tls in ("ldaps", "https") or service.check.type == "https"):
        name = "encrypted"  # StartTLS begins in the clear, and the dialect detects it
    return name


def dialect_for(service: Service) -> Callable[[], Dialect]:
    """The constructor of a service's dialect: the configured one, else the one of its check type."""
    make = DIALECTS.get(_name(service), _generic)
    udp = service.protocol == "udp"
    return lambda: make(udp)


def _dns_reads(first: bytes, udp: bool) -> bool:
    from check_failover.sniffer.stage1.dialects.dns import is_query

    return not udp or is_query(first)


# Whether a first packet opens a session that only reads. It has the session's request over UDP; a SYN has none.
READS: dict[str, Callable[[bytes, bool], bool]] = {"dns": _dns_reads}


def only_reads(service: Service, first: bytes) -> bool:
    """Whether the session that begins with this payload only reads; False where that is not known."""
    reads = READS.get(_name(service))
    return reads is not None and reads(first, service.protocol == "udp")
