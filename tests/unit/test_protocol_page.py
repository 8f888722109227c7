"""The page of the control sockets names each verb that a daemon has, and no other."""

import re
from pathlib import Path

from check_failover import rights

PAGE = Path(__file__).resolve().parents[2] / "nagios-conf" / "doc" / "protocol.md"


def test_every_verb_is_described() -> None:
    """In the table of its daemon."""
    _, redirector, sniffer = PAGE.read_text().split("\n## ")
    for part, verbs in ((redirector, rights.OF_REDIRECTOR), (sniffer, rights.OF_SNIFFER)):
        assert sorted(re.findall(r"^\| `([\w-]+)` \|", part, re.MULTILINE)) == sorted(verbs)
