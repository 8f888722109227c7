"""A site's own escalation, of a host's services that know nothing of it, is honoured by Nagios for ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.load import Load
from tests.lab.nagios import Nagios
from tests.lab.site import HOST, ONCALL, Site

pytestmark = pytest.mark.system

MANAGER = "+491707654321"
AGAIN = 5  # "minutes" between two notifications of a problem; Nagios wants no less than the longest check_interval
ESCALATION = f"""
define contact {{
    use           failover-sms-contact
    contact_name  manager
    pager         {MANAGER}
}}
define serviceescalation {{
    use                    failover-escalation
    host_name              {HOST}
    service_description    *
    contact_groups         oncall
    contacts               manager
    notification_interval  {AGAIN}
}}
"""


def _with_escalation(objects: str) -> str:
    """The host says how often its problems are told."""
    assert objects.count("    notification_interval  60\n") == 1, "the host's, and nobody else's"
    return objects.replace("    notification_interval  60\n", f"    notification_interval  {AGAIN}\n") + ESCALATION


def test_the_second_notification_reaches_the_manager(
    make_site: Callable[..., Site], make_load: Callable[[Site], Load]
) -> None:
    """First the one on call alone, by SMS; the manager when it is told again, as the host says; nobody else, ever."""
    site = make_site(objects=_with_escalation, interval_length=1)
    assert isinstance(site.core, Nagios)
    assert site.kannel is not None
    kannel = site.kannel
    make_load(site)
    site.fault("crash")
    site.wait_target("standby")

    def texts() -> list[str]:
        """Whose phones heard of "ldap redirect" not being well, in order."""
        return [number for number, text in kannel.received() if "PROBLEM ldap redirect" in text]

    site.poll(lambda: MANAGER in texts() and texts().count(ONCALL) > 1, 30.0, "the manager is told")
    assert texts()[0] == ONCALL
    told = [line.split() for line in site.core.lines("SERVICE NOTIFICATION: [^;]*;[^;]*;ldap redirect;")]
    at = [(int(words[0].strip("[]")), words[3].split(";")[0]) for words in told]
    first, later = (next(when for when, whom in at if whom == who) for who in ("oncall", "manager"))
    assert later - first >= AGAIN - 1  # whole seconds in the log
    asked = {line.split("NOTIFICATION: ")[1].split(";")[0] for line in site.core.lines("NOTIFICATION: ")}
    assert asked == {"oncall", "manager"}
