"""How requests and replies are told apart, one file per protocol. Pure: bytes in, messages out.

A dialect is a class made anew for each connection (or once for all datagrams of a client's port)::

    request(data, missing) -> [(key, operation), ...]     what the client asked, or gave up (operation GIVEN_UP)
    reply(data, missing)   -> [Reply, ...]                 what the server answered
    gap(from_client)                                       bytes were lost: find the next message's beginning

``missing`` counts bytes that were on the wire and not captured. What cannot be read is skipped, never guessed: a
request that was not understood is not waited for. A new dialect is one file, one line in ``DIALECTS``
and its name in ``config.schema.json`` (``dialect``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

from check_failover.model import Service


class Reply(NamedTuple):
    """``key`` names the request (or ANY, ALL); ``final``: nothing more follows; ``error``: the server is sick.

    ALL and not final: the server is talking and nobody can tell about what, so whatever is open is no evidence.
    """

    key: Hashable
    final: bool
    error: bool


ANY = "any"  # the oldest open request, whichever
ALL = "all"  # every open request
GIVEN_UP = "given up"  # an operation: the client waits no longer for this key (or ALL)
UNREADABLE = Reply(ALL, False, False)


class Dialect(Protocol):
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


def dialect_for(service: Service) -> Callable[[], Dialect]:
    """A maker of dialects for a service: as configured, else by the kind of its check."""
    name = service.dialect or service.check.type
    tls = service.check.options.get("tls")
    if service.dialect is None and (tls is True or tls in ("ldaps", "https") or service.check.type == "https"):
        name = "encrypted"  # StartTLS begins in the clear; the dialect notices it itself
    make = DIALECTS.get(name, _generic)
    udp = service.protocol == "udp"
    return lambda: make(udp)
