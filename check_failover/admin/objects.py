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
from string import Template

from check_failover.admin import FailedError
from check_failover.checks.external import arguments
from check_failover.config import Config
from check_failover.model import Service
from check_failover.places import LINUX

FILES = ("commands.cfg", "templates.cfg")
_SERVICE = Path(__file__).with_name("service.cfg").read_text("utf-8")


def nagios(config: Config, *, templates: bool = True) -> str:
    """The whole text. ``templates`` False: services only, for a site that includes the template files itself."""
    head = f"# Made by: failoverctl nagios-config --config {config.path}\n"
    parts = [with_paths(read_template("nagios4", name), config) for name in FILES] if templates else []
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
