"""What the redirector asks the sniffer before it decides an order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from check_failover.config import Controller
from check_failover.model import CheckSpec, Detector, Endpoint, Facts, Service, Target
from check_failover.redirector import inquiry

SERVICE = Service(
    name="ldap",
    host="h",
    protocol="tcp",
    address=Endpoint("192.0.2.10", 389),
    primary=Endpoint("10.0.0.11", 389),
    standby=Endpoint("10.0.0.12", 389),
    check=CheckSpec("tcp"),
)


@pytest.mark.parametrize("server", Target)
def test_without_a_verdict_the_server_of_the_order_is_probed(
    server: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sniffer began anew and knows nothing yet: an order about the standby stays one about the standby."""
    probed: list[str] = []

    def ask(_socket: Path, message: dict[str, Any], **_: float) -> dict[str, Any]:
        if message["verb"] == "status":
            return {"services": {"ldap": {"facts": None, "blind": None}}}
        probed.append(message["target"])
        return {"passed": message["target"] != server}

    monkeypatch.setattr(inquiry.control, "ask", ask)
    facts = Facts(Detector.REFUSED, probes=2, probes_failed=2, standby_ok=server is Target.PRIMARY, server=server)
    found = inquiry.with_missing_facts(
        Controller(state_dir=tmp_path), SERVICE, "fail-over", facts, manual=False, since=None
    )
    assert probed[:2] == [server, server]
    assert (found.server, found.probes, found.probes_failed) == (server, 2, 2)
