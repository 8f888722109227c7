"""The basket for Icinga Director: the same commands and templates as the files beside it, in the form that it takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from check_failover.admin.director import basket
from check_failover.config import load
from tests.lab import registry
from tests.lab.director_basket import DATATYPE
from tests.lab.icinga2_read import Function, Icinga2Error, read
from tests.unit.test_sync_config import with_sync

CONF = Path(__file__).resolve().parents[2] / "nagios-conf" / "icinga2"
SHIPPED = CONF / "director-basket.json"
BASKET: dict[str, dict[str, Any]] = json.loads(SHIPPED.read_text("utf-8"))
COMMANDS = (CONF / "commands.conf").read_text("utf-8")

NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9 _.-]*$"}
VARIABLES = {"type": "object", "propertyNames": {"pattern": "^[a-z_]+$"}, "additionalProperties": {"type": "string"}}
FIELDS = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["datafield_id", "is_required", "var_filter"],
        "properties": {
            "datafield_id": {"type": "integer", "minimum": 1},
            "is_required": {"enum": ["y", "n"]},
            "var_filter": {"type": ["string", "null"]},
        },
    },
}
ARGUMENT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "value": {
            "type": ["string", "object"],
            "additionalProperties": False,
            "required": ["type", "body"],
            "properties": {"type": {"const": "Function"}, "body": {"type": "string", "minLength": 1}},
        },
        "set_if": {"type": "string", "pattern": r"^(1|\$[a-z_]+\$)$"},
        "description": {"type": "string"},
        "required": {"type": "boolean"},
        "order": {"type": "integer"},
        "skip_key": {"type": "boolean"},
    },
    "anyOf": [{"required": ["value"]}, {"required": ["set_if"]}],
}


def objects(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """A type's objects, by their name."""
    one = {"type": "object", "additionalProperties": False, "required": ["object_name", "object_type", *required]}
    known = {"object_name": NAME, "object_type": {"type": "string"}, "fields": FIELDS, "imports": {"type": "array"}}
    return {"type": "object", "additionalProperties": {**one, "properties": known | properties}}


STATES = {"type": "array", "items": {"enum": ["OK", "Warning", "Critical", "Unknown", "Up", "Down"]}}
KINDS = ["DowntimeStart", "DowntimeEnd", "DowntimeRemoved", "Custom", "Acknowledgement", "Problem", "Recovery"]
NOTIFICATION = {
    "command": NAME, "users": {"type": "array", "items": NAME}, "states": STATES,
    "types": {"type": "array", "items": {"enum": KINDS}}, "notification_interval": {"type": "integer"},
}  # fmt: skip
APPLIED = {
    "object_type": {"const": "apply"},
    "apply_to": {"enum": ["host", "service"]},
    "assign_filter": {"type": "string", "pattern": '^[^" ]+$'},
}
SERVICE = {
    "check_command": NAME, "event_command": NAME, "vars": VARIABLES, "notes": {"type": "string"},
    "check_interval": {"type": "integer"}, "retry_interval": {"type": "integer"},
    "max_check_attempts": {"type": "integer"}, "enable_flapping": {"type": "boolean"},
    "enable_active_checks": {"type": "boolean"}, "enable_passive_checks": {"type": "boolean"},
}  # fmt: skip
# What ``icingacli director basket restore`` takes (1.10 and later); properties that it does not know fail there.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "ExternalCommand": objects({"methods_execute": {"const": "PluginCheck"}}, ["methods_execute"]),
        "Command": objects(
            {
                "object_type": {"const": "object"},
                "methods_execute": {"enum": ["PluginCheck", "PluginEvent", "PluginNotification"]},
                "command": {"type": "string", "pattern": "^[a-z/][^ ]+$"},
                "arguments": {"type": "object", "additionalProperties": ARGUMENT},
                "vars": VARIABLES,
            },
            ["methods_execute", "command", "arguments", "vars", "fields"],
        ),
        "ServiceTemplate": objects({"object_type": {"const": "template"}, **SERVICE}, ["imports", "vars", "fields"]),
        "User": objects({"display_name": {"type": "string"}, "object_type": {"const": "object"}}, []),
        "NotificationTemplate": objects({**NOTIFICATION, "object_type": {"const": "template"}}, []),
        "Notification": objects({**NOTIFICATION, **APPLIED}, ["apply_to", "assign_filter"]),
        "Dependency": objects(
            {
                **APPLIED, "parent_service_by_name": NAME, "states": STATES, "disable_checks": {"type": "boolean"},
                "disable_notifications": {"type": "boolean"},
            },
            ["apply_to", "assign_filter", "parent_service_by_name"],
        ),
        "ServiceSet": objects(
            {
                "object_type": {"const": "template"},
                "description": {"type": "string"},
                "assign_filter": APPLIED["assign_filter"],
                "services": objects(
                    {**SERVICE, "action_url": {"type": "string"}, "notes_url": {"type": "string"}}, ["imports", "vars"]
                ),
            },
            ["services"],
        ),
        "Datafield": {
            "type": "object",
            "propertyNames": {"pattern": "^[1-9][0-9]*$"},
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["varname", "caption", "description", "datatype", "format", "settings"],
                "properties": {
                    "varname": {"type": "string", "pattern": "^[a-z_]+$"},
                    "caption": {"type": "string"},
                    "description": {"type": "string"},
                    "datatype": {"enum": [f"{DATATYPE}String", f"{DATATYPE}Boolean"]},
                    "format": {"type": "null"},
                    "settings": {"type": "object"},
                    "category": {"type": "null"},
                },
            },
        },
    },
}  # fmt: skip


def good(found: dict[str, dict[str, Any]]) -> None:
    """In the Director's form, every object under its own name, and nothing refers to what is not there."""
    Draft202012Validator(SCHEMA).validate(found)
    for kind, members in found.items():
        if kind != "Datafield":
            assert [key for key, one in members.items() if one["object_name"] != key] == []
    for one in (*found["Command"].values(), *found["ServiceTemplate"].values()):
        assert {str(field["datafield_id"]) for field in one["fields"]} <= set(found["Datafield"])
    commands = {**found["Command"], **found["ExternalCommand"]}
    sets = [service for each in found.get("ServiceSet", {}).values() for service in each["services"].values()]
    for one in (*found["ServiceTemplate"].values(), *sets):
        assert set(one["imports"]) <= set(found["ServiceTemplate"])
        assert {one[key] for key in ("check_command", "event_command") if key in one} <= set(commands)
    for one in (*found["NotificationTemplate"].values(), *found["Notification"].values()):
        assert {one["command"]} <= set(commands) if "command" in one else one["object_name"] == "failover-downtime"
        assert set(one.get("users", [])) <= set(found["User"])
        assert set(one.get("imports", [])) <= set(found["NotificationTemplate"])


def test_the_shipped_basket_is_made_of_the_files_beside_it() -> None:
    """``make registry`` makes it and director-downtime.json from commands.conf, templates.conf and downtime.conf."""
    assert json.loads(registry.texts()[registry.BASKET]) == BASKET
    assert registry.downtime() == (registry.ROOT / registry.DOWNTIME).read_text("utf-8")


def test_the_shipped_basket_is_in_the_directors_form() -> None:
    good(BASKET)


def test_every_command_with_every_argument() -> None:
    """Read from the file by nothing but their look: names, options of each, where they get them from."""
    blocks = re.findall(r'^(object|template) \w+Command "([^"]+)" \{\n(.*?)^\}', COMMANDS, re.MULTILINE | re.DOTALL)
    text = {name: body for _, name, body in blocks}
    assert {name for kind, name, _ in blocks if kind == "object"} == set(BASKET["Command"])
    for name, command in BASKET["Command"].items():
        whole = text[name] + "".join(text[parent] for parent in re.findall(r'import "([^"]+)"', text[name]))
        assert set(re.findall(r'^    "(--[a-z-]+)" = ', whole, re.MULTILINE)) == set(command["arguments"])
        assert set(re.findall(r"^  vars\.(\w+) = ", whole, re.MULTILINE)) == set(command["vars"])
        assert f'PluginDir + "/{command["command"]}"' in whole
        for option, argument in command["arguments"].items():
            (line,) = re.findall(rf'^    "{option}" = (.*?)$', whole, re.MULTILINE)
            value = argument.get("value", argument.get("set_if"))
            assert (
                (json.dumps(value) in line)
                if isinstance(value, str) and value != "1"
                else ("{{" in line or "true" in line)
            )


def test_every_variable_has_a_field() -> None:
    """What a CheckCommand asks for can be entered in the Director, and means what the file says."""
    for name, command in BASKET["Command"].items():
        if command["methods_execute"] != "PluginCheck":
            continue
        fields = {BASKET["Datafield"][str(field["datafield_id"])]["varname"] for field in command["fields"]}
        asked = {str(a.get("value", a.get("set_if"))).strip("$") for a in command["arguments"].values()}
        assert fields == {var for var in asked if var not in command["vars"] and not var.endswith("_target")}, name


def test_the_services_of_a_config(tmp_path: Path) -> None:
    """A set for each service, on its host; the config's own paths; the site's own plugin as a command."""
    path = with_sync(tmp_path, 'from = "/srv/www/"')
    path.write_text(path.read_text() + PLUGIN)
    found = json.loads(basket(load(path)))
    good(found)
    services = found["ServiceSet"]["failover smtp"]["services"]
    assert services["smtp standby"]["check_command"] == "failover_plugin_smtp"
    assert found["Command"]["failover_plugin_smtp"]["arguments"]["(00)"] == {
        "value": "a$$b",
        "order": 0,
        "skip_key": True,
    }
    assert found["Command"]["failover_ldap"]["vars"]["failover_config"] == str(path)
    assert found["Dependency"]["failover-pages-once smtp"]["parent_service_by_name"] == "smtp primary"
    with_sync_sets = [name for name, each in found["ServiceSet"].items() if f"{name[9:]} sync" in each["services"]]
    assert len(with_sync_sets) == 1


PLUGIN = """
[[service]]
name = "smtp"
host = "mail.example.org"
protocol = "tcp"
address = "192.0.2.25"
port = 25
primary = "10.0.0.11"
standby = "10.0.0.12"
[service.check]
type = "plugin"
command = ["/usr/lib/nagios/plugins/check_smtp", "a$b"]
"""


def test_the_reader_knows_what_we_write() -> None:
    """Strings with escapes, durations, functions, ``+=``, comments; and refuses the rest."""
    (found,) = read('// x\nobject T "a" {\n  import "b"\n  v = [ 5m, "c\\\\n\\"" ]\n  vars.w += { k = {{ f() }} }\n}\n')
    assert (found.imports, found.attributes) == (["b"], {"v": [300, 'c\\n"']})
    assert found.adds == {"vars.w": {"k": Function("f()")}}
    for bad in ('object T "a" { v = ; }', "object T a { }", 'object T "a" { v @ 1 }'):
        with pytest.raises(Icinga2Error):
            read(bad)
