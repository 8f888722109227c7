"""The web preset on two real Apaches, whose document root is the link: what visitors get, both ways."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal
from tests.lab import preset
from tests.lab.apache import NAME, Apache
from tests.lab.syncing import SHM, Syncing, fill, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

Sites = dict[str, Apache]


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def sites(syncing: Syncing) -> Iterator[Sites]:
    """Two Apaches; the primary's site has an index, a page and a cache, the standby's is empty."""
    shutil.rmtree(syncing.primary)
    fill(syncing.primary, {"index.html": "first", "news/today.html": "old", "cache/page": "primary's own"})
    syncing.servers.place.chmod(0o711)  # Apache's user goes through it
    with tempfile.TemporaryDirectory(dir=SHM, prefix="cfw") as place:
        Path(place).chmod(0o711)
        made = {who: Apache(Path(place, who), "127.0.0.1", free_port(), free_port()) for who in ("primary", "standby")}
        for who, apache in made.items():
            shutil.rmtree(apache.directory / "www")
            (apache.directory / "www").symlink_to(syncing.servers.place / who / "data")
        srv = syncing.servers.srv
        syncing.configure(preset.keys("web", {}), source=f"{srv}/data")
        ok(syncing.sync("--adopt"))
        with made["primary"], made["standby"]:
            yield made


def get(apache: Apache, page: str) -> str:
    """What a visitor gets: the page's text, or the number of the error."""
    request = urllib.request.Request(f"http://127.0.0.1:{apache.port}/{page}", headers={"Host": NAME})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.code)


def test_a_site_comes_to_the_standby_and_back(syncing: Syncing, sites: Sites) -> None:
    """Restore drill: visitors get the same pages from the other server, at once and without a reload, both ways."""
    assert get(sites["standby"], "news/today.html") == "403"  # the link leads nowhere yet
    ok(syncing.sync())
    assert [get(sites["standby"], page) for page in ("", "news/today.html", "cache/page")] == ["first", "old", "404"]

    fill(syncing.primary, {"news/today.html": "new"})
    (syncing.primary / "index.html").chmod(0o600)  # as the administrator, so to the visitors
    ok(syncing.sync())
    for apache in sites.values():
        assert [get(apache, page) for page in ("index.html", "news/today.html")] == ["403", "new"]

    syncing.target, syncing.since = "standby", time.time()
    fresh = syncing.standby / "index.html"
    fresh.unlink()
    fill(syncing.standby, {"index.html": "from the standby", "late.html": "late"})
    ok(syncing.sync("--reverse"))
    assert [get(sites["primary"], page) for page in ("", "late.html", "news/today.html")] == [
        "from the standby",
        "late",
        "new",
    ]
    assert syncing.state().brought_back(syncing.since, time.time(), 900)


def test_a_site_without_its_page_is_not_served(syncing: Syncing, sites: Sites) -> None:
    """An empty index: the preset's ``verify`` refuses it, and visitors get what they got."""
    ok(syncing.sync())
    (syncing.primary / "index.html").write_text("")
    fill(syncing.primary, {"more.html": "more"})
    refused(syncing, syncing.sync(), Refusal.FAILED, "test: exit 1")
    assert get(sites["standby"], "") == "first"


def test_access_by_acl_comes_along(syncing: Syncing, sites: Sites) -> None:
    """A page that the web server may read by an ACL alone, and an extended attribute; a changed ACL is a difference."""
    page = syncing.primary / "private.html"
    page.write_text("by ACL")
    page.chmod(0o600)
    subprocess.run(["/usr/bin/setfacl", "-m", "u:nobody:r", str(page)], check=True)
    subprocess.run(["/usr/bin/setfacl", "-d", "-m", "u:nobody:rx", str(syncing.primary / "news")], check=True)
    os.setxattr(page, "trusted.note", b"utf-8")  # user.* on tmpfs needs Linux 6.6
    assert get(sites["primary"], "private.html") == "by ACL"
    ok(syncing.sync())
    for path in ("private.html", "news"):
        assert acl(syncing.standby / path) == acl(syncing.primary / path)
    assert get(sites["standby"], "private.html") == "by ACL"
    assert os.getxattr(syncing.standby / "private.html", "trusted.note") == b"utf-8"
    subprocess.run(["/usr/bin/setfacl", "-b", str(page)], check=True)
    ok(syncing.sync())
    assert get(sites["standby"], "private.html") == "403"


def acl(path: Path) -> str:
    """What getfacl prints of it, without its name."""
    done = subprocess.run(
        ["/usr/bin/getfacl", "--omit-header", "--absolute-names", str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout
