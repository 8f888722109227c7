"""A check type stands in one registry; the files that repeat it are made from it, and what people write is named."""

from __future__ import annotations

import json
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from check_failover.checks import PROBES, udp
from check_failover.config_shape import schema
from check_failover.sms import GATEWAYS
from check_failover.sniffer.stage1.dialects import DIALECTS
from check_failover.transports import TRANSPORTS
from tests.lab import registry
from tests.lab.icinga2_read import read


def test_the_files_say_what_the_registry_says() -> None:
    """The message names each file that differs."""
    differ = [path for path, text in registry.texts().items() if (registry.ROOT / path).read_text("utf-8") != text]
    assert not differ, f"not what PROBES in check_failover/checks says: {', '.join(differ)}: run: make registry"


def test_nothing_is_left_to_write() -> None:
    """The message names each place."""
    assert not registry.missing(), f"left to write for PROBES in check_failover/checks: {', '.join(registry.missing())}"


@pytest.mark.parametrize(
    ("registry_", "place"),
    [
        (TRANSPORTS, "properties/monitoring/properties/transport/enum"),
        (GATEWAYS, "$defs/gateway/properties/gateway/enum"),
        (DIALECTS, "$defs/service/properties/dialect/enum"),
    ],
)
def test_the_schema_has_what_the_other_registries_have(registry_: dict[str, object], place: str) -> None:
    """These have one list each in the schema; the message says where it is."""
    node: Any = schema()
    for step in place.split("/"):
        node = node[step]
    assert sorted(node) == sorted(registry_), (
        f"check_failover/config.schema.json: {place}: not the keys of the registry"
    )


@pytest.fixture
def _sip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up type as a contributor begins: its file and its line."""
    module = ModuleType("check_failover.checks.sip", "check_failover_sip: ask a SIP server for its options.")
    option = {"metavar": "URI", "help": r"whom to ask (\n understood)"}
    vars(module).update(
        probe=udp.probe, check=udp.check, OPTIONS={"uri": option, "tls": {"action": "store_true", "help": "TLS"}}
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(PROBES, "sip", module.__name__)


@pytest.mark.usefixtures("_sip")
def test_a_made_up_type_is_written_everywhere() -> None:
    """Schema, both cores, the Director and setup.cfg have it, in their own language."""
    made = registry.texts()
    check = json.loads(made[registry.SCHEMA])["$defs"]["check"]
    assert check["properties"]["type"]["enum"] == list(PROBES)
    assert [rule["then"]["$ref"] for rule in check["allOf"]] == [f"#/$defs/check_{kind}" for kind in PROBES]
    command = "check_failover_sip --config /etc/check_failover/config.toml --service '$ARG1$' --target '$ARG2$'\n"
    assert f"command_name  check_failover_sip\n    command_line  $USER1$/{command}" in made[registry.NAGIOS]
    (icinga2,) = [found for found in read(made[registry.ICINGA2]) if found.name == "failover_sip"]
    options = icinga2.attributes["arguments"]
    assert options["--uri"] == {"value": "$failover_sip_uri$", "description": r"whom to ask (\n understood)"}
    assert options["--tls"]["set_if"] == "$failover_sip_tls$"
    assert {"--timeout", "--hostname", "--service", "--target"} <= set(options)
    basket = json.loads(made[registry.BASKET])
    assert set(basket["Command"]["failover_sip"]["arguments"]) == set(options)
    assert "failover_sip_uri" in {field["varname"] for field in basket["Datafield"].values()}
    assert re.search(r"^    check_failover_sip = check_failover.checks.entry:sip$", made[registry.SETUP], re.MULTILINE)


@pytest.mark.usefixtures("_sip")
def test_what_a_made_up_type_lacks_is_named() -> None:
    """The two tests above fail for it, and say where to write."""
    with pytest.raises(AssertionError, match="run: make registry") as differ:
        test_the_files_say_what_the_registry_says()
    assert all(path in str(differ.value) for path in registry.texts())
    assert registry.missing() == [
        "check_failover/config.schema.json: $defs: check_sip",
        "tests/lab/registry.py: EXAMPLES: sip",
        "README.md: [service.check], row `type`: `sip`",
        "README.md: list of plugins: `check_failover_sip`",
    ]


def test_a_type_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its author wrote by hand is left over."""
    monkeypatch.delitem(PROBES, "udp")
    assert [place for place in registry.missing() if place.endswith("is not in PROBES")] == [
        "check_failover/config.schema.json: $defs: check_udp is not in PROBES",
        "tests/lab/registry.py: EXAMPLES: udp is not in PROBES",
        "README.md: [service.check], row `type`: `udp` is not in PROBES",
    ]
