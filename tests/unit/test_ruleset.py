"""The text of the nftables table."""

import re
from dataclasses import replace
from pathlib import Path

from check_failover.config import load
from check_failover.model import Endpoint, Target
from check_failover.redirector.nftables.redirect import ct_marks
from check_failover.redirector.nftables.ruleset import ruleset

LDAP = replace(
    load(Path(__file__).parents[1] / "fixtures" / "config" / "good.toml").service("ldap"),
    address=Endpoint("192.0.2.10", 389),
    primary=Endpoint("10.0.0.11", 389),
    standby=Endpoint("10.0.0.12", 389),
)


def test_a_server_of_two_services() -> None:
    """Its segment does not say which service address the client used: it is taken up for neither of them."""
    second = replace(LDAP, name="ldap2", address=Endpoint("192.0.2.20", 389), standby=Endpoint("10.0.0.13", 389))
    services = (LDAP, second)
    text = ruleset(services, ct_marks(services), dict.fromkeys(("ldap", "ldap2"), Target.PRIMARY))
    (elements,) = re.findall(r"add element inet check_failover resume4 \{ (.*) \}", text)
    assert elements == "10.0.0.12 . 389 : jump resume_standby_ldap, 10.0.0.13 . 389 : jump resume_standby_ldap2"
