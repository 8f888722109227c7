"""A basket for Icinga Director: our commands and templates, the fields that its forms show, a config's services.

``nagios-conf/icinga2/director-basket.json`` is this basket without services, ``director-downtime.json`` the part for
``downtime = "drain"``. The services in a service set have fixed names, so each service of the config has its own set.
"""

import json
from typing import Any
from urllib.parse import quote

from check_failover.admin.objects import SUFFIXES, links, read_template, with_paths
from check_failover.checks.external import arguments
from check_failover.config import Config
from check_failover.model import Service


def basket(config: Config) -> str:
    """The basket as JSON, with the services and paths of ``config``. Raises FailedError."""
    made = _shipped("director-basket.json", config)
    if any(service.policy.downtime == "drain" for service in config.services):
        # a rule without matches warns at each deployment, so it is in a file of its own
        for kind, members in _shipped("director-downtime.json", config).items():
            made[kind] |= members
    for service in config.services:
        _add_service(made, config, service)
    if config.sms is not None:
        sms = {"object_name": "failover sms", "object_type": "object", "imports": ["failover-sms"], "vars": {}}
        made["ServiceSet"][f"failover {config.services[0].name}"]["services"]["failover sms"] = sms
    return json.dumps(made, indent=4, sort_keys=True)


def _shipped(name: str, config: Config) -> dict[str, dict[str, Any]]:
    def hook(found: dict[str, Any]) -> dict[str, Any]:
        return {key: with_paths(value, config) if isinstance(value, str) else value for key, value in found.items()}

    return json.loads(read_template("icinga2", name), object_hook=hook)  # type: ignore[no-any-return]


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
    made.setdefault("ServiceSet", {})[f"failover {name}"] = {
        "object_name": f"failover {name}",
        "object_type": "template",
        "description": f"{service.protocol} {service.address}, {service.primary} or {service.standby}",
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
