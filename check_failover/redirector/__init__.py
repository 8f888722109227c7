"""failover-redirector: the only package that touches NAT.

A redirect is built from the config and implements ``Redirect``. A new one is one module and one line in ``REDIRECTS``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from check_failover.config import Config
from check_failover.model import Endpoint, Service, Target, later
from check_failover.records import Activity


class RedirectError(Exception):
    """The kernel or its tool failed: one line that says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the kernel has for a service: its target, and what belongs to it beside the target."""

    target: Target
    dead: Target | None = None  # the server that was just left: its open connections are reset
    withheld: bool | None = True  # whether refused connections are withheld from clients; None: unsupported


class Change(IntEnum):
    """How much of our rules may have changed in the kernel."""

    NONE = 0
    WIRING = 1
    RULES = 2


class Redirect(Protocol):
    """One kind of redirect. A method that fails raises RedirectError and leaves the old state."""

    cuts: bool  # whether ``cut`` works, and ``wire`` for what a ``Wiring`` has beside the target
    drills: bool  # whether ``send_to_standby`` works

    def install(self, targets: Mapping[str, Target]) -> None:
        """Set the rules to exactly these targets (service name -> target). Correct rules stay, so no restart flips."""

    def whole(self) -> bool:
        """Whether the kernel has all our other rules, which ``wired`` does not check."""

    def watch(self, changed: Callable[[Change], None]) -> bool:
        """Call back, in a thread, after each change of our rules, by us too. False: the rules must be read instead."""

    def wire(self, service: Service, wiring: Wiring) -> None:
        """Set the kernel to this in one transaction, so that a rule exists at any time. Idempotent.

        Where the target changes and no server is dead (a drain), open connections stay.
        """

    def wired(self, services: Iterable[Service]) -> dict[str, Wiring]:
        """What the kernel has (service name -> wiring). A service is missing where another hand changed its rules."""

    def forget_unanswered(self, service: Service, old: Target) -> int:
        """Forget half-open connections to the ``old`` server, so that their next packet goes to the new one.

        Called right after ``wire``, before the sniffer gets the event and replays first packets. Returns how many.
        """

    def free_stranded(self, service: Service, old: Target) -> int:
        """Reset clients' open connections to ``old``, after ``forget_unanswered``. Returns how many."""

    def sweep_finished(self, service: Service, old: Target) -> None:
        """Forget finished connections to ``old``, which may be many. Needs no lock: no client uses them."""

    def sweep(self, service: Service, old: Target) -> None:
        """Forget the remaining connections to ``old``, once the resets had time to arrive.

        Otherwise a client that reuses a port would be sent to ``old`` as part of its former connection.
        """

    def open_connections(self, servers: Mapping[str, Target]) -> dict[str, int]:
        """Service name -> number of clients' open connections to that server (UDP: flows still remembered)."""

    def elsewhere(self, service: Service, target: Target) -> list[Endpoint]:
        """Clients with an open connection to another server than ``target`` (UDP: the kernel still remembers it)."""

    def cut(self, service: Service, old: Target) -> int:
        """End a drain: treat the old server's connections as a fail-over does. Returns how many were reset.

        Called right after ``wire``, with ``old`` as the dead server.
        """

    def activity(self, services: Iterable[Service]) -> dict[str, Activity]:
        """Counters for ``check_failover_traffic`` without the sniffer."""

    def forget(self, service: Service, client: str, port: int) -> bool:
        """Forget a client's unanswered connection for a rescue; False if the server has answered it."""

    def send_to_standby(self, service: Service, client: str | None, seconds: float) -> None:
        """Drill: send this client's new connections to the standby until the kernel's timeout; None: end it now."""

    def answered(self, service: Service, client: str) -> frozenset[tuple[Target, int]]:
        """Server and client port of this client's answered connections that the kernel still remembers."""


def current(redirect: Redirect, service: Service) -> Target | None:
    """The target in the kernel's rule; None: there is no rule, or it points to neither server."""
    wiring = redirect.wired((service,)).get(service.name)
    return None if wiring is None else wiring.target


REDIRECTS: dict[str, Callable[[Config], Redirect]] = {
    "nftables": later("check_failover.redirector.nftables.redirect:Nftables"),
    "ipfilter": later("check_failover.redirector.ipfilter.redirect:Ipfilter"),
}
