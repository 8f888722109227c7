"""A basket for Icinga Director: our commands and templates, the fields that its forms show, a config's services.

The files of ``nagios-conf/icinga2`` are the source; ``director-basket.json`` there is this basket without services.
Objects have no uuid: the Director finds them by name, so a second import updates them. The services in a service set
have fixed names, so each service of the config has its own set.

Source: Icinga Director 1.10 and 1.11, doc/30-Configuration-Baskets.md, and the input that ``basket restore`` accepts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from check_failover.admin.icinga2_objects import FILES, SUFFIXES, template_text
from check_failover.admin.icinga2_read import Function, Object, read
from check_failover.admin.objects import links
from check_failover.checks.external import arguments
from check_failover.config import Config
from check_failover.model import Service

EXECUTE = {"CheckCommand": "PluginCheck", "EventCommand": "PluginEvent", "NotificationCommand": "PluginNotification"}
RENAMED = {"interval": "notification_interval"}  # of notifications
DATATYPE = "Icinga\\Module\\Director\\DataType\\DataType"
SHARED = ("service", "config", "target")  # options that take the same variable in all commands
_EXTERNAL = {"object_name": "passive", "object_type": "external_object", "methods_execute": "PluginCheck"}  # of the ITL
OPERATORS = {" == ": "=", " && ": "&", '"': "%22"}  # of Icinga's language, in the Director's filters


def basket(config: Config | None = None, file: Callable[[str, Config | None], str] = template_text) -> str:
    """The basket as JSON; with the services of ``config``, and its paths. ``file`` reads. Raises ObjectsError."""
    drains = config is not None and any(service.policy.downtime == "drain" for service in config.services)
    files = [*FILES, *(["downtime.conf"] if drains else [])]  # a rule without matches warns at each deployment
    objects = [found for name in files for found in read(file(name, config))]
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
    if config is not None:
        for service in config.services:
            _add_service(made, config, service)
        if config.sms is not None:
            sms = {"object_name": "failover sms", "object_type": "object", "imports": ["failover-sms"], "vars": {}}
            made["ServiceSet"][f"failover {config.services[0].name}"]["services"]["failover sms"] = sms
    return json.dumps(made, indent=4, sort_keys=True) + "\n"


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


def _add_service(made: dict[str, dict[str, Any]], config: Config, service: Service) -> None:
    """A service set, assigned to the service's host, and the rule that prevents two pages for one fault."""
    name, check = service.name, f"failover_{service.check.type}"
    if service.check.type == "plugin":
        check = f"failover_plugin_{name}"
        words = [word.replace("$", "$$") for word in arguments(service.check.options, service.standby)]
        own = {"object_name": check, "object_type": "object", "methods_execute": "PluginCheck"}
        numbered = {
            f"({number:02})": {"value": w, "order": number, "skip_key": True} for number, w in enumerate(words[1:])
        }
        made["Command"][check] = {**own, "command": words[0], "arguments": numbered, "vars": {}, "fields": []}
    services = {
        f"{name} {suffix}": {
            "object_name": f"{name} {suffix}",
            "object_type": "object",
            "imports": [f"failover-{suffix}"],
            "vars": {"failover_service": name},
            **({"check_command": check} if suffix == "standby" else {}),
            **links(config, service),
        }
        for suffix in (*SUFFIXES, *(["sync"] if service.sync else []))
    }
    where = f"host.name={_quoted(service.host)}"
    about = f"{service.protocol} {service.address}, {service.primary} or {service.standby}"
    made.setdefault("ServiceSet", {})[f"failover {name}"] = {
        "object_name": f"failover {name}",
        "object_type": "template",
        "description": about,
        "assign_filter": where,
        "services": services,
    }
    made.setdefault("Dependency", {})[f"failover-pages-once {name}"] = {
        "object_name": f"failover-pages-once {name}",
        "object_type": "apply",
        "apply_to": "service",
        "parent_service_by_name": f"{name} primary",
        "disable_checks": False,
        "disable_notifications": True,
        "states": ["OK", "Warning"],
        "assign_filter": f"service.name={_quoted(f'{name} traffic')}&{where}",
    }


def _quoted(text: str) -> str:
    return quote(json.dumps(text), safe="")
