"""Where things are on each system, and that every program looks there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from check_failover.places import LINUX, PLACES, places

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
[controller]
client_interface = "em0"
[[service]]
name = "ldap"
host = "ldap.example.org"
protocol = "tcp"
address = "192.0.2.10"
port = 389
primary = "10.0.0.11"
standby = "10.0.0.12"
[service.check]
type = "ldap"
base = "dc=example,dc=org"
"""


@pytest.mark.parametrize(
    ("platform", "config", "run_dir", "state_dir", "command_file"),
    [
        ("linux", "/etc", "/run", "/var/lib", "/var/lib/nagios4/rw"),
        ("freebsd14", "/usr/local/etc", "/var/run", "/var/db", "/var/spool/nagios/rw"),
        ("netbsd10", "/usr/pkg/etc", "/var/run", "/var/db", "/var/spool/nagios/rw"),
        ("sunos5", "/etc", "/var/run", "/var/lib", "/var/lib/nagios4/rw"),
        ("plan9", "/etc", "/run", "/var/lib", "/var/lib/nagios4/rw"),
    ],
)
def test_the_platforms(platform: str, config: str, run_dir: str, state_dir: str, command_file: str) -> None:
    """Each system's own, hier(7); Linux's for one that nobody has described."""
    found = places(platform)
    assert found["config"] == f"{config}/check_failover/config.toml"
    assert (found["run_dir"], found["state_dir"]) == (f"{run_dir}/check_failover", f"{state_dir}/check_failover")
    assert found["command_file"] == f"{command_file}/nagios.cmd"


def test_every_platform_has_every_place() -> None:
    """Nothing is forgotten for one of them."""
    assert all(set(LINUX) <= set(found) for found in PLACES.values())


EVERYWHERE = """
    import sys

    sys.platform = "freebsd14"
    from check_failover.admin.ctl import _parser
    from check_failover.admin.objects import icinga2
    from check_failover.admin.objects import nagios
    from check_failover.checks import plugin
    from check_failover.config import load
    from check_failover.handlers import event, remote, sms
    from check_failover.handlers.arguments import answered

    config = load(sys.argv[1])
    print(config.controller.run_dir, config.controller.state_dir, config.monitoring["command_file"])
    print(_parser().get_default("config"), plugin.socket_of(None, "sniffer.sock"))
    print(event.OPTIONS["socket"], remote.OPTIONS["config"], sms.OPTIONS["config"])
    for program in ("failover_event", "failover_remote", "failover_sms"):
        assert answered(["--help"], program)
    print(_parser().format_help(), nagios(config), icinga2(config))
"""


def test_every_program_looks_there(tmp_path: Path) -> None:
    """On FreeBSD no program, no help and no printed object names a place of Linux."""
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EVERYWHERE), path],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, third, rest = done.stdout.split("\n", 3)
    assert first == "/var/run/check_failover /var/db/check_failover /var/spool/nagios/rw/nagios.cmd"
    assert second == "/usr/local/etc/check_failover/config.toml /var/run/check_failover/sniffer.sock"
    assert third == "/var/run/check_failover/redirector.sock" + 2 * " /usr/local/etc/check_failover/config.toml"
    assert "/var/run/check_failover/redirector.sock" in rest
    told = rest.replace("/usr/local/etc/check_failover", "").replace("/var/run/check_failover", "")
    for place in ("/etc/check_failover", "/run/check_failover", "/var/lib/"):
        assert place not in told
