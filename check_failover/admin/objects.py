"""Nagios objects for a config: commands, templates and the services, in one text that a site includes.

Commands and templates are the files of ``nagios-conf/nagios4``, installed beside the package, with the config's paths;
the services come from the config. Contacts, groups and escalations belong to the site: services without contacts
inherit their host's. Therefore the contact for downtimes belongs to the site's host: a contact at "NAME primary" would
end that inheritance.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from check_failover.checks.external import arguments
from check_failover.config import Config
from check_failover.model import Service
from check_failover.places import LINUX

FILES = ("commands.cfg", "templates.cfg")


class ObjectsError(Exception):
    """An installed template is missing or unreadable: one line."""


def nagios(config: Config, *, templates: bool = True) -> str:
    """The whole text. ``templates`` False: services only, for a site that includes the template files itself."""
    head = f"# Made by: failoverctl nagios-config --config {config.path}\n"
    parts = [with_paths(read_template("nagios4", name), config) for name in FILES] if templates else []
    parts.append(_block("contact", {"use": "failover-drill-contact", "contact_name": "failover-drill"}))
    if any(service.policy.downtime == "drain" for service in config.services):
        parts.append(_block("contact", {"use": "failover-downtime-contact", "contact_name": "failover-downtime"}))
    parts += [_service(service, links(config, service)) for service in config.services]
    if config.sms is not None:
        parts.append(_sms(config.services[0].host))
    return "\n".join([head, *parts])


def links(config: Config, service: Service) -> dict[str, str]:
    """The site's links beside a service (``[monitoring]``), for both cores; default action: the list of incidents."""
    shown = {key: str(config.monitoring[key]) for key in ("notes_url", "action_url") if key in config.monitoring}
    if "report_url" in config.monitoring:
        shown.setdefault("action_url", f"{config.monitoring['report_url'].rstrip('/')}/{{service}}.html")
    return {k: url.replace("{service}", service.name).replace("{host}", service.host) for k, url in shown.items()}


def read_template(core: str, name: str) -> str:
    """A file of ``nagios-conf/CORE``: in the source tree, or beside an installation's prefix. Raises ObjectsError."""
    installed = Path(sys.prefix) / "share" / "check_failover" / core / name
    source = Path(__file__).resolve().parents[2] / "nagios-conf" / core / name
    for path in (source, installed):
        if path.is_file():
            try:
                return path.read_text("utf-8")
            except OSError as error:
                raise ObjectsError(f"{path}: cannot read: {error.strerror}") from None
    raise ObjectsError(f"{installed}: missing: install check_failover again")


def with_paths(text: str, config: Config) -> str:
    """A template with its Linux paths replaced by the config's."""
    text = text.replace(f"{LINUX['run_dir']}/redirector.sock", str(config.controller.redirector_socket))
    return text.replace(LINUX["config"], str(config.path.absolute()))


def _service(service: Service, shown: Mapping[str, str]) -> str:
    name, check = service.name, service.check
    standby = f"check_failover_{check.type}!{name}!standby"
    if check.type == "plugin":
        standby = f"check_failover_plugin_{name}"
    own = {
        "traffic": {"check_command": f"check_failover_traffic!{name}"},
        "primary": {"event_handler": f"check_failover_event!{name}"},
        "standby": {"check_command": standby},
        "redirect": {"check_command": f"check_failover_redirect!{name}"},
        "fail-back": {"event_handler": f"check_failover_event_fail_back!{name}"},
        **({"sync": {"check_command": f"check_failover_sync!{name}"}} if service.sync else {}),
        "drill": {"event_handler": f"check_failover_event_drill!{name}", "_DRILL_OF": name},
    }
    return "\n".join(
        [
            f"# ---- {name}: {service.protocol} {service.address}, {service.primary} or {service.standby}",
            *([_plugin(service, standby)] if check.type == "plugin" else []),
            *(_define(service, suffix, {**directives, **shown}) for suffix, directives in own.items()),
            _dependency(service),
        ]
    )


def _sms(host: str) -> str:
    """The gateway and the spool, once for the config. Its contacts are inherited from the host, too."""
    directives = {"use": "failover-sms", "host_name": host, "service_description": "failover sms"}
    return "# ---- SMS gateway and spool\n" + _block("service", {**directives, "check_command": "check_failover_sms"})


def _plugin(service: Service, name: str) -> str:
    """The site's own plugin as a command with all arguments: ``check_command`` would split them at each ``!``."""
    line = shlex.join(arguments(service.check.options, service.standby)).replace("$", "$$")
    return _block("command", {"command_name": name, "command_line": line})


def _define(service: Service, suffix: str, directives: Mapping[str, str]) -> str:
    head = {"use": f"failover-{suffix}", "host_name": service.host, "service_description": f"{service.name} {suffix}"}
    return _block("service", {**head, **directives})


def _dependency(service: Service) -> str:
    """One page per fault: "NAME traffic" does not notify while "NAME primary" is CRITICAL."""
    return _block(
        "servicedependency",
        {
            "host_name": service.host,
            "service_description": f"{service.name} primary",
            "dependent_host_name": service.host,
            "dependent_service_description": f"{service.name} traffic",
            "execution_failure_criteria": "n",
            "notification_failure_criteria": "c,u,p",
        },
    )


def _block(kind: str, directives: dict[str, str]) -> str:
    width = max(map(len, directives))
    lines = "".join(f"    {key:<{width}}  {_value(value)}\n" for key, value in directives.items())
    return f"define {kind} {{\n{lines}}}"


def _value(value: str) -> str:
    r"""A ``;`` would begin a comment (xodtemplate)."""
    return value.replace(";", "\\;")
