"""Writes the registry of check types into the files that repeat it. ``make registry`` writes them.

    texts()    each file that repeats the registry, as it should be
    missing()  what a person has to write for a type and has not

The files stay in the source tree because editors, sites and ``pip`` read them; a test holds them equal to the registry.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path
from types import ModuleType

from check_failover.admin.objects import ICINGA2_FILES, read_template
from check_failover.checks import PROBES, probing
from tests.lab import director_basket

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "check_failover/config.schema.json"
NAGIOS = "nagios-conf/nagios4/commands.cfg"
ICINGA2 = "nagios-conf/icinga2/commands.conf"
BASKET = "nagios-conf/icinga2/director-basket.json"
DOWNTIME = "nagios-conf/icinga2/director-downtime.json"  # depends on no check type
SETUP = "setup.cfg"
EXAMPLES = {  # options in the config with which the tests run each type; {command} is a list
    "ldap": 'base = "dc=example,dc=org"',
    "dns": 'name = "www.example.org"\nexpect = "192.0.2.80"',
    "http": 'tls = true\nserver_name = "www.example.org"\nstatus = [200]',
    "tcp": 'expect = "220 "',
    "udp": 'send = "x"',
    "plugin": "command = {command}",
}


def programs() -> dict[str, ModuleType]:
    """The check types that have a program of their own (``plugin`` runs the site's)."""
    modules = {kind: importlib.import_module(module) for kind, module in PROBES.items()}
    return {kind: module for kind, module in modules.items() if hasattr(module, "check")}


def texts() -> dict[str, str]:
    """Path in the source tree -> its text with the registry's types."""
    commands = _icinga2()
    return {SCHEMA: _schema(), NAGIOS: _nagios(), ICINGA2: commands, BASKET: _basket(commands), SETUP: _setup()}


def missing() -> list[str]:
    """Each place that a person has to write and that lacks a type, or has one that the registry lacks."""
    readme = (ROOT / "README.md").read_text("utf-8")
    (row,) = re.findall(r"^\| `type` \| needed \| kind of probe.*$", readme, re.MULTILINE)
    rules = json.loads((ROOT / SCHEMA).read_text("utf-8"))["$defs"]
    steps = {
        f"{SCHEMA}: $defs: check_{{}}": [name.removeprefix("check_") for name in rules if name.startswith("check_")],
        "tests/lab/registry.py: EXAMPLES: {}": list(EXAMPLES),
        "README.md: [service.check], row `type`: `{}`": re.findall(r"`(\w+)`", row)[1:],
    }
    found = [place.format(kind) for place, known in steps.items() for kind in PROBES if kind not in known]
    found += [f"{place.format(k)} is not in PROBES" for place, known in steps.items() for k in known if k not in PROBES]
    named = [kind for kind in programs() if f"`check_failover_{kind}`" not in readme]
    return found + [f"README.md: list of plugins: `check_failover_{kind}`" for kind in named]


def _between(path: str, begin: str, end: str, made: str) -> str:
    """The file's text with what stands between two of its lines replaced."""
    head, found, rest = (ROOT / path).read_text("utf-8").partition(begin)
    old, also, tail = rest.partition(end)
    if not (found and also and old):
        raise ValueError(f"{path}: no {begin!r} before {end!r}")
    return head + begin + made + end + tail


def _schema() -> str:
    listed = json.dumps(list(PROBES))
    rule = '        {{"if": {{"properties": {{"type": {{"const": "{0}"}}}}}}, "then": {{"$ref": "#/$defs/check_{0}"}}}}'
    rules = ",\n".join(rule.format(kind) for kind in PROBES)
    text = _between(SCHEMA, '"type": {"description": "kind of probe", "enum": ', "},\n", listed)
    head, begin, tail = text.partition('    "check": {\n')
    before, opened, after = tail.partition('"allOf": [\n')
    return head + begin + before + opened + rules + "\n" + after[after.index("      ],\n") :]


def _nagios() -> str:
    asked = "--config /etc/check_failover/config.toml --service '$ARG1$' --target '$ARG2$'"
    made = "".join(
        f"define command {{\n    command_name  check_failover_{kind}\n"
        f"    command_line  $USER1$/check_failover_{kind} {asked}\n}}\n"
        for kind in programs()
    )
    return _between(NAGIOS, "# $ARG2$: primary, standby or service\n", "# Nagios runs this command after", made)


def _icinga2() -> str:
    made = "".join(_check_command(kind, module) for kind, module in programs().items())
    return _between(ICINGA2, " */\n\n", 'object CheckCommand "failover_traffic"', made)


def _check_command(kind: str, module: ModuleType) -> str:
    name = f"failover_{kind}"
    line = probing.command_line(f"check_{name}", module.__doc__, module.OPTIONS)
    formatter = line._get_formatter()
    options = [action for action in line._actions if action.dest not in ("help", "version", "verbose")]
    silent = [action.dest for action in options if not action.help]
    if silent:
        raise ValueError(f"{module.__name__}: OPTIONS: no help for {', '.join(silent)}: the cores show it")
    arguments = "".join(
        f'    "{action.option_strings[-1]}" = {{ {_value(action)} = "${name}_{action.dest}$", '
        f"description = {json.dumps(formatter._expand_help(action), ensure_ascii=False)} }}\n"
        for action in options
    )
    shared = "".join(f'  vars.{name}_{key} = "$failover_{key}$"\n' for key in ("service", "config", "target"))
    return (
        f'object CheckCommand "{name}" {{\n  command = [ PluginDir + "/check_{name}" ]\n'
        f"  arguments = {{\n{arguments}  }}\n{shared}"
        '  vars.failover_config = "/etc/check_failover/config.toml"\n}\n\n'
    )


def _value(action: argparse.Action) -> str:
    return "set_if" if action.nargs == 0 else "value"


def _basket(commands: str) -> str:
    return director_basket.basket(*_icinga2_files(commands))


def downtime() -> str:
    """The text of ``DOWNTIME``."""
    return director_basket.addition(_icinga2_files(_icinga2()), read_template("icinga2", "downtime.conf"))


def _icinga2_files(commands: str) -> list[str]:
    return [commands if name == "commands.conf" else read_template("icinga2", name) for name in ICINGA2_FILES]


def _setup() -> str:
    made = "".join(f"    check_failover_{kind} = check_failover.checks.entry:{kind}\n" for kind in programs())
    return _between(SETUP, "console_scripts =\n", "    check_failover_traffic", made)


if __name__ == "__main__":
    for path, text in {**texts(), DOWNTIME: downtime()}.items():
        (ROOT / path).write_text(text, "utf-8")
    print("\n".join(missing() or ["nothing is missing"]))
