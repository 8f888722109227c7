"""Who steers: the only wing that touches NAT.

A redirect is built from the config and does what ``Redirect`` says. A new one is one file
and one line in ``REDIRECTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from check_failover.config import Config
from check_failover.model import Service, Target


class RedirectError(Exception):
    """The kernel or its tool did not do it: one line that says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Packets that demand an answer, and answers, of a service since the rules were loaded (the NAT's own counters)."""

    asked: int
    answered: int


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done for stranded flows after a flip."""

    poked: int = 0  # clients told to reconnect
    forgotten: int = 0  # conntrack entries or sessions removed


class Redirect(Protocol):
    """One way to redirect. Each method raises RedirectError when it failed, and the old state stands then."""

    def install(self, targets: Mapping[str, Target]) -> None:
        """Bring the kernel's rules to exactly these targets (service name -> target), at boot or after a damage.

        Idempotent: right rules are left untouched, so that a restart neither flips nor interrupts.
        """

    def current(self, service: Service) -> Target | None:
        """The target as the kernel has it; None: no such rule, or one that points to neither server."""

    def set(self, service: Service, target: Target, *, drain: bool = False) -> None:
        """Flip in one step, never without a rule. With ``drain`` open connections stay where they are."""

    def repair(self, service: Service, old: Target) -> Repair:
        """Free the clients stranded on the ``old`` server. Called after ``set``; may be called again."""

    def withhold(self, service: Service, on: bool) -> None:
        """Whether refusals of new connections are kept from clients while it is undecided. No-op where impossible."""

    def activity(self, service: Service) -> Activity:
        """Counters for ``check_failover_traffic`` without the sniffer."""

    def forget(self, service: Service, client: str, port: int) -> bool:
        """Drop one unreplied entry of that client (rescue); False when there is none, or it has replies."""


def _nftables(config: Config) -> Redirect:
    from check_failover.redirector.nftables import Nftables

    return Nftables(config)


REDIRECTS: dict[str, Callable[[Config], Redirect]] = {
    "nftables": _nftables,
}
