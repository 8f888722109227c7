"""Nagios's own web interface as a person sees it: headless Chromium before, during and after a fail-over.

pytest tests/system/test_web_interface.py --pictures nagios-conf/pictures      (make screenshots)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.load import Load
from tests.lab.site import HOST, Site
from tests.lab.web import Web

pytestmark = pytest.mark.system
STATUS = f"cgi-bin/status.cgi?host={HOST}&noheader"


def test_a_person_sees_the_fail_over(
    make_site: Callable[..., Site], make_load: Callable[[Site], Load], pictures: Path
) -> None:
    """What each service shows in the browser, and that "ldap fail-back" tells when it is ready."""
    site = make_site(kannel=False)
    assert site.core is not None
    load = make_load(site)
    with Web(site.directory / "web", site.core, port=8982, argv_prefix=site.house.argv("controller")) as web:

        def look(name: str, *texts: str) -> None:
            """The page, as soon as it says all this."""
            seen: list[str] = []

            def says() -> bool:
                seen.append(web.fetch(STATUS))
                return all(text in seen[-1] for text in texts)

            site.poll(says, 30.0, f"{texts} in the web interface")
            shown = web.screenshot(STATUS, pictures / f"nagios-{name}.png", 1240, 230)
            assert [text for text in texts if text not in shown] == []
            assert (pictures / f"nagios-{name}.png").read_bytes().startswith(b"\x89PNG")

        for service in ("traffic", "primary", "standby", "redirect"):
            site.core.wait(f"ldap {service}", 0, 30.0)
        look("before", "primary 10.0.0.11:389 answers", "nothing to fail back")
        site.fault("crash")
        site.wait_target("standby")
        site.core.wait("ldap redirect", 1, text="now on the standby")
        site.core.wait("ldap fail-back", 3, text="not ready to fail back")
        site.poll(lambda: len(load.requests()) > 200, 20.0, "requests that the standby answers")
        look("during", "on the standby", "not ready to fail back", "CRITICAL")
        site.heal("crash")
        site.core.wait("ldap fail-back", 1, 30.0, text="ready to fail back")
        look("ready", "ready to fail back", "WARNING")
