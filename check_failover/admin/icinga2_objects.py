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
    services = [_service(service, config, endpoint) for service in config.services]
    texts = [_sms(config, endpoint)] if config.sms is not None else []
    return "\n".join([head, *parts, *services, *texts, *_downtimes(config)])


def _service(service: Service, config: Config, endpoint: str | None) -> str:
    plugin = service.check.type == "plugin"
    standby = f"failover_plugin_{service.name}" if plugin else f"failover_{service.check.type}"
    return "\n".join(
        [
            f"// ---- {service.name}: {service.protocol} {service.address}, {service.primary} or {service.standby}",
            *([_plugin(service, standby)] if plugin else []),
            *(
                _object("Service", f"{service.name} {suffix}", f"failover-{suffix}", {
                    "host_name": service.host,
                    **({"check_command": standby} if suffix == "standby" else {}),
                    **({"command_endpoint": endpoint} if endpoint else {}),
                    **links(config, service),
                    "vars.failover_service": service.name,
                })
                for suffix in (*SUFFIXES, *(["sync"] if service.sync else []))
            ),
        ]
    )  # fmt: skip


def _sms(config: Config, endpoint: str | None) -> str:
    """The gateway and the spool, once for the config."""
    where = {"command_endpoint": endpoint} if endpoint else {}
    return _object("Service", "failover sms", "failover-sms", {"host_name": config.services[0].host, **where})


def _plugin(service: Service, name: str) -> str:
    """The site's own plugin as a command, which sends the standby the sniffer's request."""
    words = [word.replace("$", "$$") for word in arguments(service.check.options, service.standby)]
    return _object("CheckCommand", name, None, {"command": words})


def _downtimes(config: Config) -> list[str]:
    """For ``downtime = "drain"``: the user whose notifications report downtimes to failover-redirector."""
    draining = [service for service in config.services if service.policy.downtime == "drain"]
    hosts = sorted({host for service in draining for host in (service.host, service.primary_host) if host})
    user = _object("User", "failover-downtime", None, {"display_name": "failover-redirector, for downtimes"})
    return [
        *([user] if draining else []),
        *(
            _object("Notification", "failover-downtime", "failover-downtime", {
                "host_name": host, "command": "failover-downtime-of-host",
            })
            for host in hosts
        ),
        *(
            _object("Notification", "failover-downtime", "failover-downtime", {
                "host_name": service.host, "service_name": f"{service.name} primary",
                "command": "failover-downtime-of-service",
            })
            for service in draining
        ),
    ]  # fmt: skip


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
