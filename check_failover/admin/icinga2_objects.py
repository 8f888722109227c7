"""Icinga 2 objects for a config: commands, templates and the services, in one text that a site includes.

Commands and templates are the files of ``nagios-conf/icinga2``, installed beside the package, with the config's paths.
The services are plain objects, so the site's hosts stay unchanged (``services.conf`` there has the same services by
host variables). Users and notification rules belong to the site; its ``apply Notification ... to Service`` rules match
our services like any other.
"""

from collections.abc import Mapping, Sequence

from check_failover.admin.objects import links, read_template, with_paths
from check_failover.checks.external import arguments
from check_failover.config import Config
from check_failover.model import Service

FILES = ("commands.conf", "templates.conf")
SUFFIXES = ("traffic", "primary", "standby", "redirect", "fail-back", "drill")


def icinga2(config: Config, *, templates: bool = True, endpoint: str | None = None) -> str:
    """The whole text. ``templates`` False: services only, for a site that includes the template files itself.
    ``endpoint``: the controller's name as an agent, which runs checks and handlers.
    """
    head = f"// Made by: failoverctl icinga2-config --config {config.path}\n"
    parts = [with_paths(read_template("icinga2", name), config) for name in FILES] if templates else []
    at = {"command_endpoint": endpoint} if endpoint else {}
    services = [_service(service, config, at) for service in config.services]
    if config.sms is not None:  # the gateway and the spool, once for the config
        where = {"host_name": config.services[0].host, **at}
        services.append(_object("Service", "failover sms", "failover-sms", where))
    return "\n".join([head, *parts, *services, *_downtimes(config)])


def _service(service: Service, config: Config, at: Mapping[str, str]) -> str:
    name, standby = service.name, f"failover_{service.check.type}"
    parts = [f"// ---- {name}: {service.protocol} {service.address}, {service.primary} or {service.standby}"]
    if service.check.type == "plugin":  # the site's own plugin, which sends the standby the sniffer's request
        standby = f"failover_plugin_{name}"
        words = [word.replace("$", "$$") for word in arguments(service.check.options, service.standby)]
        parts.append(_object("CheckCommand", standby, None, {"command": words}))
    for suffix in (*SUFFIXES, *(["sync"] if service.sync else [])):
        own = {"check_command": standby} if suffix == "standby" else {}
        own = {"host_name": service.host, **own, **at, **links(config, service)}
        own["vars.failover_service"] = name
        parts.append(_object("Service", f"{name} {suffix}", f"failover-{suffix}", own))
    return "\n".join(parts)


def _downtimes(config: Config) -> list[str]:
    """For ``downtime = "drain"``: the user whose notifications report downtimes to failover-redirector."""
    draining = [service for service in config.services if service.policy.downtime == "drain"]
    if not draining:
        return []
    hosts = sorted({host for service in draining for host in (service.host, service.primary_host) if host})
    about = [{"host_name": host, "command": "failover-downtime-of-host"} for host in hosts]
    of_service = {"command": "failover-downtime-of-service"}
    about += [{"host_name": s.host, "service_name": f"{s.name} primary", **of_service} for s in draining]
    user = _object("User", "failover-downtime", None, {"display_name": "failover-redirector, for downtimes"})
    return [user, *(_object("Notification", "failover-downtime", "failover-downtime", own) for own in about)]


def _object(kind: str, name: str, template: str | None, attributes: Mapping[str, str | Sequence[str]]) -> str:
    imported = f"  import {_string(template)}\n" if template else ""
    lines = "".join(f"  {key} = {_value(value)}\n" for key, value in attributes.items())
    return f"object {kind} {_string(name)} {{\n{imported}{lines}}}"


def _value(value: str | Sequence[str]) -> str:
    return _string(value) if isinstance(value, str) else f"[ {', '.join(map(_string, value))} ]"


def _string(text: str) -> str:
    r"""A string literal of Icinga's language: ``\`` and ``"`` escaped, control characters as octal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\{ord(c):03o}" for c in escaped) + '"'
