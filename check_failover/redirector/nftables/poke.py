"""Wake clients that only wait: the dead server had ACKed their request, so they send nothing that could be answered.

Each gets a bare ACK with a random sequence number, from the service address. A sequence number out of the window makes
the client answer with an ACK that carries its exact state (RFC 9293, 3.10.7.4; RFC 5961, 4.2); that meets the rule
``reject with tcp reset`` and the client reconnects. No state per connection is needed. The packets carry a mark for
which the raw chain says ``notrack``: conntrack must not take them for a reply of the server.

Source: raw(7), ipv6(7).
"""

import struct
import time
from collections.abc import Sequence
from functools import cache

from check_failover.model import MARK_POKE, Endpoint, Service
from check_failover.rawip import bare_ack, marked_socket
from check_failover.redirector import RedirectError

BATCH = 200  # clients between two pauses, so that the standby is not stampeded
PAUSE = 0.005  # seconds
_HOPS = 64


class Poker:
    """Keeps its raw sockets open: a flip should not wait for them."""

    def __init__(self) -> None:
        self._socket = cache(marked_socket)

    def poke(self, service: Service, clients: Sequence[Endpoint]) -> int:
        """Poke each client once; returns how many packets left. Raises RedirectError when none can leave at all."""
        sent = 0
        for count, client in enumerate(clients):
            if count and count % BATCH == 0:
                time.sleep(PAUSE)
            packet = _packet(service.address, client)
            try:
                self._socket(client.family, MARK_POKE).sendto(packet, (client.address, 0))
                sent += 1
            except PermissionError:
                raise RedirectError("poke: no permission for a raw socket: CAP_NET_RAW is missing") from None
            except OSError:
                continue  # no route to that client any more, so it cannot wait for an answer
        return sent


def _packet(source: Endpoint, destination: Endpoint) -> bytes:
    """A bare ACK with its IP header; the kernel fills in the IPv4 header's own checksum (raw(7))."""
    tcp = bare_ack(source, destination)
    if source.family == 6:
        header = struct.pack("!IHBB", 6 << 28, len(tcp), 6, _HOPS)
    else:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, _HOPS, 6, 0)
    return header + source.packed + destination.packed + tcp
