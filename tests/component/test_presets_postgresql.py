"""The PostgreSQL preset on two real clusters: dump, load beside the live database, compare, rename, and back."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal
from tests.lab import preset
from tests.lab.postgresql import PASSWORD, Postgresql
from tests.lab.syncing import SHM, Syncing, ok, refused, script, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

HELPER = preset.PRESETS / "failover-postgresql"
Clusters = dict[str, Postgresql]
DATABASE = f"""
CREATE ROLE app LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 5;
CREATE ROLE readers;
CREATE ROLE "odd 'one" LOGIN PASSWORD '{PASSWORD}';
GRANT readers TO "odd 'one";
ALTER ROLE app SET search_path TO shop, public;
CREATE ROLE boss SUPERUSER PASSWORD 'of the primary';
CREATE DATABASE example OWNER app TEMPLATE template0 LOCALE 'C' CONNECTION LIMIT 7;
REVOKE ALL ON DATABASE example FROM PUBLIC;
GRANT CONNECT ON DATABASE example TO readers;
ALTER DATABASE example SET work_mem TO '7MB';
ALTER ROLE app IN DATABASE example SET statement_timeout TO '9s';
COMMENT ON DATABASE example IS 'the site''s own';
"""
SCHEMA = """
CREATE SCHEMA shop AUTHORIZATION app;
SET ROLE app;
CREATE TABLE shop.item (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE shop.log (at timestamptz DEFAULT now(), what text);
CREATE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO shop.log (what) VALUES (NEW.name); RETURN NEW; END $$;
CREATE TRIGGER note AFTER INSERT ON shop.item FOR EACH ROW EXECUTE FUNCTION shop.note();
CREATE VIEW shop.names AS SELECT name FROM shop.item;
GRANT USAGE ON SCHEMA shop TO readers;
GRANT SELECT ON shop.names TO readers;
INSERT INTO shop.item (name) SELECT 'item ' || n FROM generate_series(1, 20) n;
"""
ABOUT = """
SELECT pg_get_userbyid(datdba), datconnlimit, datcollate, pg_encoding_to_char(encoding), datacl,
  shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'example';
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Clusters]:
    """Two empty clusters, for all tests."""
    with tempfile.TemporaryDirectory(dir=SHM, prefix="cfp") as place:
        Path(place).chmod(0o711)  # postgres goes through it
        primary = Postgresql(Path(place, "primary"))
        with primary, Postgresql(Path(place, "standby")) as standby:
            yield {"primary": primary, "standby": standby}


@pytest.fixture
def clusters(syncing: Syncing, running: Clusters) -> Clusters:
    """The primary has the database; the standby none, and none of its roles but another boss."""
    subprocess.run(["/bin/rm", "-rf", str(syncing.primary)], check=True)
    for cluster in running.values():
        cluster.clear()
    assert running["primary"].sql(DATABASE) == ""
    assert running["primary"].sql(SCHEMA, "example") == ""
    running["standby"].sql("CREATE ROLE boss SUPERUSER PASSWORD 'of the standby'")
    configure(syncing, running)
    return running


def configure(syncing: Syncing, clusters: Clusters, **instead: str) -> None:
    """``[service.sync]`` as the preset has it; ``instead``: another script on a server than the shipped helper."""
    for who, cluster in clusters.items():
        text = instead.get(who, f'exec {HELPER} "$@"')
        script(syncing.servers.place / who / "helper", f"export PGHOST={cluster.directory}\n{text}")
    srv = syncing.servers.srv
    changes = {f"{preset.SBIN}/failover-postgresql": f"{srv}/helper", "/var/lib/postgresql-sync": str(srv)}
    syncing.configure(preset.keys("postgresql", changes), source=f"{srv}/export")


def names(cluster: Postgresql, user: str = "app") -> list[str]:
    """What a client finds with its own user and password."""
    return cluster.sql("SELECT name FROM shop.names ORDER BY name", "example", user).splitlines()


def test_a_database_comes_to_the_standby_and_back(syncing: Syncing, clusters: Clusters) -> None:
    """Restore drill: the application works on the other server as it did, with its own user, both ways."""
    primary, standby = clusters["primary"], clusters["standby"]
    ok(syncing.sync())
    assert len(names(standby)) == 20
    assert names(standby) == names(primary)
    assert names(standby, "odd 'one") == names(primary)
    assert standby.sql(ABOUT) == primary.sql(ABOUT)
    assert "app|7|C|UTF8|" in standby.sql(ABOUT)
    for cluster in (primary, standby):
        about = cluster.sql("SHOW work_mem; SHOW statement_timeout; SHOW search_path", "example", "app").split("\n")
        assert about == ["7MB", "9s", "shop, public"]
    assert standby.sql("INSERT INTO item (name) VALUES ('by app')", "example", "app") == ""  # the sequence, the trigger
    assert standby.sql("SELECT count(*) FROM log", "example", "app") == "21"
    assert "permission denied" in standby.sql("DELETE FROM shop.item", "example", "odd 'one")
    password = "SELECT rolpassword FROM pg_authid WHERE rolname = 'boss'"
    assert standby.sql(password) != primary.sql(password)  # a superuser is its own server's

    assert primary.sql("INSERT INTO item (name) VALUES ('new')", "example", "app") == ""
    primary.sql(
        "REVOKE readers FROM \"odd 'one\"; ALTER ROLE app RESET ALL; ALTER DATABASE example SET work_mem TO '8MB'"
    )
    ok(syncing.sync())
    assert "new" in names(standby)
    assert "ERROR" in standby.sql("SELECT", "example", "odd 'one")
    assert standby.sql("SHOW work_mem; SHOW search_path", "example", "app") == '8MB\n"$user", public'
    assert standby.sql(ABOUT) == primary.sql(ABOUT)
    ok(syncing.sync())
    assert not syncing.state().changed

    syncing.target, syncing.since = "standby", time.time()
    assert standby.sql("INSERT INTO shop.item (name) VALUES ('late')", "example", "app") == ""
    ok(syncing.sync("--reverse"))
    assert "late" in names(primary)
    assert names(primary) == names(standby)
    assert primary.sql(ABOUT) == standby.sql(ABOUT)
    assert primary.sql("INSERT INTO shop.item (name) VALUES ('after')", "example", "app") == ""
    assert syncing.state().brought_back(syncing.since, time.time(), 900)


SPOILT = {
    "sed -i '/^8.item 8$/d' $3/dump.sql": "41 of 42 rows were loaded",
    "sed -i 's/^7.item 7$/7/' $3/dump.sql": 'missing data for column "name"',
    "sed -i 's/OWNER TO app/OWNER TO nobody_has_it/' $3/database.sql": 'role "nobody_has_it" does not exist',
    "sed -i \"s/LOCALE = 'C'/LOCALE = 'xx_XX'/\" $3/database.sql": "invalid locale name",
    "sed -i '1s/.*/-- PostgreSQL 99/' $3/database.sql": "dumps load into the same or a later version only",
}


def test_what_does_not_load_is_not_served(syncing: Syncing, clusters: Clusters) -> None:
    """One line says why, and the standby serves what it served."""
    ok(syncing.sync())
    good = names(clusters["standby"])
    clusters["primary"].sql("INSERT INTO shop.item (name) VALUES ('more')", "example")
    count = "if [ $1 = count ]; then echo 42; exit; fi"  # as many as there were before it was damaged
    for spoil, text in SPOILT.items():
        damaging = f'{count}\n{HELPER} "$@" || exit\nif [ $1 = export ]; then {spoil}; fi'
        configure(syncing, clusters, primary=damaging)
        refused(syncing, syncing.sync(), Refusal.FAILED, text)
        assert names(clusters["standby"]) == good


def test_the_copy_before_serves_again(syncing: Syncing, clusters: Clusters) -> None:
    """The site's own step after the renames fails: they are undone, and clients find what they found before."""
    ok(syncing.sync())
    good = names(clusters["standby"])
    clusters["primary"].sql("INSERT INTO shop.item (name) VALUES ('new')", "example")
    once = f"[ $1 = switch ] && [ ! -e {syncing.place}/once ]"
    no = f'if {once}; then : >{syncing.place}/once; echo "the site says no" >&2; exit 5; fi'
    configure(syncing, clusters, standby=f'{HELPER} "$@" || exit\n{no}')
    refused(syncing, syncing.sync(), Refusal.FAILED, "the site says no; the previous copy serves again")
    assert names(clusters["standby"]) == good
    ok(syncing.sync())
    assert "new" in names(clusters["standby"])


def test_a_full_disk_is_seen_before_the_load(syncing: Syncing, clusters: Clusters) -> None:
    """What is free and what is needed, in one line; nothing was loaded."""
    df = script(syncing.place / "df", "echo head; echo 'x 100 90 10 90% /'")
    text = HELPER.read_text().replace("PATH=/usr/bin", f"PATH={df.parent}:/usr/bin")
    configure(syncing, clusters, standby=text)
    refused(syncing, syncing.sync(), Refusal.FAILED, "kB needed to load example beside the one that serves")
    assert clusters["standby"].sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'example%'") == "0"
