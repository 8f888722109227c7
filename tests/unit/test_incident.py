"""The page of an incident: what it tells, and that nothing from outside becomes markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from check_failover.admin.reports import Sms, html
from check_failover.records import JournalEntry, from_json

EVIL = "<script>alert(1)</script>"
RAW: dict[str, Any] = {
    "id": "7", "at": 1000.25, "took": 0.02, "service": "ldap", "verb": "fail-over", "by": "nagios", "flipped": True,
    "line": f"ldap: primary -> standby ({EVIL})", "facts": {"requests": 8, "replies": 0, "evidence": 1},
}  # fmt: skip
ENTRY = from_json(JournalEntry, RAW)
STORY: dict[str, Any] = {
    "verdict": f"primary 10.0.0.11:389: {EVIL}",
    "suspicion": {"detector": "refused", "text": "connection refused"},
    "seconds_from_suspicion": 0.15,
    "seconds_from_the_first_victim": 0.2,
    "probes": [{"of": "primary", "passed": False, "seconds": 0.001, "text": EVIL}],
    "traffic": {"request_rate": 50.0, "p99": None},
}
TEXTS = [
    Sms(1001.5, "+4917", f"PROBLEM ldap redirect {EVIL}"),
    Sms(1001.6, "+4918", "PROBLEM dns redirect"),
    Sms(1.0, "+4919", "ldap, long ago"),
]
BACK = JournalEntry("8", 2000.0, "ldap", "fail-back", "eve", line="ldap: standby -> primary")


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


def test_the_story_in_order() -> None:
    told = read(html(ENTRY, [ENTRY, BACK], STORY, 1000.2, TEXTS)).text
    places = [told.index(f"+{s} s  {who}") for s, who in (("0.000", "clients"), ("0.050", "sniffer"), ("0.200", "sni"))]
    assert places == sorted(places)
    assert "+0.270 s  redirector: ldap: primary -> standby" in told
    assert "+4917" in told
    assert "+4918" not in told
    assert "+4919" not in told
    assert "standby -> primary" in told
    assert "probe of the primary" in told


def test_nothing_from_outside_is_markup() -> None:
    reader = read(html(ENTRY, [ENTRY], STORY, 1000.2, TEXTS))
    assert "script" not in reader.tags
    assert EVIL in reader.text


def test_a_refusal_without_evidence() -> None:
    """No verdict kept, no text sent: the page says so and stands."""
    entry = replace(ENTRY, flipped=False, reason="hold", line="ldap: refused, hold", facts=None)
    told = read(html(entry, [], None, None, [])).text
    assert "No text message is on record." in told
    assert "hold" in told
