"""Where an LDAP entry changed since both servers were equal, from entryUUID, entryCSN and createTimestamp."""

from __future__ import annotations

from dataclasses import replace

import pytest

from check_failover.checks.replication import Entry
from check_failover.model import Target
from check_failover.sync.merging import InStep, compare, plan

AT = InStep(990.0, 1010.0)  # both servers became equal
OLD = Entry("cn=a,dc=x", "csn-1", 100.0, 50.0, {"sn": frozenset({b"a"})})
NEW = replace(OLD, csn="csn-2", changed=2000.0, attributes={"sn": frozenset({b"b"})})
NEWER = replace(OLD, csn="csn-3", changed=3000.0, attributes={"sn": frozenset({b"c"})})
ADDED = replace(NEW, created=2000.0)
EARLY = replace(NEW, changed=1001.0)  # as far as clocks can say, at the moment of the run


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


def test_the_order_of_a_merge() -> None:
    """Parents are added before what is below them and deleted after it."""
    names = ("cn=z,dc=x", "cn=b,cn=z,dc=x", "cn=a,cn=b,cn=z,dc=x")
    new = {name: replace(ADDED, dn=name) for name in reversed(names)}
    root = {"root": replace(OLD, dn="dc=x")}
    changes, conflicts = plan(Target.STANDBY, {Target.PRIMARY: root, Target.STANDBY: root | new}, AT)
    assert ([one.dn for one in changes], conflicts) == (list(names), [])
    old = {name: replace(OLD, dn=name) for name in names}
    changes, conflicts = plan(Target.STANDBY, {Target.PRIMARY: root | old, Target.STANDBY: root}, AT)
    assert ([one.dn for one in changes], conflicts) == (list(reversed(names)), [])
    assert plan(Target.PRIMARY, {Target.PRIMARY: root | old, Target.STANDBY: root}, AT) == ([], [])


def test_what_a_tree_forbids_is_a_conflict() -> None:
    """One server deleted an entry, the other one added an entry below it."""
    parent, child = {"p": replace(OLD, dn="cn=z,dc=x")}, {"c": replace(ADDED, dn="cn=a\\,b,cn=Z,dc=x")}
    root = {"root": replace(OLD, dn="dc=x")}
    here = {Target.PRIMARY: root, Target.STANDBY: root | parent | child}
    assert plan(Target.STANDBY, here, AT)[1] == ["cn=a\\,b,cn=Z,dc=x: added below an entry that is gone"]
    assert plan(Target.PRIMARY, here, AT)[1] == ["cn=a\\,b,cn=z,dc=x: below an entry that was deleted on the primary"]


def test_a_change_that_cannot_be_seen_is_a_conflict_unless_both_have_it() -> None:
    """Same attributes, newer on the server that gives."""
    newer = replace(NEW, attributes=OLD.attributes)
    for theirs, conflicts in ((OLD, 1), (replace(newer, csn="csn-3"), 0)):
        found = plan(Target.STANDBY, {Target.PRIMARY: {"u": theirs}, Target.STANDBY: {"u": newer}}, AT)
        assert (found[0], len(found[1])) == ([], conflicts)
