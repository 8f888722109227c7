"""Real faults of a server, and their removal.

========== ============================================ =====================================================
fault      action                                       on the network
========== ============================================ =====================================================
crash      SIGKILL to slapd                             open connections reset, new ones refused
hang       SIGSTOP to slapd                             TCP looks perfect: SYNs are answered, data is ACKed
blackhole  the host drops every frame, ARP included     nothing at all, as with the power cut
apperror   slapd restricted through its cn=config       binds work, every search ends in unwillingToPerform
loss       the host drops every second packet at random both ways; retransmissions, some connections get through
========== ============================================ =====================================================
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Protocol

from tests.lab.netns import House, freeze, kill

NFT = "/usr/sbin/nft"

# ARP and IP are dropped in different families; the loopback stays, so that the host's own programs do not notice.
DARK = """
table arp dark {
    chain in { type filter hook input priority -400; policy drop; }
    chain out { type filter hook output priority -400; policy drop; }
}
table inet dark {
    chain in { type filter hook input priority -400; iif != "lo" drop; }
    chain out { type filter hook output priority -400; oif != "lo" drop; }
}
"""

# By nft and not by netem, because not every kernel has that. The whole of ARP passes: the cable is bad, not gone.
LOSSY = """
table inet lossy {
    chain in { type filter hook input priority -400; iif != "lo" numgen random mod 2 0 drop; }
    chain out { type filter hook output priority -400; oif != "lo" numgen random mod 2 0 drop; }
}
"""


class Server(Protocol):
    """What a fault needs of a server; ``restrict`` has it answer with errors (None: no longer)."""

    @property
    def pid(self) -> int: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def restrict(self, operation: str | None) -> None: ...


def crash(_house: House, _who: str, server: Server) -> None:
    kill(server.pid)


def hang(_house: House, _who: str, server: Server) -> None:
    freeze(server.pid)


def blackhole(house: House, who: str, _server: Server) -> None:
    house.run(who, NFT, "-f", "-", input=DARK)


def apperror(_house: House, _who: str, server: Server) -> None:
    server.restrict("search")


def loss(house: House, who: str, _server: Server) -> None:
    house.run(who, NFT, "-f", "-", input=LOSSY)


FAULTS: dict[str, Callable[[House, str, Server], None]] = {
    "crash": crash,
    "hang": hang,
    "blackhole": blackhole,
    "apperror": apperror,
    "loss": loss,
}


def heal(house: House, who: str, server: Server, fault: str) -> None:
    """Undo it: the server answers again when this returns."""
    if fault == "crash":
        server.stop()
        server.start()
    elif fault == "hang":
        os.kill(server.pid, signal.SIGCONT)
    elif fault == "blackhole":
        house.run(who, NFT, "delete table arp dark; delete table inet dark")
    elif fault == "loss":
        house.run(who, NFT, "delete table inet lossy")
    else:
        server.restrict(None)
