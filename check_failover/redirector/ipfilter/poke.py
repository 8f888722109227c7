"""Wake clients that only wait: a bare ACK from the service address, answered by each client with its own numbers.

A client whose server acknowledged its request and then died sends nothing, so it does not learn that the server is
gone. A segment outside of its window makes it answer (RFC 9293, section 3.10.7.4). Its NAT session was removed with
the old rule, so that answer goes to the new server, which does not know the connection and resets it: the client
connects anew. Raw sockets of the plain kind, so that every system that has IPFilter has them; root only.
"""

import socket
import time
from collections.abc import Iterable

from check_failover.model import Endpoint
from check_failover.rawip import bare_ack

PACE = 10_000  # clients per second: they all connect anew, and one server takes them
_BATCH = 100


def poke(pairs: Iterable[tuple[Endpoint, Endpoint]]) -> int:
    """Poke the clients of (service address, client) pairs; returns how many. Raises OSError without the right to."""
    sockets: dict[str, socket.socket] = {}
    poked = 0
    try:
        for address, client in pairs:
            if address.address not in sockets:
                sockets[address.address] = _open(address)
            where = (client.address, 0) if client.family == 4 else (client.address, 0, 0, 0)
            try:
                sockets[address.address].sendto(bare_ack(address, client), where)
            except OSError:
                continue  # this client cannot be reached any more: it is not stranded, it is gone
            poked += 1
            if poked % _BATCH == 0:
                time.sleep(_BATCH / PACE)
    finally:
        for sock in sockets.values():
            sock.close()
    return poked


def _open(address: Endpoint) -> socket.socket:
    family = socket.AF_INET if address.family == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    try:
        sock.bind((address.address, 0))
    except OSError:
        sock.close()
        raise
    return sock
