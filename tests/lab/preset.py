"""A preset of nagios-conf/sync as it is shipped, for a test: its commands with the lab's paths, not the site's."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

from tests.lab.sshd import Servers

PRESETS = Path(__file__).resolve().parents[2] / "nagios-conf/sync"
SBIN = "/usr/local/sbin"


def keys(name: str, changes: dict[str, str], leave: tuple[str, ...] = ()) -> str:
    """The preset's keys but for the two servers, ``from`` and those in ``leave``, with each of ``changes`` replaced."""
    table = tomllib.loads((PRESETS / f"{name}.toml").read_text())["service"]["sync"]
    lines = []
    for key, value in table.items():
        if key in ("primary", "standby", "from", *leave):
            continue
        text = repr(value) if not isinstance(value, bool) else str(value).lower()
        for old, new in (changes | {SBIN: changes.get(SBIN, str(PRESETS))}).items():
            text = text.replace(old, new)
        lines.append(f"{key} = {text}")
    return "\n".join(lines)


def ssh(servers: Servers, who: str, command: str, stdin: str = "") -> str:
    """Run a shell line on a server, which must succeed."""
    argv = ["/usr/bin/ssh", "-F", str(servers.ssh_config), servers.targets[who], command]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{who}: {command}: {done.stdout}{done.stderr}"
    return done.stdout
