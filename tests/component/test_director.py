"""The basket in a real Icinga Director: taken, and what it would deploy is what Icinga gets from our own files."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from check_failover.admin.director import basket
from check_failover.admin.objects import icinga2
from check_failover.config import load
from tests.lab import icinga
from tests.lab.director import Director
from tests.lab.icinga import ROOT, SINGLE, Icinga
from tests.unit.test_director import PLUGIN
from tests.unit.test_sync_config import with_sync

pytestmark = pytest.mark.component
HOST = 'object Host "mail.example.org" {\n  check_command = "dummy"\n  vars.failover_downtime = "drain"\n}\n'
GLOBAL = 'object Zone "director-global" {\n  global = true\n}\n'  # where the Director puts commands and templates

COMMAND = ("command", "arguments", "vars")
SERVICE = ("check_command", "event_command", "check_interval", "retry_interval", "max_check_attempts", "vars", "notes")
SERVICE += ("action_url", "enable_active_checks", "enable_passive_checks", "enable_flapping", "enable_event_handler")
DEPENDENCY = ("parent_host_name", "parent_service_name", "child_service_name", "states", "disable_notifications")
NOTIFICATION = ("command", "users", "states", "types", "interval", "host_name", "service_name")


KINDS = {
    "checkcommands": COMMAND, "eventcommands": COMMAND, "notificationcommands": COMMAND, "services": SERVICE,
    "dependencies": DEPENDENCY, "notifications": NOTIFICATION,
}  # fmt: skip
OWN_NAMES = re.compile("(?<=!failover-downtime)-of-(host|service)$|(?<=!failover-drill)-by-sms$|(?<=-pages-once) .*$")


def seen(objects: str, zones: str, place: Path, address: str) -> dict[str, dict[str, Any]]:
    """What an Icinga that reads these objects makes of them: type and name -> attributes."""
    found = {}
    site = icinga.site_objects("ldap.example.org", "+491701234567") + HOST
    with Icinga(place, site + objects, bind=address, zones=zones) as core:
        core.verify()
        for kind, attributes in KINDS.items():
            for row in core.api("GET", f"/v1/objects/{kind}"):
                if "failover" in str(row):
                    name = OWN_NAMES.sub("", row["name"])  # the Director's rules need names of their own
                    found[f"{kind} {name}"] = {key: plain(row["attrs"][key]) for key in attributes}
    return found


def plain(value: Any) -> Any:
    """Without what is another way to say the same: a text "1" that is true, where a function came from, an empty text,
    descriptions, the order in which the Director writes down states, types and words of a command.
    """
    if isinstance(value, dict) and value.get("type") == "Function":
        return "function"
    if isinstance(value, dict):
        same = {k: plain(v) for k, v in value.items() if k not in ("description", "order", "skip_key")}
        return same["value"] if set(same) == {"value"} else same
    if isinstance(value, list):
        return sorted(map(plain, value), key=str)
    return {"1": True, "": None}.get(value, value) if isinstance(value, str) else value


def words(command: dict[str, Any]) -> list[str]:
    """The site's own plugin: to the Director all words but the first are arguments without a key."""
    numbered = command["arguments"] or {}
    return [*command["command"], *(numbered[key] for key in sorted(numbered))]


@pytest.fixture
def place() -> Any:
    """A directory that the core's user may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="cfo-director-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_the_director_takes_it_and_deploys_the_same(place: Path) -> None:
    """Both baskets, each twice; then commands, services, rules and who is told are what icinga2-config prints."""
    path = with_sync(place, 'from = "/srv/www/"')
    path.write_text(f'{path.read_text()}{PLUGIN}[service.policy]\ndowntime = "drain"\n')
    config = load(path)
    with Director(place / "director") as director:
        for text in ((ROOT / "nagios-conf/icinga2/director-basket.json").read_text(), basket(config)):
            director.restore(text)
            once = director.count("director_datafield")
            director.restore(text)
            assert director.count("director_datafield") == once
        rendered = director.rendered()
    theirs = seen(rendered, SINGLE + GLOBAL, place / "theirs", "127.0.3.1")
    ours = seen(icinga2(config), SINGLE, place / "ours", "127.0.3.2")
    assert {kind.split()[0] for kind in ours} == set(KINDS)
    assert sorted(theirs) == sorted(ours)
    own = "checkcommands failover_plugin_smtp"
    assert words(theirs.pop(own)) == words(ours.pop(own)) == ["/usr/lib/nagios/plugins/check_smtp", "a$$b"]
    assert theirs == ours
