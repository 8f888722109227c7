"""The pages of incidents in a directory: all that happened, linked, bounded, and nobody else's file touched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover.admin import FailedError, show
from check_failover.admin.objects import links
from check_failover.admin.reports import MAX_PAGES, publish
from check_failover.config import Config, ConfigError, load
from check_failover.control import Message
from check_failover.listening import Server
from check_failover.peer import Peer
from check_failover.records import to_json
from tests.unit.test_incident import BACK, EVIL, RAW, read
from tests.unit.test_story import REFUSED
from tests.unit.test_transports_remote import GOOD

FLIP: dict[str, Any] = {**RAW, "id": "20261125T145834-ldap-1", "by": EVIL}
HELD: dict[str, Any] = {**to_json(REFUSED), "id": "20261125T145901-ldap-2"}
HOLD: dict[str, Any] = {**to_json(REFUSED), "id": "20261125T145900-ldap-3", "verb": "hold", "reason": "hold"}


@pytest.fixture
def journal() -> list[dict[str, Any]]:
    return [FLIP, HOLD, HELD]


@pytest.fixture
def config(tmp_path: Path, journal: list[dict[str, Any]]) -> Iterator[Config]:
    """A good config with a directory for pages, and a redirector's socket that tells that journal."""

    def handle(_message: Message, _peer: Peer) -> Message:
        return {"entries": journal}

    text = re.sub(r'run_dir = "[^"]*"', f'run_dir = "{tmp_path}"', GOOD.read_text())
    more = f'[monitoring]\nreport_dir = "{tmp_path}/pages"\nreport_url = "/check_failover/"\n'
    (tmp_path / "config.toml").write_text(text.replace("[monitoring]\n", more))
    server = Server(tmp_path / "redirector.sock", frozenset({"history"}), handle, lambda _verb, _peer: None)
    server.start()
    yield load(tmp_path / "config.toml")
    server.close()


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    (tmp_path / "pages").mkdir()
    return tmp_path / "pages"


def test_a_page_for_each_incident_and_a_list(config: Config, pages: Path) -> None:
    """A flip and a refused fail-over; a hold is none. The list leads there, newest first; nothing becomes markup."""
    publish(config)
    names = {path.name for path in pages.iterdir()}
    assert names == {f"{FLIP['id']}.html", f"{HELD['id']}.html", "ldap.html", "ldap6.html"}
    text = (pages / "ldap.html").read_text()
    assert text.index(HELD["id"]) < text.index(FLIP["id"])
    assert "None so far." in (pages / "ldap6.html").read_text()
    for name in names:
        assert "script" not in read((pages / name).read_text()).tags
    assert EVIL in read(text).text


def test_only_what_is_news_is_written(config: Config, pages: Path, journal: list[dict[str, Any]]) -> None:
    publish(config)
    before = {path.name: path.stat().st_ino for path in pages.iterdir()}
    publish(config)
    assert {path.name: path.stat().st_ino for path in pages.iterdir()} == before
    journal.append({**to_json(BACK), "id": "20261125T160000-ldap-4", "flipped": True, "by": "eve"})
    publish(config)
    assert (pages / "ldap6.html").stat().st_ino == before["ldap6.html"]
    assert "20261125T160000-ldap-4" in (pages / "ldap.html").read_text()


def test_the_newest_are_kept_and_nobody_elses_are_touched(
    config: Config, pages: Path, journal: list[dict[str, Any]]
) -> None:
    """Also those that the journal has forgotten count; what is not ours stays."""
    (pages / "index.html").write_text("the site's own")
    (pages / "20200101T000000-ldap-1.html").write_text("long ago")
    journal[:] = [{**FLIP, "id": f"20261125T{number:06d}-ldap-{number}"} for number in range(MAX_PAGES + 20)]
    publish(config)
    ours = sorted(path.name for path in pages.iterdir() if "-ldap-" in path.name)
    assert len(ours) == MAX_PAGES
    assert ours[-1] == f"20261125T{MAX_PAGES + 19:06d}-ldap-{MAX_PAGES + 19}.html"
    assert (pages / "index.html").read_text() == "the site's own"


@pytest.mark.parametrize("name", ["../../etc/cron", "20261125T145834-ldap-1/../x", ""])
def test_an_entry_names_no_other_file(config: Config, pages: Path, journal: list[dict[str, Any]], name: str) -> None:
    journal[:] = [{**FLIP, "id": name}]
    publish(config)
    assert {path.name for path in pages.iterdir()} == {"ldap.html", "ldap6.html"}


def test_a_directory_that_is_not_there(config: Config, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"pages/.*: No such file or directory: may this user write there"):
        publish(config)
    with pytest.raises(FailedError, match=r"\$\.monitoring\.report_dir: missing: set it"):
        publish(load(GOOD))


def test_the_services_link_to_the_list(config: Config) -> None:
    """Unless the site has a link of its own."""
    service = config.service("ldap")
    assert links(config, service) == {"action_url": "/check_failover/ldap.html"}
    text = config.path.read_text().replace("report_url", 'action_url = "/graphs?of={service}"\nreport_url')
    config.path.write_text(text)
    assert links(load(config.path), service) == {"action_url": "/graphs?of=ldap"}


def test_a_link_needs_a_directory(config: Config) -> None:
    config.path.write_text(re.sub("report_dir.*", "", config.path.read_text()))
    with pytest.raises(ConfigError, match="'report_dir' is a dependency of 'report_url'"):
        load(config.path)


def test_a_sniffer_of_another_version_is_no_traceback() -> None:
    """Its answer lacks what this version prints: one line says what to do."""
    for answer in ({}, {"stats": None}, {"stats": {"p99": 0.1}}):
        assert show._traffic(answer, None) == ["  sniffer: its answer is not understood: restart failover-sniffer"]
