"""Who steers: the only wing that touches NAT.

A redirect is built from the config and does what ``Redirect`` says. A new one is one file
and one line in ``REDIRECTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from check_failover.config import Config
from check_failover.model import Service, Target
from check_failover.records import Activity


class RedirectError(Exception):
    """The kernel or its tool did not do it: one line that says what, where and what to do."""


class Redirect(Protocol):
    """One way to redirect. Each method raises RedirectError when it failed, and the old state stands then."""

    cuts: bool  # whether it can ``cut``
    drills: bool  # whether it can ``send_to_standby``

    def install(self, targets: Mapping[str, Target]) -> None:
        """Bring the kernel's rules to exactly these targets (service name -> target), at boot or after a damage.

        Idempotent: right rules are left untouched, so that a restart neither flips nor interrupts.
        """

    def current(self, service: Service) -> Target | None:
        """The target as the kernel has it; None: no such rule, or one that points to neither server."""

    def whole(self) -> bool:
        """Whether everything else of ours is in the kernel: what ``current`` does not look at."""

    def set(self, service: Service, target: Target, *, drain: bool = False) -> None:
        """Flip in one step, never without a rule. With ``drain`` open connections stay where they are."""

    def forget_unanswered(self, service: Service, old: Target) -> int:
        """Forget connections in the making towards the ``old`` server, so that their next packet goes to the new one.

        Called right after ``set``, before the sniffer hears of the flip and sends first packets on. Returns how many.
        """

    def free_stranded(self, service: Service, old: Target) -> int:
        """Free the clients with open connections to ``old``, after ``forget_unanswered``. Returns how many."""

    def sweep(self, service: Service, old: Target) -> int:
        """Forget what is left towards ``old``, once the freed clients had time to hear of it. Returns how many.

        A client that uses a port again would otherwise be sent to ``old`` as part of its former connection.
        """

    def open_connections(self, service: Service, server: Target) -> int:
        """Connections that clients still have to that server (UDP: flows that the kernel still remembers)."""

    def cut(self, service: Service, old: Target) -> int:
        """End a drain: what a flip does to the old server's connections, now. Returns how many clients were freed."""

    def withhold(self, service: Service, on: bool) -> None:
        """Whether refusals of new connections are kept from clients while it is undecided. No-op where impossible."""

    def activity(self, service: Service) -> Activity:
        """Counters for ``check_failover_traffic`` without the sniffer."""

    def forget(self, service: Service, client: str, port: int) -> bool:
        """Clear the way for a new try of that client (rescue); False when its connection has been answered."""

    def send_to_standby(self, service: Service, client: str | None, seconds: float) -> None:
        """For a drill: new connections of this one client go to the standby until the time is over, which the kernel
        sees to itself. None: nobody's any more. Never called where ``drills`` is False.
        """

    def answered(self, service: Service, client: str) -> frozenset[tuple[Target, int]]:
        """Server and client's port of this client's connections that were answered and are still remembered."""


def _nftables(config: Config) -> Redirect:
    from check_failover.redirector.nftables.redirect import Nftables

    return Nftables(config)


def _ipfilter(config: Config) -> Redirect:
    from check_failover.redirector.ipfilter.redirect import Ipfilter

    return Ipfilter(config)


REDIRECTS: dict[str, Callable[[Config], Redirect]] = {
    "nftables": _nftables,
    "ipfilter": _ipfilter,
}
