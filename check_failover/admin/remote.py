"""Exact lines for a core on another machine: ``failoverctl remote-config --way WAY --on controller|core``.

Results go to the core by ``nsca`` or ``nrdp``; orders and checks come back by ``nrpe`` or ``ssh`` (for Icinga 2:
``icinga2-config --endpoint``). The core's objects are those of ``nagios-config``, but the commands that need the
controller's sockets run on the controller. NRPE runs fixed commands only: each combination of the macros' values is a
command, so that ``dont_blame_nrpe`` stays 0.
"""

import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from check_failover.admin.objects import nagios, read_template
from check_failover.checks.external import arguments
from check_failover.config import Config
from check_failover.model import Service
from check_failover.places import HERE

STATES, TYPES = ("OK", "WARNING", "CRITICAL", "UNKNOWN"), ("SOFT", "HARD")
NOTICES = ("DOWNTIMESTART", "DOWNTIMEEND", "DOWNTIMECANCELLED")
CERTIFICATES = "/etc/check_failover/nrpe"  # on either machine: ca.pem, and its own .pem and .key
SSH_CONFIG = "/etc/check_failover/ssh_config"  # on the core


@dataclass(frozen=True, slots=True)
class Site:
    """The controller's address for the core, and the directory of its plugins."""

    controller: str
    plugins: str = HERE["plugins"]


def _nrpe_core(config: Config, site: Site) -> str:
    keys = f"-A {CERTIFICATES}/ca.pem -C {CERTIFICATES}/core.pem -K {CERTIFICATES}/core.key"
    return _objects(config, "nrpe", f"$USER1$/check_nrpe -H {site.controller} -t 25 -d 0 {keys}")


def _objects(config: Config, way: str, client: str) -> str:
    """The text of ``nagios-config`` with the way's commands; ``client`` is its program."""
    found = tomllib.loads(read_template("remote", "commands.toml"))[way]
    asked: dict[str, str] = found["commands"] | dict.fromkeys(
        (f"check_failover_{service.check.type}" for service in config.services), found["probe"]
    )
    asked |= {f"check_failover_plugin_{s.name}": found["plugin"].replace("{name}", s.name) for s in config.services}

    def replaced(match: re.Match[str]) -> str:
        line = asked.get(match[2])
        return match[0] if line is None else f"{match[1]}{match[2]}{match[3]}{line.format(client=client)}"

    text = re.sub(r"(command_name +)(\S+)(\n +command_line +)(.*)", replaced, nagios(config))
    return text.replace("nagios-config --config", f"remote-config --way {way} --on core --config", 1)


def _nrpe_controller(config: Config, site: Site) -> str:
    commands = [command for service in config.services for command in _nrpe_service(config, service, site)]
    head = _shipped("nrpe-controller.txt", config, site)
    return "\n".join([head, *commands, *_nrpe_notices(config, site)])


def _nrpe_service(config: Config, service: Service, site: Site) -> Iterator[str]:
    where = shlex.quote(str(config.path.absolute()))
    of_service = f"--config {where} --service {service.name}"
    for check in ("traffic", "redirect", *(("sync",) if service.sync else ())):
        yield f"command[failover_{service.name}_{check}]={site.plugins}/check_failover_{check} {of_service}"
    for target in ("primary", "standby", "service"):
        line = f"{site.plugins}/check_failover_{service.check.type} {of_service} --target {target}"
        if service.check.type == "plugin":
            line = shlex.join(arguments(service.check.options, service.endpoint(target)))
        yield f"command[failover_{service.name}_{target}]={line}"
    event = f"{_event(config, site)} --service {service.name}"
    for state, kind, downtime in itertools.product(STATES, TYPES, (0, 1)):
        line = f"{event} --state {state} --state-type {kind} --downtime {downtime}"
        yield f"command[failover_{service.name}_{state}_{kind}_{downtime}]={line}"
    for state in STATES:
        line = f"{event} --fail-back --state {state} --state-type HARD"
        yield f"command[failover_{service.name}_fail_back_{state}]={line}"


def _nrpe_notices(config: Config, site: Site) -> Iterator[str]:
    """The notifications of the contact failover-downtime, if a policy needs them."""
    draining = [service for service in config.services if service.policy.downtime == "drain"]
    hosts = {host for service in draining for host in (service.host, service.primary_host) if host}
    for notice, host in itertools.product(NOTICES, sorted(hosts)):
        yield f"command[failover_{notice}_{host}]={_event(config, site)} --notice {notice} --host {host}"
    for notice, service in itertools.product(NOTICES, draining):
        of = f"{service.name} primary"
        line = f"{_event(config, site)} --notice {notice} --host {service.host} --description '{of}'"
        yield f"command[failover_{notice}_{service.host}_{of}]={line}"


def _event(config: Config, site: Site) -> str:
    socket = shlex.quote(str(config.controller.redirector_socket))
    return f"{site.plugins}/eventhandlers/failover_event --socket {socket} --by 'nagios (nrpe)'"


def _ssh_controller(config: Config, site: Site) -> str:
    command = f"{site.plugins}/eventhandlers/failover_remote --config {config.path.absolute()}"
    command += f" --socket {config.controller.redirector_socket}"
    return (
        f"# ~/.ssh/authorized_keys of {config.controller.core_user} here: behind this the core's public key\n"
        f'restrict,command="{command}" '
    )


def _nsca_core(config: Config, _site: Site) -> str:
    patterns = []
    for service in config.services:  # POSIX extended regular expressions; a backslash is doubled in nsca-ng.cfg
        host = re.sub(r"([.\[\]*+?{}()|^$\\])", r"\\\\\1", service.host)
        patterns.append(f'        "{service.name} (primary|redirect|fail-back{"|sync" * bool(service.sync)})@{host}"')
    listed = ",\n".join(patterns)
    return (
        "# nsca-ng.cfg on the core: command_file is Nagios's, and only these services may be reported\n"
        'authorize "check_failover" {\n    password = "LONG AND RANDOM"\n'
        f"    services = {{\n{listed}\n    }}\n}}"
    )


def _shipped(name: str, _config: Config, _site: Site) -> str:
    return read_template("remote", name).rstrip("\n")


WAYS: dict[str, dict[str, Callable[[Config, Site], str]]] = {
    "nrpe": {"controller": _nrpe_controller, "core": _nrpe_core},
    "ssh": {
        "controller": _ssh_controller,
        "core": lambda c, site: _objects(c, "ssh", f"/usr/bin/ssh -F {SSH_CONFIG} {site.controller}"),
    },
    "nsca": {"controller": partial(_shipped, "nsca-controller.txt"), "core": _nsca_core},
    "nrdp": {"controller": partial(_shipped, "nrdp-controller.txt"), "core": partial(_shipped, "nrdp-core.txt")},
}
