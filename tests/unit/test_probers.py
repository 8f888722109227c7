"""Probes of many services at once: none waits in a queue until its investigation has expired."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from check_failover.model import CheckSpec, Probe, Target
from check_failover.sniffer import actions

SERVICES = 80  # of one host, each with two probes of it and one of its standby


def test_a_host_with_many_services_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each probe waits for its timeout; all of them wait together."""
    together, ended = threading.Barrier(3 * SERVICES), threading.Semaphore(0)

    def waits(*_: Any) -> Probe:
        together.wait(20.0)
        return Probe(True, 0.5, "at last")

    monkeypatch.setattr(actions, "probe_function", lambda _check: waits)
    services = [
        SimpleNamespace(name=f"s{n}", check=CheckSpec("tcp"), server=lambda target: target) for n in range(SERVICES)
    ]
    config = SimpleNamespace(
        services=services,
        controller=SimpleNamespace(state_dir=tmp_path),
        monitoring={"transport": "command_file", "command_file": str(tmp_path / "nagios.cmd")},
    )
    made = actions.ServiceActions(config, {}, SimpleNamespace(), lambda *_: ended.release())  # type: ignore[arg-type]
    try:
        for service in services:
            for target in (Target.PRIMARY, Target.PRIMARY, Target.STANDBY):
                made.probe(service, target, 0.5)  # type: ignore[arg-type]
        assert all(ended.acquire(timeout=20.0) for _ in range(3 * SERVICES))
        assert not together.broken
    finally:
        together.abort()
        made.close()
