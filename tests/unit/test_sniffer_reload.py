"""A changed config in a sniffer that runs: what did not change goes on, the rest begins anew, a bad one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.config import ConfigError, load
from check_failover.sniffer.loop import Loop
from tests.unit.test_loop import CONFIG

SECOND = """
[[service]]
name = "web"
host = "h"
protocol = "tcp"
address = "192.0.2.11"
port = 80
primary = "127.0.0.1:9"
standby = "127.0.0.2:9"
[service.check]
type = "tcp"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "config.toml"
    made.write_text(CONFIG.format(tmp_path).replace("[monitoring]", 'client_interface = "lo"\n[monitoring]') + SECOND)
    return made


@pytest.fixture
def loop(path: Path) -> Iterator[Loop]:
    made = Loop(load(path))
    yield made
    made.stop()
    made.close()


def test_what_did_not_change_goes_on(loop: Loop, path: Path) -> None:
    """One service stays the same monitor, the changed one is a new one, a removed one is gone, a new one is there."""
    ldap, web = loop.monitors["ldap"], loop.monitors["web"]
    text = path.read_text()
    path.write_text(
        text.replace('"192.0.2.11"', '"192.0.2.12"') + SECOND.replace('"web"', '"more"').replace("80", "81")
    )
    loop.reload(load(path))
    assert list(loop.monitors) == ["ldap", "web", "more"]
    assert loop.monitors["ldap"] is ldap
    assert loop.monitors["web"] is not web
    path.write_text(text.partition("[[service]]")[0] + SECOND)
    loop.reload(load(path))
    assert list(loop.monitors) == ["web"]


def test_what_a_running_daemon_cannot_change(loop: Loop, path: Path) -> None:
    """Sockets, state and the way to the core: refused, and everything goes on as it was."""
    before = dict(loop.monitors)
    good = path.read_text()
    for old, new in (("nagios.cmd", "other.cmd"), ('run_dir = "', 'run_dir = "/x'), ('client_interface = "lo"', "")):
        path.write_text(good.replace(old, new))
        with pytest.raises(ConfigError):
            loop.reload(load(path))
    assert loop.monitors == before


def test_an_outcome_of_a_probe_of_before_is_nobodys(loop: Loop, path: Path) -> None:
    """A probe that ends after its service is gone or changed says nothing about the new one."""
    gone = loop.monitors["web"].service
    path.write_text(path.read_text().replace(SECOND, ""))
    loop.reload(load(path))
    from check_failover.model import Probe, Target

    loop.actions._outcome(gone, Target.PRIMARY, Probe(False, 0.1, "late"))
    assert loop.monitors["ldap"].health[Target.PRIMARY].ok is None
