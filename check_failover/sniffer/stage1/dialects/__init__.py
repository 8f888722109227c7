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

from collections.abc import Callable

from check_failover.model import Service
from check_failover.sniffer.stage1.dialects.dns import Dns, is_query
from check_failover.sniffer.stage1.dialects.generic import Generic
from check_failover.sniffer.stage1.dialects.http import Http
from check_failover.sniffer.stage1.dialects.ldap import Ldap
from check_failover.sniffer.stage1.dialects.messages import Dialect

# name -> constructor; its argument: whether the service uses UDP
DIALECTS: dict[str, Callable[[bool], Dialect]] = {
    "ldap": lambda _udp: Ldap(),
    "dns": Dns,
    "http": lambda _udp: Http(),
    "generic": lambda _udp: Generic(encrypted=False),
    "encrypted": lambda _udp: Generic(encrypted=True),
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
    make = DIALECTS.get(_name(service), DIALECTS["generic"])
    udp = service.protocol == "udp"
    return lambda: make(udp)


# Whether a first packet opens a session that only reads. It has the session's request over UDP; a SYN has none.
READS: dict[str, Callable[[bytes, bool], bool]] = {"dns": lambda first, udp: not udp or is_query(first)}


def only_reads(service: Service, first: bytes) -> bool:
    """Whether the session that begins with this payload only reads; False where that is not known."""
    reads = READS.get(_name(service))
    return reads is not None and reads(first, service.protocol == "udp")
