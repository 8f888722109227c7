"""Send a client's captured first packet again, as if the client had retransmitted it.

The packet leaves through the output chain, where the redirector's NAT rules match its mark: MARK_REPLAY goes to the
current target, MARK_RESCUE to the standby. The source is the client's address, so the answer goes to the client.
Setting a mark needs CAP_NET_RAW since Linux 5.17 (socket(7)), CAP_NET_ADMIN before.
"""

from functools import cache
from ipaddress import ip_address

from check_failover.rawip import finish, marked_socket
from check_failover.sniffer.stage1.packet import Packet


class SendError(Exception):
    """No packet can be sent: one line."""


class PacketSender:
    """Keeps one raw socket open for each address family and mark."""

    def __init__(self) -> None:
        self._socket = cache(marked_socket)

    def send(self, frame: bytes, p: Packet, mark: int) -> bool:
        """Send with recomputed checksums; False when the capture cut the packet or the send failed.

        Raises SendError without permission.
        """
        packet = finish(frame[p.ip_offset :])
        if packet is None:
            return False
        try:
            self._socket(packet[0] >> 4, mark).sendto(packet, (str(ip_address(p.dst)), 0))
        except PermissionError as error:
            raise SendError(f"cannot send packets on: {error.strerror}: CAP_NET_RAW (Linux 5.17 or later)") from None
        except OSError:
            return False
        return True
