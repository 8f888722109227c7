"""``[controller.ipfilter]`` and what each system calls things where it says nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from check_failover.config import Config
from check_failover.places import PLACES, places
from check_failover.redirector import RedirectError
from check_failover.redirector.ipfilter.rules import valid_interface
from check_failover.redirector.ipfilter.tool import TIMEOUT


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked: every interface is a name that ipnat takes, and each service has the interfaces that it needs."""

    ipnat: str
    rules: Path
    modern: bool  # IPFilter 5: rules have tags, and sessions go with their rule
    timeout: float  # of one call, in seconds
    client_interfaces: tuple[str, ...]
    server_interface: str | None

    @staticmethod
    def of(config: Config, platform: str = sys.platform) -> Settings:
        """Raises RedirectError naming the key."""
        controller, table = config.controller, config.controller.ipfilter
        where, servers = f"{config.path}: $.controller", "ipfilter.server_interface"
        clients = controller.client_interfaces
        server = table.get("server_interface")
        if not clients:
            raise RedirectError(f"{where}.client_interface: ipfilter's rules need it; name it")
        for key, name in (*(("client_interface", one) for one in clients), (servers, server)):
            if name is not None and not valid_interface(name):
                raise RedirectError(f"{where}.{key}: ipnat does not take {name!r} for an interface; rename it")
        for service in config.services:
            if service.source_nat is not None and server is None:
                raise RedirectError(
                    f"{where}.{servers}: {service.name} has source_nat, whose rule needs the interface towards the "
                    "servers; name it"
                )
        usual = PLACES["freebsd"] | places(platform)
        version = 4 if platform.startswith("sunos") else 5
        return Settings(
            ipnat=table.get("ipnat", usual["ipnat"]),
            rules=Path(table.get("rules", usual["ipnat_rules"])),
            modern=table.get("version", version) >= 5,
            timeout=float(table.get("timeout", TIMEOUT)),
            client_interfaces=clients,
            server_interface=server,
        )
