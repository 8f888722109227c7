"""The effects that a ``ServiceMonitor`` orders. ``actions`` carries them out; ``replay`` prints them."""

import logging
from typing import Any, Protocol

from check_failover.model import Facts, PassiveResult, Service, Target


class Actions(Protocol):
    """Every method returns at once."""

    def probe(self, service: Service, target: Target, timeout: float) -> None:
        """Start a probe of a server; its outcome comes back through ``ServiceMonitor.probed``."""

    def report(self, result: PassiveResult) -> None:
        """Submit a passive result to the core."""

    def facts(self, service: Service, facts: Facts) -> None:
        """Send facts to the redirector, for an order that may be pending."""

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Write a line to the log."""

    def keep(self, service: Service, story: dict[str, Any]) -> int | None:
        """Save the evidence of a verdict; returns its number."""

    def sync(self, service: Service, facts: Facts) -> Facts:
        """The facts, completed with the state of the data sync."""
