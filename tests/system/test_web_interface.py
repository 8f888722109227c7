"""The cores' own web interfaces as a person sees them: headless Chromium before, during and after a fail-over.

pytest tests/system/test_web_interface.py --pictures nagios-conf/pictures      (make screenshots)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import icingaweb
from tests.lab.icinga import Icinga
from tests.lab.icingaweb import IcingaWeb, ido, page
from tests.lab.load import Load
from tests.lab.mariadb import Mariadb
from tests.lab.nagios import Nagios
from tests.lab.site import HOST, Site
from tests.lab.web import Cgis, Web

pytestmark = pytest.mark.system
MakeSite = Callable[..., Site]
MakeLoad = Callable[[Site], Load]
STATUS = f"cgi-bin/status.cgi?host={HOST}&noheader"
LIST = page("list/services", host=HOST, sort="service_display_name")
LINKS = 'notes_url = "https://wiki.example.org/failover?service={service}"'

SERVICES = ("ldap fail-back", "ldap primary", "ldap redirect", "ldap standby", "ldap traffic")


def states(shown: str) -> dict[str, str]:
    """Service -> state, as Icinga Web 2's list has it."""
    rows = re.findall(rf"(OK|WARNING|CRITICAL|UNKNOWN) for [\dhms ]+ ([\w -]+) on {HOST}", shown)
    return {name: state for state, name in rows if name in SERVICES}


@pytest.fixture
def database(place: Path) -> Iterator[Mariadb]:
    with icingaweb.database(place / "database") as running:
        yield running


def seen(web: Web, path: str, picture: Path, *texts: str, **how: Any) -> str:
    """What the browser shows, as soon as the page says all this; ``how``: the picture's size and the like."""
    web.wait(path, *texts)
    shown = web.screenshot(path, picture, **how)
    assert [text for text in texts if text not in shown] == []
    assert picture.read_bytes().startswith(b"\x89PNG")
    return shown


def all_is_well(site: Site) -> None:
    assert site.core is not None
    for service in ("traffic", "primary", "standby", "redirect"):
        site.core.wait(f"ldap {service}", 0, 30.0)


def fail_over(site: Site, load: Load) -> None:
    """The primary's process dies; what the services then say."""
    assert site.core is not None
    site.fault("crash")
    site.wait_target("standby")
    site.core.wait("ldap redirect", 1, text="on the standby")
    site.core.wait("ldap fail-back", 3, text="not ready to fail back")
    site.poll(lambda: len(load.requests()) > 200, 20.0, "requests that the standby answers")


def test_a_person_sees_the_fail_over(make_site: MakeSite, make_load: MakeLoad, pictures: Path) -> None:
    """What each service shows in the browser, and that "ldap fail-back" tells when it is ready."""
    site = make_site()
    assert isinstance(site.core, Nagios)
    load = make_load(site)
    size = {"width": 1240, "height": 270}
    with Cgis(site.directory / "web", site.core, port=8982, argv_prefix=site.house.argv("controller")) as web:
        all_is_well(site)
        seen(web, STATUS, pictures / "nagios-before.png", "10.0.0.11:389 answers", "nothing to fail back", **size)
        fail_over(site, load)
        texts = ("on the standby", "not ready to fail back", "CRITICAL")
        seen(web, STATUS, pictures / "nagios-during.png", *texts, **size)
        site.heal("crash")
        site.core.wait("ldap fail-back", 1, 30.0, text="ready to fail back")
        seen(web, STATUS, pictures / "nagios-ready.png", ": ready to fail back", "WARNING", **size)


def test_a_person_sees_it_in_icinga_web(
    database: Mariadb, place: Path, make_site: MakeSite, make_load: MakeLoad, pictures: Path
) -> None:
    """The same in Icinga Web 2, a service's story and the site's links beside it; its form for a result fails back."""
    site = make_site(core="icinga2", objects=lambda text: text + ido(database), links=LINKS)
    assert isinstance(site.core, Icinga)
    load = make_load(site)
    with IcingaWeb(place / "icingaweb", site.core, database, 8983, site.house.argv("controller")) as web:
        site.core.wait("ldap primary", 0, 30.0)
        site.core.check_now()
        all_is_well(site)
        texts = (
            "10.0.0.11:389 answers",
            "nothing to fail back",
            "requests/s to the primary",
            "bind and search answered",
        )
        shown = seen(web, LIST, pictures / "icingaweb-before.png", *texts, "on the primary 10.0.0.11:389", height=480)
        assert states(shown) == dict.fromkeys(SERVICES, "OK")

        fail_over(site, load)
        site.core.check_now()
        texts = ("CRITICAL: standby serves", "on the standby", "not ready to fail back")
        redirect = page("service/show", host=HOST, service="ldap redirect")
        shown = seen(web, LIST, pictures / "icingaweb-during.png", *texts, beside=redirect)
        wanted = {"ldap primary": "CRITICAL", "ldap redirect": "WARNING", "ldap fail-back": "UNKNOWN"}
        assert states(shown).items() >= wanted.items()
        assert "the standby passed its probe" in shown
        assert "back: failoverctl fail-back ldap" in shown

        site.heal("crash")
        site.core.wait("ldap fail-back", 1, 30.0, text="ready to fail back")
        fail_back = page("service/show", host=HOST, service="ldap fail-back")
        shown = seen(web, LIST, pictures / "icingaweb-ready.png", ": ready to fail back", beside=fail_back)
        assert states(shown)["ldap fail-back"] == "WARNING"
        assert "[x] the primary passed often and long enough" in shown
        links = web.fetch(fail_back)
        assert 'href="https://wiki.example.org/failover?service=ldap"' in links
        assert 'href="/check_failover/ldap.html"' in links

        form = page("service/process-check-result", host=HOST, service="ldap fail-back")
        web.submit(form, {"status": "0", "output": "back, says the night", "btn_submit": "Submit Passive Check Result"})
        site.wait_target("primary")
        site.core.wait("ldap fail-back", 0, text="nothing to fail back")
        assert (web.log.read_text() if web.log.exists() else "") == ""
    assert [entry["by"] for entry in site.journal("fail-back") if entry["flipped"]] == ["icinga2"]
