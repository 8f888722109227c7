"""``failoverctl doctor``: finds what is missing on this controller; one line for each finding: what, where, what to do.

It changes nothing. Exit code: 0 no problem, 1 warnings or something that this user may not read, 2 something is missing
and a fail-over would not work. A new look is a function and one line in ``LOOKS``.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from check_failover.admin import looks_core, looks_system
from check_failover.admin.finding import SEVERITY, Finding, Scene, scene
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
        for finding in findings:
            print(finding)
            worst = max(worst, SEVERITY[finding.level])
    return worst
