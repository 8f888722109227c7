"""``failoverctl doctor``: finds what is missing on this controller; one line for each finding: what, where, what to do.

It changes nothing. Exit code: 0 no problem, 1 warnings or something that this user may not read, 2 something is missing
and a fail-over would not work. A new look is a function and one line in ``LOOKS``.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from check_failover.admin import looks_core, looks_system
from check_failover.admin.finding import SEVERITY, Finding, Scene, scene
from check_failover.admin.show import shortened
from check_failover.config import Config

LOOKS: dict[str, Callable[[Scene], Iterable[Finding]]] = {
    "daemons": looks_core.daemons,
    "redirect": looks_system.redirect,
    "servers": looks_core.servers,
    "network": looks_system.network,
    "files": looks_system.files,
    "command file": looks_core.command_file,
    "nagios": looks_core.nagios,
    "settings": looks_core.settings,
    "orders": looks_core.orders,
    "sms": looks_core.sms,
}


def doctor(config: Config, nagios_cfg: str | Path) -> int:
    """Run all looks and print their findings; returns the exit code."""
    seen = scene(config, Path(nagios_cfg))
    worst = 0
    for name, look in LOOKS.items():
        try:
            findings = list(look(seen))
        except Exception as error:  # the other looks still run
            said = " ".join(f"{type(error).__name__}: {error}".split())
            do = "report this as a fault of check_failover"
            findings = [Finding("unknown", name, f"the look failed: {said}", do)]
        for finding in shared(findings, {service.name for service in config.services}):
            print(finding)
            worst = max(worst, SEVERITY[finding.level])
    return worst


def shared(findings: Iterable[Finding], services: Container[str]) -> Iterator[Finding]:
    """The findings, with one in place of those about several services that differ in names and numbers only."""
    groups: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for one in findings:
        name, _, about = one.about.partition(" ")
        if name not in services:
            yield one
            continue
        found = re.sub(rf"\b{re.escape(name)}\b|\d+", "#", one.found)
        groups.setdefault((one.level, about, found), []).append((name, one.found, one.do))
    for (level, about, _), group in groups.items():
        names, found, do = (shortened(list(dict.fromkeys(each))) for each in zip(*group, strict=True))
        yield Finding(
            level, f"{names}:{' ' * bool(about)}{about}" if len(group) > 1 else f"{names} {about}".strip(), found, do
        )
