"""A core's objects for a config: commands, templates and the services, in one text that a site includes.

Commands and templates are the files of ``nagios-conf/nagios4`` or ``icinga2``, installed beside the package, with the
config's paths; the services come from the config.

Nagios: contacts, groups and escalations belong to the site: services without contacts inherit their host's. Therefore
the contact for downtimes belongs to the site's host: a contact at "NAME primary" would end that inheritance.

Icinga 2: the services are plain objects, so the site's hosts stay unchanged (``services.conf`` there has the same
services by host variables). Users and notification rules belong to the site; its ``apply Notification ... to Service``
rules match our services like any other.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from check_failover.admin import FailedError
from check_failover.checks.external import arguments
from check_failover.config import Config
from check_failover.model import Service
from check_failover.places import LINUX

NAGIOS_FILES, ICINGA2_FILES = ("commands.cfg", "templates.cfg"), ("commands.conf", "templates.conf")
SUFFIXES = ("traffic", "primary", "standby", "redirect", "fail-back", "drill")
_SERVICE = Path(__file__).with_name("service.cfg").read_text("utf-8")


def nagios(config: Config, *, templates: bool = True) -> str:
    """The whole text. ``templates`` False: services only, for a site that includes the template files itself."""
    head = f"# Made by: failoverctl nagios-config --config {config.path}\n"
    parts = [with_paths(read_template("nagios4", name), config) for name in NAGIOS_FILES] if templates else []
    parts.append(_block("contact", {"use": "failover-drill-contact", "contact_name": "failover-drill"}))
    if any(service.policy.downtime == "drain" for service in config.services):
        parts.append(_block("contact", {"use": "failover-downtime-contact", "contact_name": "failover-downtime"}))
    parts += [_service(service, links(config, service)) for service in config.services]
    if config.sms is not None:  # gateway and spool; its contacts are inherited from the host, too
        where = {"host_name": config.services[0].host, "service_description": "failover sms"}
        own = {"use": "failover-sms", **where, "check_command": "check_failover_sms"}
        parts.append("# ---- SMS gateway and spool\n" + _block("service", own))
    return "\n".join([head, *parts])


def links(config: Config, service: Service) -> dict[str, str]:
    """The site's links beside a service (``[monitoring]``), for both cores; default action: the list of incidents."""
    shown = {key: str(config.monitoring[key]) for key in ("notes_url", "action_url") if key in config.monitoring}
    if "report_url" in config.monitoring:
        shown.setdefault("action_url", f"{config.monitoring['report_url'].rstrip('/')}/{{service}}.html")
    return {k: url.replace("{service}", service.name).replace("{host}", service.host) for k, url in shown.items()}


def read_template(core: str, name: str) -> str:
    """A file of ``nagios-conf/CORE``: in the source tree, or beside an installation's prefix. Raises FailedError."""
    installed = Path(sys.prefix) / "share" / "check_failover" / core / name
    source = Path(__file__).resolve().parents[2] / "nagios-conf" / core / name
    path = source if source.is_file() else installed
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise FailedError(f"{path}: cannot read: {error.strerror}: install check_failover again") from None


def with_paths(text: str, config: Config) -> str:
    """A template with its Linux paths replaced by the config's."""
    text = text.replace(f"{LINUX['run_dir']}/redirector.sock", str(config.controller.redirector_socket))
    return text.replace(LINUX["config"], str(config.path.absolute()))


def _service(service: Service, shown: Mapping[str, str]) -> str:
    """``service.cfg`` for one service; its lines that end in #sync are for a service with ``[service.sync]``."""
    name, check = service.name, service.check
    parts = [f"# ---- {name}: {service.protocol} {service.address}, {service.primary} or {service.standby}"]
    standby = f"check_failover_{check.type}!{name}!standby"
    if check.type == "plugin":  # the site's own plugin: ``check_command`` would split its arguments at each ``!``
        standby = f"check_failover_plugin_{name}"
        line = shlex.join(arguments(check.options, service.standby)).replace("$", "$$")
        parts.append(_block("command", {"command_name": standby, "command_line": line}))
    lines = (line.partition("  #sync") for line in _SERVICE.splitlines())
    text = Template("\n".join(line for line, only, _ in lines if service.sync or not only))
    shown_too = "".join(f"    {key:<19}  {_escaped(value)}\n" for key, value in shown.items())
    return "\n".join([*parts, text.substitute(NAME=name, HOST=service.host, STANDBY=standby, LINKS=shown_too)])


def _block(kind: str, directives: dict[str, str]) -> str:
    width = max(map(len, directives))
    lines = "".join(f"    {key:<{width}}  {_escaped(value)}\n" for key, value in directives.items())
    return f"define {kind} {{\n{lines}}}"


def _escaped(value: str) -> str:
    return value.replace(";", "\\;")  # it would begin a comment


def icinga2(config: Config, *, templates: bool = True, endpoint: str | None = None) -> str:
    """The whole text. ``templates`` False: services only, for a site that includes the template files itself.
    ``endpoint``: the controller's name as an agent, which runs checks and handlers.
    """
    head = f"// Made by: failoverctl icinga2-config --config {config.path}\n"
    parts = [with_paths(read_template("icinga2", name), config) for name in ICINGA2_FILES] if templates else []
    at = {"command_endpoint": endpoint} if endpoint else {}
    services = [_icinga2_service(service, config, at) for service in config.services]
    if config.sms is not None:  # the gateway and the spool, once for the config
        where = {"host_name": config.services[0].host, **at}
        services.append(_object("Service", "failover sms", "failover-sms", where))
    return "\n".join([head, *parts, *services, *_downtimes(config)])


def _icinga2_service(service: Service, config: Config, at: Mapping[str, str]) -> str:
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
