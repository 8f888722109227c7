"""The MariaDB preset on two real servers: dump, load beside the live database, compare, move the tables, and back."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal
from tests.lab import preset
from tests.lab.mariadb import Mariadb
from tests.lab.syncing import SHM, Syncing, ok, refused, script, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

HELPER = preset.PRESETS / "failover-mariadb"
Databases = dict[str, Mariadb]
PASSWORD = "secret"
CLEAR = """
DROP DATABASE IF EXISTS example; DROP DATABASE IF EXISTS example_staged; DROP DATABASE IF EXISTS example_before;
DROP DATABASE IF EXISTS example_undone; DROP USER IF EXISTS app@localhost, reader@localhost, boss@localhost;
"""
DATABASE = f"""
CREATE DATABASE example CHARACTER SET latin1 COLLATE latin1_german1_ci;
CREATE USER app@localhost IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON example.* TO app@localhost WITH GRANT OPTION;
CREATE USER reader@localhost IDENTIFIED BY '{PASSWORD}';
CREATE USER boss@localhost IDENTIFIED BY 'of the primary'; GRANT ALL ON *.* TO boss@localhost;
USE example;
CREATE TABLE kind (id INT PRIMARY KEY);
CREATE TABLE item (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(99) NOT NULL, kind INT,
  FOREIGN KEY (kind) REFERENCES kind (id));
CREATE TABLE log (what TEXT, raw BLOB);
CREATE VIEW names AS SELECT name FROM item;
CREATE DEFINER = app@localhost TRIGGER note AFTER INSERT ON item FOR EACH ROW
  INSERT INTO log VALUES (NEW.name, x'00ff27');
CREATE DEFINER = app@localhost FUNCTION answer() RETURNS INT RETURN 42;
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY DO DELETE FROM log WHERE FALSE;
GRANT SELECT ON example.names TO reader@localhost; GRANT EXECUTE ON FUNCTION example.answer TO reader@localhost;
INSERT INTO kind VALUES (1), (2);
INSERT INTO item (name, kind) VALUES ('one', 1), ('two (\\n);', 2), ('größer', 2), ('(', NULL);
"""
ABOUT = """
SELECT TABLE_TYPE, TABLE_NAME, TABLE_COLLATION, AUTO_INCREMENT FROM information_schema.TABLES
  WHERE TABLE_SCHEMA = 'example' AND TABLE_NAME <> '_failover_copy' ORDER BY 2;
SELECT DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = 'example';
SELECT EVENT_NAME, STATUS FROM information_schema.EVENTS; SELECT what, HEX(raw) FROM example.log;
SELECT TRIGGER_NAME, DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = 'example';
SHOW GRANTS FOR app@localhost; SHOW GRANTS FOR reader@localhost;
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Databases]:
    """Two servers without a database, for all tests."""
    with tempfile.TemporaryDirectory(dir=SHM, prefix="cfm") as place:
        Path(place).chmod(0o711)
        made = {who: Mariadb(Path(place, who), "other", user="nobody", accounts=True) for who in ("primary", "standby")}
        with made["primary"], made["standby"]:
            yield made


@pytest.fixture
def databases(syncing: Syncing, running: Databases) -> Databases:
    """The primary has the database; the standby none, and none of its accounts but another boss."""
    subprocess.run(["/bin/rm", "-rf", str(syncing.primary)], check=True)
    for server in running.values():
        assert server.sql(CLEAR) == ""
    assert running["primary"].sql(DATABASE) == ""
    running["standby"].sql("CREATE USER boss@localhost IDENTIFIED BY 'of the standby'")
    configure(syncing, running)
    return running


def configure(syncing: Syncing, databases: Databases, **instead: str) -> None:
    """``[service.sync]`` as the preset has it; ``instead``: another script on a server than the shipped helper."""
    for who, server in databases.items():
        text = instead.get(who, f'exec {HELPER} "$@"')
        (syncing.servers.place / who / "my.cnf").write_text(f"[client]\nsocket = {server.socket}\n")
        script(syncing.servers.place / who / "helper", f"export MY_CNF={syncing.servers.srv}/my.cnf\n{text}")
    srv = syncing.servers.srv
    changes = {f"{preset.SBIN}/failover-mariadb": f"{srv}/helper", "/var/lib/mysql-sync": str(srv)}
    syncing.configure(preset.keys("mysql", changes), source=f"{srv}/export")


def asked(server: Mariadb, statements: str, user: str = "app") -> str:
    """What a client gets with its own account and password."""
    return server.sql(statements, "example", user, PASSWORD)


def names(server: Mariadb) -> list[str]:
    """What the application finds."""
    return asked(server, "SELECT name FROM names ORDER BY name").splitlines()


def test_a_database_comes_to_the_standby_and_back(syncing: Syncing, databases: Databases) -> None:
    """Restore drill: the application works on the other server as it did, with its own account, both ways."""
    primary, standby = databases["primary"], databases["standby"]
    ok(syncing.sync())
    assert len(names(standby)) == 4
    assert names(standby) == names(primary)
    assert asked(standby, "SELECT name FROM names ORDER BY name; SELECT answer()", "reader").splitlines() == [
        *names(primary),
        "42",
    ]
    assert "denied" in asked(standby, "SELECT * FROM item", "reader")
    assert standby.sql(ABOUT) == primary.sql(ABOUT)
    assert "nightly\tENABLED" in standby.sql(ABOUT)
    boss = "SHOW CREATE USER boss@localhost"
    assert standby.sql(boss) != primary.sql(boss)  # who may everything is each server's own
    assert asked(standby, "INSERT INTO item (name, kind) VALUES ('by app', 1)") == ""
    assert asked(standby, "SELECT COUNT(*) FROM log") == "5"  # the trigger
    assert "foreign key" in asked(standby, "INSERT INTO item (name, kind) VALUES ('x', 9)")

    assert asked(primary, "INSERT INTO item (name) VALUES ('new')") == ""
    assert primary.sql("REVOKE EXECUTE ON FUNCTION answer FROM reader@localhost; DROP EVENT nightly", "example") == ""
    ok(syncing.sync("--accept-shrink"))  # of 10 kB an event is more than a tenth
    assert "new" in names(standby)
    assert "by app" not in names(standby)
    assert standby.sql(ABOUT) == primary.sql(ABOUT)
    ok(syncing.sync())
    assert not syncing.state().changed

    syncing.target, syncing.since = "standby", time.time()
    assert asked(standby, "INSERT INTO item (name) VALUES ('late')") == ""  # what is served, not the copy's file
    ok(syncing.sync("--reverse"))
    assert "late" in names(primary)
    assert names(primary) == names(standby)
    assert primary.sql(ABOUT) == standby.sql(ABOUT)
    assert asked(primary, "INSERT INTO item (name) VALUES ('after')") == ""
    assert syncing.state().brought_back(syncing.since, time.time(), 900)


SPOILT = {
    "sed -i '/^(1,.one.,1),$/d' $3/tables.sql": "11 of 12 rows were loaded",
    "sed -i 's/^(2,.*/(2,3),/' $3/tables.sql": "Column count doesn't match value count",
    "sed -i 's/return 42/return no_such_thing(/I' $3/code.sql": "You have an error in your SQL syntax",
    "sed -i 's/COLLATE.*/COLLATE no_such_ci/' $3/database": "Unknown collation",
}


def test_what_does_not_load_is_not_served(syncing: Syncing, databases: Databases) -> None:
    """One line says why, and the standby serves what it served."""
    ok(syncing.sync())
    good = names(databases["standby"])
    asked(databases["primary"], "INSERT INTO item (name) VALUES ('more')")
    count = "if [ $1 = count ]; then echo 12; exit; fi"  # as many as there were before it was damaged
    for spoil, text in SPOILT.items():
        damaging = f'{count}\n{HELPER} "$@" || exit\nif [ $1 = export ]; then {spoil}; fi'
        configure(syncing, databases, primary=damaging)
        refused(syncing, syncing.sync(), Refusal.FAILED, text)
        assert names(databases["standby"]) == good


def test_the_previous_copy_serves_again(syncing: Syncing, databases: Databases) -> None:
    """The site's own step after the move fails: it is undone, code and all, while a client's transaction is open."""
    standby = databases["standby"]
    ok(syncing.sync())
    about = standby.sql(ABOUT)
    asked(databases["primary"], "INSERT INTO item (name) VALUES ('new'); DROP FUNCTION answer")
    once = f"[ $1 = switch ] && [ ! -e {syncing.place}/once ]"
    no = f'if {once}; then : >{syncing.place}/once; echo "the site says no" >&2; exit 5; fi'
    configure(syncing, databases, standby=f'{HELPER} "$@" || exit\n{no}')
    client = ["/usr/bin/mariadb", "--no-defaults", "-S", str(standby.socket), "-uapp", f"-p{PASSWORD}", "-n", "example"]
    with subprocess.Popen(
        client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        assert it.stdin is not None
        assert it.stdout is not None
        it.stdin.write("BEGIN; SELECT COUNT(*) FROM item;\n")
        it.stdin.flush()
        assert it.stdout.readline()
        refused(syncing, syncing.sync(), Refusal.FAILED, "the site says no; the previous copy serves again")
        it.kill()
    assert standby.sql(ABOUT) == about
    assert asked(standby, "SELECT answer()") == "42"
    ok(syncing.sync())
    assert "new" in names(standby)
    assert "does not exist" in asked(standby, "SELECT answer()")


def test_a_full_disk_is_seen_before_the_load(syncing: Syncing, databases: Databases) -> None:
    """What is free and what is needed, in one line; nothing was loaded."""
    df = script(syncing.place / "df", "echo head; echo 'x 100 90 10 90% /'")
    text = HELPER.read_text().replace("PATH=/usr/bin", f"PATH={df.parent}:/usr/bin")
    configure(syncing, databases, standby=text)
    refused(syncing, syncing.sync(), Refusal.FAILED, "kB needed to load example beside the one that serves")
    assert databases["standby"].sql("SHOW DATABASES LIKE 'example%'") == ""
