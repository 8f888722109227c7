"""The OpenLDAP preset where it is more than one database: an accesslog, and a disk that is too small."""

from __future__ import annotations

import subprocess
import time

import pytest

from check_failover.syncstate import Refusal
from tests.component.test_sync_ldap import ADDRESSES, BASE, PERSON, Slapds, configure, directory_fixture  # noqa: F401
from tests.lab import preset
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

LOG = "cn=accesslog"
ACCESSLOG = """\
database mdb
suffix cn=accesslog
rootdn cn=accesslog
rootpw secret
directory {srv}/{where}
maxsize 67108864

database mdb
"""
OVERLAY = f"overlay accesslog\nlogdb {LOG}\nlogops writes\nlogsuccess TRUE\n"


def keep_log(slapds: Slapds, where: str) -> None:
    """Have both slapds log writes to a database of their own at ``where``."""
    for who in ADDRESSES:
        place, srv = slapds.servers.place / who, slapds.servers.srv
        (place / where).mkdir()
        slapds.configure(who)
        text = (
            (place / "slapd.conf")
            .read_text()
            .replace("moduleload syncprov", "moduleload syncprov\nmoduleload accesslog")
        )
        (place / "slapd.conf").write_text(text.replace("database mdb\n", ACCESSLOG.format(srv=srv, where=where), 1))
        with_overlay = (place / "slapd.conf").read_text().replace("overlay syncprov", f"{OVERLAY}overlay syncprov")
        (place / "slapd.conf").write_text(with_overlay)
        again = f"rm -rf {slapds.config}/* && /usr/sbin/slaptest -n 0 -f {srv}/slapd.conf -F {slapds.config}"
        preset.ssh(slapds.servers, who, again)
    slapds.start()


def logged(slapds: Slapds, who: str) -> list[str]:
    """The DNs that the log of a server has, oldest first."""
    url = f"ldap://{ADDRESSES[who]}:{slapds.port}"
    argv = ["/usr/bin/ldapsearch", "-x", "-LLL", "-o", "ldif_wrap=no", "-H", url, "-D", LOG, "-w", "secret", "-b", LOG]
    done = subprocess.run([*argv, "(reqDN=*)", "reqDN"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (0, 32), done.stderr
    return [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("reqDN: ")]


def test_an_accesslog_comes_along(syncing: Syncing, directory: Slapds) -> None:
    """With -a: data and log of the other server, both ways; each server goes on logging."""
    keep_log(directory, "data/accesslog")
    configure(syncing, directory)
    text = (
        syncing.config.read_text()
        .replace('"-b", ', f'"-a", "{LOG}", "-b", ')
        .replace('["/db"]', '["/db", "/accesslog"]')
    )
    syncing.config.write_text(text)
    directory.add("primary", "new")
    ok(syncing.sync())
    assert "new" in directory.people("standby")
    assert logged(directory, "standby") == [f"cn=new,ou=people,{BASE}"]

    syncing.target, syncing.since = "standby", time.time()
    directory.add("standby", "late")
    ok(syncing.sync("--reverse"))
    assert "late" in directory.people("primary")
    assert logged(directory, "primary") == [f"cn={name},ou=people,{BASE}" for name in ("new", "late")]
    directory.add("primary", "after")
    assert len(logged(directory, "primary")) == 3


def test_an_accesslog_may_stay_each_server_s_own(syncing: Syncing, directory: Slapds) -> None:
    """Without -a: the data comes, the log that is elsewhere is not touched, and the load itself is not logged."""
    keep_log(directory, "log")
    directory.add("primary", "new")
    directory.add("primary", "newer")
    ok(syncing.sync())
    assert directory.people("standby") == directory.people("primary")
    assert logged(directory, "standby") == []
    assert len(logged(directory, "primary")) == 2


def test_a_disk_that_is_too_small_is_seen_before_the_load(syncing: Syncing, directory: Slapds) -> None:
    """On a full disk slapadd dies by SIGBUS: free space is asked before, and the line has both numbers."""
    ok(syncing.sync())
    good = directory.people("standby")
    many = "\n".join(PERSON.format(name=f"q{i}", text="x" * 4000, base=BASE).lstrip() for i in range(1500))
    directory.modify("primary", many.replace("objectClass: inet", "changetype: add\nobjectClass: inet"))
    copies = f"{syncing.servers.srv}/data.sync"
    small = f"mkdir {copies}.small && mount -t tmpfs -o size=9m none {copies}.small && cp -a {copies}/. {copies}.small"
    preset.ssh(syncing.servers, "standby", f"{small} && mount --move {copies}.small {copies}")
    try:
        refused(syncing, syncing.sync(), Refusal.FAILED, "kB needed to load and verify the database")
        assert directory.people("standby") == good
    finally:
        preset.ssh(syncing.servers, "standby", f"umount -l {copies}")
