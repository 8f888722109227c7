"""What failoverctl prints for a core on another machine: nothing there needs a socket of the controller's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from check_failover.admin.objects import read_template
from check_failover.admin.remote import WAYS, Site
from check_failover.config import load
from check_failover.handlers.remote import WORDS, understood

GOOD = Path(__file__).parent.parent / "fixtures" / "config" / "good.toml"
SITE = Site("198.51.100.1")
# a config with a site's own plugin and with downtimes that are told
MORE = """
[[service]]
name = "smtp"
host = "mail.example.org"
primary_host = "mail1.example.org"
protocol = "tcp"
address = "192.0.2.25"
port = 25
primary = "10.0.0.11"
standby = "10.0.0.12"
[service.check]
type = "plugin"
command = ["/usr/lib/nagios/plugins/check_smtp", "-H", "{address}", "-C", "a b"]
[service.policy]
downtime = "drain"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "config.toml"
    made.write_text(GOOD.read_text() + MORE)
    return made


def commands(text: str) -> dict[str, str]:
    """command_name -> command_line."""
    return dict(re.findall(r"command_name +(\S+)\n +command_line +(.*)", text))


@pytest.mark.parametrize("way", ["nrpe", "ssh"])
def test_the_core_needs_nothing_of_the_controllers(path: Path, way: str) -> None:
    """No command that a service of this config uses has a path of the controller's in it; SMS are the core's own."""
    text = WAYS[way]["core"](load(path), SITE)
    made = commands(text)
    replaced = tomllib.loads(read_template("remote", "commands.toml"))[way]["commands"]
    used = {line.split("!")[0] for line in re.findall(r"(?:check_command|event_handler) +(check_failover\S+)", text)}
    used |= set(re.findall(r"_notification_commands +(check_failover\S+)", text)) | set(replaced)
    assert {"check_failover_plugin_smtp", "check_failover_ldap", "check_failover_tcp"} <= used
    for name in used - {"check_failover_stale", "check_failover_sms", "check_failover_drill_by_sms"}:
        assert "198.51.100.1" in made[name], name
        assert "--config" not in made[name], name
        assert "--socket" not in made[name], name


def test_nrpe_knows_every_command_that_the_core_may_ask_for(path: Path) -> None:
    """Each name that the macros can make is a fixed command, and no command takes an argument of the asker's."""
    config = load(path)
    known = set(re.findall(r"^command\[(.*?)\]=", WAYS["nrpe"]["controller"](config, SITE), re.MULTILINE))
    for service in config.services:
        for what in ("traffic", "redirect", "primary", "standby", "service", "fail_back_OK", "fail_back_UNKNOWN"):
            assert f"failover_{service.name}_{what}" in known
        for state in ("OK", "WARNING", "CRITICAL", "UNKNOWN"):
            for rest in ("SOFT_0", "SOFT_1", "HARD_0", "HARD_1"):
                assert f"failover_{service.name}_{state}_{rest}" in known
    told = {name for name in known if "DOWNTIME" in name}
    assert "failover_DOWNTIMESTART_mail.example.org_smtp primary" in told
    assert "failover_DOWNTIMEEND_mail1.example.org" in told
    assert not [name for name in told if "ldap" in name]
    assert "$ARG" not in WAYS["nrpe"]["controller"](config, SITE)


def test_the_forced_command_understands_what_the_core_says(path: Path) -> None:
    """Macros filled in, every line that is printed for ssh is one of its words."""
    values = {
        "$ARG1$": "ldap", "$ARG2$": "standby", "$SERVICESTATE$": "CRITICAL", "$SERVICESTATETYPE$": "HARD",
        "$SERVICEDOWNTIME$": "0", "$HOSTDOWNTIME$": "1", "$SERVICEOUTPUT$": "OK: all well", "$HOSTNAME$": "h.example",
        "$NOTIFICATIONTYPE$": "DOWNTIMESTART", "$SERVICEDESC$": "ldap primary",
    }  # fmt: skip
    said = set()
    for line in commands(WAYS["ssh"]["core"](load(path), SITE)).values():
        if "/usr/bin/ssh" in line:
            for macro, value in values.items():
                line = line.replace(macro, value)
            said.add(understood(line.partition("198.51.100.1 ")[2].replace("'", ""))[0])
    assert said == set(WORDS)


def test_only_our_services_may_be_reported_by_nsca(path: Path) -> None:
    """The server's patterns match our names whole and nothing beside them (POSIX; the escapes are Python's as well)."""
    patterns = re.findall(r'"([^"]+@[^"]+)"', WAYS["nsca"]["core"](load(path), SITE))
    pattern = patterns[0].replace("\\\\", "\\")
    assert re.fullmatch(pattern, "ldap primary@ldap.example.org")
    assert re.fullmatch(pattern, "ldap fail-back@ldap.example.org")
    assert not re.fullmatch(pattern, "ldap traffic@ldap.example.org")
    assert not re.fullmatch(pattern, "ldap primary@ldapxexample.org")


@pytest.mark.parametrize("way", sorted(WAYS))
def test_each_way_has_lines_for_both_machines(path: Path, way: str) -> None:
    """And says where they belong, or is Nagios's own syntax."""
    for on in ("controller", "core"):
        assert WAYS[way][on](load(path), SITE).startswith("# ")


def test_the_printed_monitoring_table_is_good(path: Path, tmp_path: Path) -> None:
    """What is printed for config.toml can be read by it."""
    for way in ("nsca", "nrdp"):
        printed = WAYS[way]["controller"](load(path), SITE).partition("[monitoring]\n")[2]
        text = GOOD.read_text()
        begin, end = text.index("transport ="), text.index("[sms]")
        made = tmp_path / f"{way}.toml"
        made.write_text(text[:begin] + printed + "\n" + text[end:])
        assert load(made).monitoring["transport"] == way
