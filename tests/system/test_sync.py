"""Data in step, on real parts: two slapds copied by failover-sync over ssh, a dead primary, and the way back.

The preset for OpenLDAP as it is shipped, Nagios and the gateway as on a site. Each server has its data at one path, by
a mount namespace of its own.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import PRIMARY, STANDBY
from tests.lab.site import BASE
from tests.lab.synced import SyncedSite

pytestmark = pytest.mark.system


@pytest.fixture
def site() -> Iterator[SyncedSite]:
    with tempfile.TemporaryDirectory(prefix="cfo-sync-") as name:
        Path(name).chmod(0o755)
        with SyncedSite(Path(name) / "site") as made:
            yield made


def test_nothing_is_lost_over_there_and_back(site: SyncedSite) -> None:
    """Written, synced, the primary dies, read and written on the standby, brought back, failed back: all is there.

    The sync age stands in Nagios after each run and in the text on the phone. A wiped primary is refused.
    """
    assert site.core is not None
    assert site.kannel is not None
    site.core.wait("ldap sync", 2, 30.0, text="the standby's data was never in step")
    code, line = site.sync("--adopt")
    assert code == 0, line
    for number in range(20):
        site.add(f"first{number}")
    code, line = site.sync()
    assert code == 0, line
    shown = site.core.wait("ldap sync", 0, text="the standby's data was in step ")
    assert shown["check_type"] == "1", "not the run's own result"
    assert re.search(r"^sync_age=\d+s;1200;1800;0 .*entries=23;", shown["performance_data"]), shown
    site.add("second")
    code, line = site.sync()
    assert code == 0, line
    assert "1 files differed" in line

    everybody = {"joe", "second", *(f"first{number}" for number in range(20))}
    assert site.people() == everybody
    _fail_over(site, everybody)
    _bring_back(site, everybody | {"meanwhile"})
    _wiped_primaries_are_refused(site, everybody | {"meanwhile"})


def _fail_over(site: SyncedSite, everybody: set[str]) -> None:
    """The primary dies: clients read and write on the standby; nothing comes from the dead server any more."""
    assert site.core is not None
    assert site.kannel is not None
    site.wait_healthy("standby")
    site.fault("crash")
    with pytest.raises(AssertionError, match="ldapsearch"):
        site.people("controller", f"ldap://{PRIMARY}")
    site.poll(site.asked, 30.0, "a client is answered")
    site.wait_target("standby")
    assert site.people() == everybody
    site.add("meanwhile")
    assert "meanwhile" in site.people()
    flip = next(entry for entry in site.journal("fail-over") if entry["flipped"])
    assert 0 <= flip["facts"]["sync_age"] < 120
    alert = r"SERVICE ALERT: .*;ldap redirect;WARNING;.*now on the standby \(data \d+ s old\)"
    site.poll(lambda: site.core and site.core.lines(alert), 15.0, "Nagios knows how old the data is")
    kannel = site.kannel
    try:
        text = site.poll(
            lambda: next((t for _, t in kannel.received() if "ldap redirect" in t), ""), 60.0, "the outcome"
        )
    except AssertionError as error:
        raise AssertionError(f"{error}: phones got {kannel.received()}\n{site.core.lines('NOTIFICATION')}") from None
    assert re.search(r"now on the standby \(data \d+ s old\)", text), text
    code, line = site.sync()
    assert code == 1, line
    assert "the standby serves" in line
    site.core.wait("ldap sync", 0, text="the standby serves: nothing is copied to it")


def _bring_back(site: SyncedSite, everybody: set[str]) -> None:
    """The repaired primary is not served from before it has what the standby took in."""
    site.heal("crash")

    def missing() -> list[str]:
        return [reason for reason, why in site.status()["fail_back"] if why is not None]

    site.poll(lambda: missing() == ["not-synced-back"], 40.0, "only the data is missing")
    assert "not-synced-back" in site.ctl("fail-back", "ldap", check=False)
    assert site.status()["target"] == "standby"
    code, line = site.sync("--reverse")
    assert code == 0, line
    assert site.people("controller", f"ldap://{PRIMARY}") == everybody
    site.poll(lambda: missing() == [], 40.0, "ready to fail back")
    site.ctl("fail-back", "ldap")
    site.wait_target("primary")
    assert site.people() == everybody
    code, line = site.sync()
    assert code == 0, line


def _wiped_primaries_are_refused(site: SyncedSite, everybody: set[str]) -> None:
    """Entries gone, or the whole database: the standby keeps all it has, and Nagios is told."""
    assert site.core is not None
    site.write("\n".join(f"dn: cn={name},ou=people,{BASE}\nchangetype: delete\n" for name in sorted(everybody)))
    assert site.people() == set()
    code, line = site.sync()
    assert code == 2, line
    assert "the source shrank to 2 of 25 entries" in line
    site.core.wait("ldap sync", 2, text="the source shrank to 2 of 25 entries")
    assert site.people("controller", f"ldap://{STANDBY}") == everybody
    for ou in ("ou=people,", ""):
        site.write(f"dn: {ou}{BASE}\nchangetype: delete\n")
    code, line = site.sync()
    assert code != 0, line
    assert site.people("controller", f"ldap://{STANDBY}") == everybody
