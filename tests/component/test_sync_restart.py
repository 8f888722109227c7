"""A slapd that is restarted writes its contextCSN to the database; no client wrote anything."""

from __future__ import annotations

import time

import pytest

from tests.component.test_sync_ldap import Slapds, directory_fixture  # noqa: F401
from tests.lab.syncing import Syncing, ok, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component


def test_a_restart_is_no_write(syncing: Syncing, directory: Slapds) -> None:
    """Of the standby's slapd before a run, and of the primary's before a reverse run."""
    directory.stop("primary")
    directory.start()
    directory.delete("primary", 1)
    directory.add("primary", "new")
    ok(syncing.sync())
    for who in ("standby", "primary"):
        directory.stop(who)
    directory.start()
    said = ok(syncing.sync())
    assert "had been changed" not in said
    assert "0 files differed" in said
    directory.stop("primary")
    directory.start()
    syncing.target, syncing.since = "standby", time.time()
    ok(syncing.sync("--reverse"))
