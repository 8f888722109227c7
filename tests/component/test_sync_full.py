"""The receiving server's disk is full: one line, its space is free again, and the next run neither spins nor waits."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from check_failover.syncstate import Refusal
from tests.lab.sshd import Servers
from tests.lab.syncing import (  # noqa: F401
    Syncing,
    fill,
    ok,
    refused,
    servers_fixture,
    syncing_fixture,
)

pytestmark = pytest.mark.component

MIB = 1 << 20


@pytest.fixture
def small(servers: Servers, syncing: Syncing) -> Iterator[Servers]:
    """The standby's copies are on a file system of 4 MiB."""
    servers.on("standby", f"umount {servers.srv}/small")
    servers.small("standby", "small", "4m")
    syncing.configure(f'to = "{servers.srv}/small/data"\nkeep = 2')
    yield servers
    servers.on("standby", f"umount {servers.srv}/small")


def big(syncing: Syncing, mib: float, name: str = "big") -> None:
    """A file of random bytes on the primary."""
    (syncing.primary / name).write_bytes(os.urandom(int(mib * MIB)))


def staging(small: Servers) -> str:
    """The unfinished copies on the standby."""
    return small.on("standby", f"ls {small.srv}/small/data.sync | grep staging")


def test_space_is_looked_at_before_anything_is_written(syncing: Syncing, small: Servers) -> None:
    """The first copy and a later one: too large for what is free."""
    big(syncing, 6)
    refused(syncing, syncing.sync(), Refusal.FAILED, "KiB: make space")
    assert not staging(small)
    big(syncing, 1.5)
    ok(syncing.sync())
    big(syncing, 3)
    refused(syncing, syncing.sync(), Refusal.FAILED, "KiB are free, the new copy needs 3072 KiB: make space")
    assert not staging(small)


def test_a_disk_that_fills_up_meanwhile(syncing: Syncing, small: Servers) -> None:
    """What the site's own step builds is not known before: its rest is removed, and a smaller source gets through."""
    fills = f"cat /dev/zero >{{staged}}/built; rm -f {syncing.place}/x; exit 1"
    text = syncing.config.read_text()
    syncing.config.write_text(text + f'verify = ["/bin/sh", "-c", "{fills}"]\n')
    refused(syncing, syncing.sync(), Refusal.FAILED, "; the disk was full (0 KiB free)")
    assert not staging(small)
    syncing.config.write_text(text)
    ok(syncing.sync())


@pytest.mark.parametrize("left", ["", "echo 99999999 >{lock}; ln -sf 99999999 {lock} 2>/dev/null;"])
def test_a_full_disk_makes_no_run_spin(syncing: Syncing, small: Servers, left: str) -> None:
    """Not one block is free, as after a run before: the next run says so within seconds, and goes on when there is."""
    ok(syncing.sync())
    copies = f"{small.srv}/small/data.sync"
    small.on("standby", f"mkdir {copies}/staging-000009-aaaa; cat /dev/zero >{small.srv}/small/other")
    small.on("standby", left.format(lock=f"{copies}/lock"))
    fill(syncing.primary, {"new": "1" * 5000})
    began = time.monotonic()
    refused(syncing, syncing.sync(timeout=60), Refusal.FAILED, "0 KiB are free, the new copy needs ")
    assert time.monotonic() - began < 15
    assert not staging(small)
    small.on("standby", f"rm {small.srv}/small/other")
    ok(syncing.sync())


def test_an_unfinished_copy_gives_its_space(syncing: Syncing, small: Servers) -> None:
    """What a killed run left is used again where there is room, and removed where the new copy needs that room."""
    ok(syncing.sync())
    left = f"{small.srv}/small/data.sync/staging-000009-aaaa"
    small.on("standby", f"mkdir {left}; head -c 2500000 /dev/urandom >{left}/big")
    big(syncing, 2)
    ok(syncing.sync())
    assert not staging(small)
