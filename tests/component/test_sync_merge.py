"""Two slapds that both took in writes: where no two conflict, --merge keeps those of both servers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from check_failover.model import State
from check_failover.sync import lineage, run
from check_failover.sync.job import Job
from check_failover.syncstate import SKEW, Refusal
from tests.component.test_sync_ldap import BASE, Slapds, configure, directory_fixture  # noqa: F401
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component


def change(name: str, text: str) -> str:
    return f"dn: cn={name},ou=people,{BASE}\nchangetype: modify\nreplace: description\ndescription: {text}\n"


def delete(name: str) -> str:
    return f"dn: cn={name},ou=people,{BASE}\nchangetype: delete\n"


def attributes(directory: Slapds, who: str, name: str, *wanted: str) -> str:
    """What slapcat exports of a person."""
    ldif = directory.ssh(who, f"/usr/sbin/slapcat -o ldif_wrap=no -F {directory.config} -b {BASE}")
    (block,) = [one for one in ldif.split("\n\n") if one.startswith(f"dn: cn={name},")]
    return "\n".join(line for line in block.splitlines() if line.split(":")[0] in wanted)


@pytest.fixture
def apart(syncing: Syncing, directory: Slapds) -> Syncing:
    """Both were in step; the primary has writes that it took in before it failed, the standby those since."""
    password = syncing.place / "password"
    password.write_text("secret\n")
    configure(syncing, directory, bind_dn=f'"cn=admin,{BASE}"', bind_password_file=f'"{password}"')
    directory.modify("primary", change("p9", "9") + "-\nadd: userPassword\nuserPassword: secret\n")
    base = f'base = "ou=people,{BASE}"'  # ou=new is outside of what the check reads
    syncing.config.write_text(syncing.config.read_text().replace(f'base = "{BASE}"', base))
    time.sleep(SKEW + 1)  # the entries are older than what a clock's error may hide
    ok(syncing.sync())
    record = syncing.state()
    time.sleep(record.took + SKEW + 1)
    directory.modify("primary", change("p1", "of the primary") + "\n" + delete("p2"))
    directory.add("primary", "unsynced", "größer")
    directory.modify(
        "primary",
        f"dn: ou=new,{BASE}\nchangetype: add\nobjectClass: organizationalUnit\nou: new\n\n"
        f"dn: cn=below,ou=new,{BASE}\nchangetype: add\nobjectClass: inetOrgPerson\ncn: below\nsn: below\n"
        "description: x\nuserPassword: {SSHA}abc\n",
    )
    syncing.target, syncing.since = "standby", time.time()
    directory.modify("standby", change("p3", "of the standby") + "\n" + delete("p4"))
    directory.add("standby", "late")
    refused(syncing, syncing.sync("--reverse"), Refusal.BOTH_SERVED, "both servers have changed")
    return syncing


def kept(syncing: Syncing, who: str) -> list[Path]:
    return list((syncing.servers.place / who / "data.sync").glob("kept-*"))


def test_both_servers_keep_their_changes(apart: Syncing, directory: Slapds) -> None:
    """Added, changed and deleted entries of both; an added one keeps its entryUUID; the primary's data is put aside."""
    expected = directory.people("standby") | {"p1": "of the primary", "unsynced": "Z3LDtsOfZXI=", "below": "x"}
    del expected["p2"]
    own = ("entryUUID", "createTimestamp", "userPassword")
    before = attributes(directory, "primary", "below", *own)
    assert before.count("\n") == 2
    said = ok(apart.sync("--merge"))
    assert "5 changes of the primary were applied to the standby" in said
    assert directory.people("standby") == directory.people("primary") == expected
    assert attributes(directory, "standby", "below", *own) == before
    (place,) = kept(apart, "primary")
    assert "dn: cn=unsynced," in (place / "data.ldif").read_text()
    (decided,) = apart.decided
    assert (decided["run"], decided["source"]) == ("merge", "standby")
    assert decided["kept"] == apart.state().kept
    assert decided["kept"].endswith(place.name)
    assert apart.state().problem is None
    assert apart.state().brought_back(apart.since, time.time(), 900)
    ok(apart.sync("--reverse"))
    assert "0 changes of the primary were applied" in ok(apart.sync("--merge"))


def test_the_primary_serves_again(apart: Syncing, directory: Slapds) -> None:
    """The changes go to the server that serves, whichever that is."""
    apart.target, apart.since = "primary", time.time()
    assert "3 changes of the standby were applied to the primary" in ok(apart.sync("--merge"))
    people = directory.people("primary")
    assert directory.people("standby") == people
    assert (people["p1"], people["p3"], people["late"]) == ("of the primary", "of the standby", "new")
    assert not {"p2", "p4"} & people.keys()
    assert kept(apart, "standby")


def test_a_conflict_stops_all(apart: Syncing, directory: Slapds) -> None:
    """Changed on both; deleted here, changed there; added on both; below a deleted one: the list, and no write."""
    directory.modify("standby", change("p1", "of the standby") + "\n" + change("p2", "of the standby"))
    directory.add("standby", "unsynced", "another one")
    directory.modify("primary", change("p4", "of the primary"))
    directory.modify("primary", change("p5", "number 5"))
    data = {who: directory.people(who) for who in ("primary", "standby")}
    shown = apart.sync("--merge")
    assert shown.returncode == State.WARNING, shown.stdout + shown.stderr
    first, *conflicts = shown.stdout.splitlines()
    assert first.startswith("WARNING: 5 conflicts, nothing was written; decide by --take primary --yes or --take ")
    assert conflicts == [
        f"cn=p1,ou=people,{BASE}: changed on both servers",
        f"cn=p2,ou=people,{BASE}: changed on the standby, deleted on the primary",
        f"cn=p4,ou=people,{BASE}: changed on the primary, deleted on the standby",
        f"cn=p5,ou=people,{BASE}: changed on the primary only in attributes that the server itself keeps",
        f"cn=unsynced,ou=people,{BASE}: added on both servers",
    ]
    assert {who: directory.people(who) for who in data} == data
    assert not kept(apart, "primary")
    assert not apart.decided
    problem = apart.state().problem
    assert problem is not None
    assert problem.reason is Refusal.BOTH_SERVED
    ok(apart.sync("--take", "standby", "--yes"))


def test_who_does_not_see_all_merges_nothing(apart: Syncing, directory: Slapds) -> None:
    """An entry that the bind_dn may not read would be lost."""
    directory.configure("standby", f'access to dn.base="cn=p7,ou=people,{BASE}" by * none\naccess to * by * write')
    directory.start()
    apart.config.write_text(apart.config.read_text().replace(f"cn=admin,{BASE}", f"cn=p9,ou=people,{BASE}"))
    before = directory.people("standby")
    refused(apart, apart.sync("--merge"), Refusal.FAILED, "the standby: 51 of 52 entries are seen: may the bind_dn")
    assert directory.people("standby") == before


def test_a_clients_write_meanwhile_is_not_lost(
    apart: Syncing, directory: Slapds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the plan and the change: the run ends there, and the next one finds a conflict."""
    aside = lineage.put_aside

    def late(job: Job, serving: str | None) -> None:
        aside(job, serving)
        directory.modify("standby", change("p1", "of a client"))

    monkeypatch.setattr(lineage, "put_aside", late)
    run.main(["--config", str(apart.config), "--merge", "web"])
    assert f"standby: cn=p1,ou=people,{BASE}: changed there just now; run --merge again" in capsys.readouterr().out
    assert directory.people("standby")["p1"] == "of a client"
    assert directory.people("primary")["p1"] == "of the primary"
    assert f"\ncn=p1,ou=people,{BASE}: changed on both servers\n" in apart.sync("--merge").stdout


def test_what_cannot_be_merged_is_said_first(syncing: Syncing) -> None:
    """No LDAP, no identity that may write."""
    done = syncing.sync("--merge")
    assert done.returncode == State.UNKNOWN
    assert "service 'web': --merge: set bind_dn and bind_password_file in [service.sync]; for LDAP only" in done.stdout
