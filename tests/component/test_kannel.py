"""SMS through a real Kannel: bearerbox, smsbox and a fake phone network."""

from __future__ import annotations

import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.lab.kannel import Kannel

pytestmark = pytest.mark.component


def _send(kannel: Kannel, **query: str) -> int:
    query = {"username": kannel.username, "password": kannel.password_file.read_text().strip(), "from": "1"} | query
    with urllib.request.urlopen(f"{kannel.url}?{urllib.parse.urlencode(query)}", timeout=5) as reply:
        return int(reply.status)


def test_the_lab_gateway_delivers(tmp_path: Path) -> None:
    """The private Kannel shows what a phone would: plain, Chinese, and again after a restart of the gateway."""
    with Kannel(tmp_path) as kannel:
        assert _send(kannel, to="+491701", text="hello <world>") == 202
        kannel.wait_received(1)
        kannel.stop()
        kannel.start()
        _send(kannel, to="+491701", text="主服务器 down", coding="2", charset="UTF-8")
        assert kannel.wait_received(2) == [("+491701", "hello <world>"), ("+491701", "主服务器 down")]
