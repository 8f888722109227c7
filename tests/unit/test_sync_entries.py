"""Where an LDAP entry changed since both servers were equal, from entryUUID, entryCSN and createTimestamp."""

from __future__ import annotations

from dataclasses import replace

import pytest

from check_failover.checks.replication import Entry
from check_failover.model import Target
from check_failover.sync.entries import compare

AT = 1000.0  # both servers were equal
OLD = Entry("cn=a,dc=x", "csn-1", 100.0, 50.0, {"sn": frozenset({b"a"})})
NEW = replace(OLD, csn="csn-2", changed=2000.0, attributes={"sn": frozenset({b"b"})})
NEWER = replace(OLD, csn="csn-3", changed=3000.0, attributes={"sn": frozenset({b"c"})})
ADDED = replace(NEW, created=2000.0)
EARLY = replace(NEW, changed=AT + 1)  # as far as clocks can say, at the moment of the run


@pytest.mark.parametrize(
    ("primary", "standby", "on", "what"),
    [
        (OLD, OLD, None, ""),
        (OLD, replace(NEW, attributes=OLD.attributes), None, ""),  # written again, the same
        (NEW, OLD, Target.PRIMARY, "changed"),
        (OLD, NEW, Target.STANDBY, "changed"),
        (NEW, NEWER, None, "changed on both servers"),
        (EARLY, OLD, None, "changed on both servers"),
        (OLD, replace(NEW, dn="cn=b,dc=x"), None, "is cn=b,dc=x on the standby"),
        (ADDED, None, Target.PRIMARY, "added"),
        (None, ADDED, Target.STANDBY, "added"),
        (None, OLD, Target.PRIMARY, "deleted"),
        (OLD, None, Target.STANDBY, "deleted"),
        (NEW, None, None, "changed on the primary, deleted on the standby"),
        (EARLY, None, None, "changed on the primary, deleted on the standby"),
    ],
)
def test_one_entry(primary: Entry | None, standby: Entry | None, on: Target | None, what: str) -> None:
    """As it is on each server; an empty ``what`` is no difference, no server is a conflict."""
    found = compare({"u": primary} if primary else {}, {"u": standby} if standby else {}, AT)
    assert [(one.on, one.what) for one in found] == ([(on, what)] if what else [])


def test_two_entries_of_one_name() -> None:
    """Each server made one: the same contents are no difference, others a conflict, told once for each."""
    assert not compare({"u": ADDED}, {"v": ADDED}, AT)
    other = replace(ADDED, attributes={"sn": frozenset({b"c"})})
    assert {(one.on, one.what) for one in compare({"u": ADDED}, {"v": other}, AT)} == {(None, "added on both servers")}
