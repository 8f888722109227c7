"""How failover-sync asks database servers over TLS: always verified, and never in plain where the config says TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal
from tests.lab.apache import certificate
from tests.lab.replicas import TLS_NAME, MariadbReplicas, PostgresqlReplicas, running
from tests.lab.syncing import Syncing, ok, refused, servers_fixture, syncing_fixture  # noqa: F401

pytestmark = pytest.mark.component

Replicas = PostgresqlReplicas | MariadbReplicas
KINDS: dict[str, type[Replicas]] = {"postgresql": PostgresqlReplicas, "mariadb": MariadbReplicas}
PLAIN = {"postgresql": "pg_hba.conf rejects connection", "mariadb": "1045: Access denied"}  # the server wants TLS
NO_TLS = {"postgresql": "Server refuses SSL", "mariadb": "2026: SSL is required but the server doesn't support it"}


@pytest.fixture(name="replicas", params=sorted(KINDS))
def replicas_fixture(syncing: Syncing, request: pytest.FixtureRequest) -> Iterator[Replicas]:
    """A standby that has all of its primary's data; both can speak TLS."""
    with running(KINDS[request.param], syncing) as made:
        made.offer_tls(True)
        yield made


def test_tls_is_verified(syncing: Syncing, replicas: Replicas, tmp_path: Path) -> None:
    """In step over TLS, which both servers require; a wrong CA, a wrong name and a lost file are one line each."""
    replicas.require_tls(True)
    refused(syncing, syncing.sync(), Refusal.FAILED, f"the primary: {PLAIN[replicas.method]}")
    good = f'tls = true\nca_file = "{replicas.tls}/ca.pem"\nserver_name = "{TLS_NAME}"'
    replicas.configure(good)
    replicas.write(replicas.primary)
    ok(syncing.sync())
    assert replicas.rows(replicas.standby) == "1"
    other = tmp_path / "other"
    other.mkdir()
    certificate(other, "server", f"DNS:{TLS_NAME}")
    wrong = "the primary: certificate not accepted: "
    for change, text in (
        ((str(replicas.tls), str(other)), f"{wrong}unable to get local issuer certificate"),
        (("ca.pem", "none.pem"), "none.pem: cannot use as CA certificates: No such file or directory"),
        (
            (TLS_NAME, "other.example.org"),
            f"{wrong}Hostname mismatch, certificate is not valid for 'other.example.org'",
        ),
        ((f'server_name = "{TLS_NAME}"', ""), f"{wrong}IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ):
        replicas.configure(good.replace(*change))
        refused(syncing, syncing.sync(), Refusal.FAILED, text)
    replicas.configure(good)
    ok(syncing.sync())


def test_no_fall_back_to_plain(syncing: Syncing, replicas: Replicas) -> None:
    """A server that offers no TLS, as one that somebody pretends to be: the password is not sent, the run fails."""
    replicas.offer_tls(False)
    ok(syncing.sync())
    replicas.configure(f'tls = true\nca_file = "{replicas.tls}/ca.pem"\nserver_name = "{TLS_NAME}"')
    refused(syncing, syncing.sync(), Refusal.FAILED, f"the primary: {NO_TLS[replicas.method]}")
