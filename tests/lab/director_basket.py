"""Makes the baskets for Icinga Director in ``nagios-conf/icinga2`` from the configuration files beside them.

``director-basket.json`` has our commands and templates, and the fields that the Director's forms show;
``director-downtime.json`` has what ``downtime.conf`` adds. Objects have no uuid: the Director finds them by name, so a
second import updates them. ``failoverctl icinga2-config --director`` adds a config's services.

Source: Icinga Director 1.10 and 1.11, doc/30-Configuration-Baskets.md, and the input that ``basket restore`` accepts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.lab.icinga2_read import Function, Object, read

EXECUTE = {"CheckCommand": "PluginCheck", "EventCommand": "PluginEvent", "NotificationCommand": "PluginNotification"}
RENAMED = {"interval": "notification_interval"}  # of notifications
DATATYPE = "Icinga\\Module\\Director\\DataType\\DataType"
SHARED = ("service", "config", "target")  # options that take the same variable in all commands
_EXTERNAL = {"object_name": "passive", "object_type": "external_object", "methods_execute": "PluginCheck"}  # of the ITL
OPERATORS = {" == ": "=", " && ": "&", '"': "%22"}  # of Icinga's language, in the Director's filters


def basket(*files: str) -> str:
    """The basket of these configuration texts, as JSON."""
    return _text(_made(files))


def addition(files: Sequence[str], more: str) -> str:
    """The objects that a basket has with the text ``more`` and lacks without it, as JSON."""
    before, after = _made(files), _made([*files, more])
    found = {
        kind: {name: one for name, one in members.items() if before.get(kind, {}).get(name) != one}
        for kind, members in after.items()
    }
    return _text({kind: members for kind, members in found.items() if members})


def _text(made: Mapping[str, Any]) -> str:
    return json.dumps(made, indent=4, sort_keys=True) + "\n"


def _made(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    objects = [found for text in files for found in read(text)]
    users = {o.name: _plain(o, "object") for o in objects if o.type == "User"}
    notified = [o for o in objects if o.type == "Notification" and set(o.attributes.get("users", [])) <= set(users)]
    rules = [_rule(o) for o in notified if o.kind == "apply"]
    made: dict[str, dict[str, Any]] = {
        "ExternalCommand": {"passive": _EXTERNAL},
        "Command": _commands(objects),
        "ServiceTemplate": {o.name: _service_template(o) for o in objects if o.type == "Service"},
        "User": users,
        "NotificationTemplate": {o.name: _plain(o, "template") for o in notified if o.kind == "template"},
        "Notification": {rule["object_name"]: rule for rule in rules},
    }
    made["Datafield"] = _fields(objects, made)
    return made


def _commands(objects: list[Object]) -> dict[str, Any]:
    """The commands, each with its template's attributes."""
    known = {o.name: o for o in objects if o.type in EXECUTE}
    made = {}
    for found in known.values():
        if found.kind == "template":
            continue
        lines = [*(known[name] for name in found.imports), found]
        options: dict[str, Any] = {}
        variables: dict[str, Any] = {}
        for one in lines:
            options |= one.attributes.get("arguments", {}) | one.adds.get("arguments", {})
            variables |= _variables(one)
        (program,) = next(one.attributes["command"] for one in reversed(lines) if "command" in one.attributes)
        made[found.name] = {
            "object_name": found.name,
            "object_type": "object",
            "methods_execute": EXECUTE[found.type],
            "command": program.removeprefix("PluginDir + /"),
            "arguments": {key: _argument(value) for key, value in options.items()},
            "vars": variables,
            "fields": [],
        }
    return made


def _argument(value: object) -> dict[str, Any]:
    """An argument in the Director's form: a computed value is its source text, a condition is a string."""
    if isinstance(value, Function):
        return {"value": {"type": "Function", "body": value.body}}
    if not isinstance(value, dict):
        return {"value": value}
    return {**value, **({"set_if": "1"} if value.get("set_if") is True else {})}


def _variables(found: Object) -> dict[str, Any]:
    return {k.removeprefix("vars."): v for k, v in found.attributes.items() if k.startswith("vars.")}


def _plain(found: Object, object_type: str) -> dict[str, Any]:
    attributes = {RENAMED.get(k, k): v for k, v in found.attributes.items() if not k.startswith("vars.")}
    return {"object_name": found.name, "object_type": object_type, "fields": [], **attributes}


def _service_template(found: Object) -> dict[str, Any]:
    return {**_plain(found, "template"), "imports": found.imports, "vars": _variables(found)}


def _rule(found: Object) -> dict[str, Any]:
    """A notification rule. Our host rule and service rule have the same name, so each takes its command's name."""
    (where,) = found.assign
    for ours, theirs in OPERATORS.items():
        where = where.replace(ours, theirs)
    rule = {**_plain(found, "apply"), "imports": found.imports, "assign_filter": where}
    to = "service" if "service." in where else "host"
    return {**rule, "apply_to": to, "object_name": found.attributes["command"]}


def _fields(objects: list[Object], made: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The fields of the Director's forms, at the commands and at the template of all services."""
    fields: dict[str, Any] = {}

    def add(to: dict[str, Any], name: str, caption: str, description: str, kind: str, *, required: bool) -> None:
        number = str(len(fields) + 1)
        settings = {"visibility": "visible"} if kind == "String" else {}
        field = {"varname": name, "caption": caption, "description": description, "datatype": DATATYPE + kind}
        fields[number] = {**field, "format": None, "settings": settings, "category": None}
        to["fields"].append({"datafield_id": int(number), "is_required": "ny"[required], "var_filter": None})

    about = "name of the service in check_failover's config"
    add(
        made["ServiceTemplate"]["failover-service"],
        "failover_service",
        "Fail-over service",
        about,
        "String",
        required=True,
    )
    for found in objects:
        if found.type != "CheckCommand":
            continue
        command = found.name.removeprefix("failover_")
        for option, value in found.attributes["arguments"].items():
            name = str(value.get("value") or value.get("set_if")).strip("$")
            if name.removeprefix(f"{found.name}_") not in SHARED:
                kind = "Boolean" if "set_if" in value else "String"
                caption = f"{command.upper()}: {option.removeprefix('--').replace('-', ' ')}"
                add(made["Command"][found.name], name, caption, value["description"], kind, required=False)
    return fields
