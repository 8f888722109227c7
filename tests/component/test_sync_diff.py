"""Two slapds that both took in writes: what differs is listed."""

from __future__ import annotations

import time

import pytest

from check_failover.model import State
from check_failover.syncstate import SKEW, Refusal
from tests.component.test_sync_ldap import BASE, Slapds, directory_fixture, replicating  # noqa: F401
from tests.lab.netns import poll
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component


def divided(syncing: Syncing, directory: Slapds) -> None:
    """Both are equal, then each server takes in writes of its own; the standby serves."""
    time.sleep(SKEW + 1)  # the entries are older than what a clock's error may hide
    ok(syncing.sync())
    time.sleep(SKEW + 1)
    directory.add("primary", "unsynced", "größer")
    directory.modify(
        "primary", f"dn: cn=p1,ou=people,{BASE}\nchangetype: modify\nreplace: description\ndescription: x\n"
    )
    directory.modify("primary", f"dn: cn=p2,ou=people,{BASE}\nchangetype: delete\n")
    syncing.target, syncing.since = "standby", time.time()
    directory.add("standby", "late")


def test_what_differs_is_listed(syncing: Syncing, directory: Slapds) -> None:
    """Each entry with the server on which it changed."""
    divided(syncing, directory)
    refused(syncing, syncing.sync("--reverse"), Refusal.BOTH_SERVED, "both servers have changed")
    shown = syncing.sync("--diff")
    assert shown.returncode == State.WARNING, shown.stdout + shown.stderr
    assert shown.stdout.splitlines() == [
        "WARNING: web: 4 entries differ",
        f"cn=late,ou=people,{BASE}: added on the standby",
        f"cn=p1,ou=people,{BASE}: changed on the primary",
        f"cn=p2,ou=people,{BASE}: deleted on the primary",
        f"cn=unsynced,ou=people,{BASE}: added on the primary",
    ]
    before = directory.people("primary")
    directory.modify(
        "standby", f"dn: cn=p1,ou=people,{BASE}\nchangetype: modify\nreplace: description\ndescription: y\n"
    )
    assert f"cn=p1,ou=people,{BASE}: changed on both servers\n" in syncing.sync("--diff").stdout
    assert directory.people("primary") == before


def test_what_differs_between_replicating_servers_is_listed(syncing: Syncing, directory: Slapds) -> None:
    """They are asked by LDAP alone: failover-sync has no way to log in there."""
    replicating(syncing, directory)
    syncing.config.write_text(syncing.config.read_text().replace("ssh_config = ", "ssh_config = '/nowhere' #"))
    shown = syncing.sync("--diff")
    assert shown.stdout.splitlines()[0] == "WARNING: web: 52 entries differ", shown.stdout + shown.stderr
    directory.replicate(True)
    poll(lambda: directory.people("standby") == directory.people("primary"), 15, "replication")
    assert syncing.sync("--diff").stdout == "OK: web: 0 entries differ\n"
