"""What failover-sniffer cannot begin with, and what a probe that cannot be made leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_failover.config import load
from check_failover.control import ControlError
from check_failover.model import Probe
from check_failover.sniffer.health import Health
from check_failover.sniffer.loop import Loop

GOOD = Path(__file__).parent.parent / "fixtures" / "config" / "good.toml"


def test_no_place_for_its_state(tmp_path: Path) -> None:
    """One line, and what to look at."""
    (tmp_path / "file").touch()
    path = tmp_path / "config.toml"
    text = GOOD.read_text()
    assert '"/var/lib/check_failover"' in text
    path.write_text(text.replace('"/var/lib/check_failover"', f'"{tmp_path}/file"'))
    with pytest.raises(ControlError, match=r"/file/sniffer: cannot make: Not a directory: check space and rights"):
        Loop(load(path))


def test_why_a_server_is_not_probed_is_kept_until_it_is() -> None:
    """It is no failure, and does not hide what is known."""
    health = Health()
    assert health.as_dict(1.0)["text"] == "not probed yet"
    health.probe_error("/pw: cannot read")
    assert (health.ok, health.as_dict(1.0)["text"]) == (None, "cannot be probed: /pw: cannot read")
    health.record(Probe(True, 0.1, "bind and search answered"), 2.0)
    health.probe_error("/pw: cannot read")
    assert (health.ok, health.as_dict(3.0)["text"]) == (True, "bind and search answered")
