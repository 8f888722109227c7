"""The dashboard asks for perfdata that the plugins print, of services that ``nagios-config`` makes."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUERY = re.compile(r"icinga2\.\$host\.services\.\$service_(\w+)\.\*\.perfdata\.(\w+)\.value")
CHECKS = {"traffic": "checks/traffic.py", "redirect": "checks/redirect.py", "sync": "checks/sync.py"}


def labels(module: str) -> set[str]:
    """The labels written in a plugin's source."""
    tree = ast.parse((ROOT / "check_failover" / module).read_text("utf-8"))
    return {
        str(node.args[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Perf"
        if isinstance(node.args[0], ast.Constant)
    }


def test_every_query_has_its_source() -> None:
    board = json.loads((ROOT / "nagios-conf/grafana/check_failover.json").read_text("utf-8"))
    queries = [target["target"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) > 8
    for query in queries:
        found = QUERY.search(query)
        assert found, query
        service, label = found.groups()
        assert label in labels(CHECKS[service]), query
        assert f"'{label}')" in query, "its name in the picture"
