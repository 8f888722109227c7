"""What failoverctl prints for Nagios, read and run by a real one: a service of every check type."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.admin.objects import nagios
from check_failover.config import load
from tests.lab.nagios import BASE_OBJECTS, Nagios
from tests.lab.registry import EXAMPLES
from tests.lab.site import SITE_OBJECTS

# Whatever means something to Nagios or to a shell.
ODD = [
    "a;b", r"\;", r"a\\;b", "x!y", "$HOME$", "$USER1$", "$$", r"back\slash", "tail\\", "it's", 'quo"te', "ü",
    "a|b > c & `id` $(id)", "", "~", "*", "# no comment", "%s", "<x>", "{port}/{address}", "{other}", " blank ",
]  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the core's user may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o777)
        yield path


def config(place: Path, command: list[str]) -> Path:
    """A config with one service of every check type."""
    listed = "[" + ", ".join(f"'''{part}'''" for part in command) + "]"
    text = "".join(
        f'[[service]]\nname = "{kind}"\nhost = "ldap.example.org"\nprotocol = "{"udp" if kind == "udp" else "tcp"}"\n'
        f'address = "192.0.2.10"\nport = {1000 + number}\nprimary = "10.0.0.11"\nstandby = "10.0.0.12:99"\n'
        f'[service.check]\ntype = "{kind}"\n{options.replace("{command}", listed)}\n'
        for number, (kind, options) in enumerate(EXAMPLES.items())
    )
    (place / "config.toml").write_text(text)
    return place / "config.toml"


def test_nagios_takes_and_runs_it(place: Path) -> None:
    """Clean for ``nagios4 -v``; the site's own plugin is run with the standby's address and every argument as it is."""
    out = place / "arguments"
    program = place / "check own"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >'{out}.new'\nmv '{out}.new' '{out}'\necho all well\n")
    program.chmod(0o755)
    written = config(place, [str(program), *ODD])
    written.write_text(f'[sms]\ngateway = "smstools"\noutgoing = "{place}"\n{written.read_text()}')
    loaded = load(written)
    core = Nagios(place / "nagios", BASE_OBJECTS + SITE_OBJECTS + nagios(loaded))
    core.verify()
    core.command_file.parent.chmod(0o777)
    with core:
        core.wait("plugin standby", 0, text="all well")
        assert "failover sms" in core.services()
    wanted = [part.replace("{address}", "10.0.0.12").replace("{port}", "99") for part in ODD]
    assert out.read_text().split("\n")[:-1] == wanted


def test_services_only_has_the_commands_of_the_sites_own_plugins(place: Path) -> None:
    """They are in no template file, so they come with their service."""
    text = nagios(load(config(place, ["/bin/true"])), templates=False)
    assert text.count("define command {") == 1
    assert "check_failover_plugin_plugin" in text


def test_nothing_in_it_pages_anybody(place: Path) -> None:
    """No service names contacts, or when and how often they are told, no escalation is in force, and the only contacts
    are the redirector's own ears, which have no pager: who is told, and when, is the site's host's.
    """
    written = config(place, ["/bin/true"])
    written.write_text(f'{written.read_text()}[service.policy]\ndowntime = "drain"\n')
    own = {"failover-drill": "failover-drill-contact", "failover-downtime": "failover-downtime-contact"}
    pages = ("contact", "contacts", "contact_groups", "notification_period", "pager", "email")
    for kind, body in re.findall(r"^define (\w+) \{\n(.*?)^\}", nagios(load(written)), re.MULTILINE | re.DOTALL):
        rows = dict(line.split(None, 1) for line in body.splitlines())
        template = rows.get("register") == "0"
        if kind == "contact" and not template:
            assert rows["use"] == own[rows["contact_name"]]
        elif kind == "service" and rows.get("name") != "failover-drill":
            assert not set(pages) & set(rows), rows
            assert rows.get("notification_interval", "0") == "0", rows
        assert kind != "serviceescalation" or template, rows


def test_how_texts_leave_is_watched_once_and_where_there_are_texts(place: Path) -> None:
    """One service for a config, without contacts of its own; none without ``[sms]``."""
    written = config(place, ["/bin/true"])
    line = "service_description  failover sms"
    assert line not in nagios(load(written))
    written.write_text(f'[sms]\ngateway = "smstools"\n{written.read_text()}')
    text = nagios(load(written))
    (block,) = (block for block in text.split("define ") if line in block)
    directives = [row.split()[0] for row in block.splitlines() if row.startswith("    ")]
    assert directives == ["use", "host_name", "service_description", "check_command"]
