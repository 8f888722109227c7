"""Servers that replicate by themselves: GTIDs, and peers that send without an end, slowly, or rubbish."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.checks import ProbeError
from check_failover.config import load
from check_failover.model import Endpoint, Service, SyncSpec
from check_failover.sync import replicated
from check_failover.sync.hosts import SyncStepError
from check_failover.syncstate import SyncDirection
from tests.unit.test_sync_config import with_sync

FLOODS = {"postgresql": b"N\x00\x00\x20\x04" + bytes(0x2000), "mariadb": b"\xff\xff\xff\x00" + b"x" * 0x2000}


@pytest.mark.parametrize(
    ("text", "server", "found"),
    [
        (None, None, {}),
        ("", None, {}),
        ("0-1-270", None, {"0": 270}),
        ("0-1-270,1-2-9,0-2-300", None, {"0": 300, "1": 9}),
        ("0-1-270,\n1-2-9", 1, {"0": 270}),
        ("rubbish", None, {}),
    ],
)
def test_gtids(text: str | None, server: int | None, found: dict[str, int]) -> None:
    """The highest of each domain; only one server's, if asked for."""
    assert replicated._gtids(text, server) == found


@contextmanager
def peer(speak: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on loopback that sends what ``speak`` sends to each client; yields its port."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with suppress(OSError), client:
                    speak(client)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def service(tmp_path: Path, method: str, port: int) -> tuple[Service, SyncSpec]:
    """A service whose primary is at that port."""
    (tmp_path / "secret").write_text("secret\n")
    table = f'method = "{method}"\nuser = "monitor"\npassword_file = "{tmp_path}/secret"'
    found = replace(load(with_sync(tmp_path, table)).services[0], primary=Endpoint("127.0.0.1", port))
    assert found.sync is not None
    return found, found.sync


@pytest.mark.parametrize("method", sorted(replicated.METHODS))
def test_a_flood_ends(tmp_path: Path, method: str) -> None:
    """A server that sends without an end is cut off at the size."""

    def flood(client: socket.socket) -> None:
        while True:
            client.sendall(FLOODS[method])

    with (
        peer(flood) as port,
        pytest.raises(SyncStepError, match=f"the primary: sends more than {replicated._ROOM} bytes"),
    ):
        replicated.databases(*service(tmp_path, method, port), SyncDirection.FORWARD, 20.0)


@pytest.mark.parametrize("method", sorted(replicated.METHODS))
def test_a_trickle_ends(tmp_path: Path, method: str) -> None:
    """A server that sends a byte now and then is late, however often it sends."""

    def trickle(client: socket.socket) -> None:
        for byte in FLOODS[method]:
            client.sendall(bytes([byte]))
            time.sleep(0.05)

    began = time.monotonic()
    with peer(trickle) as port, pytest.raises(SyncStepError, match="the primary: no answer in time"):
        replicated.databases(*service(tmp_path, method, port), SyncDirection.FORWARD, 1.0)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("method", sorted(replicated.METHODS))
def test_rubbish_is_one_line(tmp_path: Path, method: str) -> None:
    """What is no such protocol makes the libraries raise any exception."""
    rubbish = b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9
    with peer(lambda client: client.sendall(rubbish)) as port, pytest.raises(SyncStepError) as caught:
        replicated.databases(*service(tmp_path, method, port), SyncDirection.FORWARD, 5.0)
    assert str(caught.value).startswith("the primary: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("method", "library"), [("postgresql", "pg8000"), ("mariadb", "pymysql")])
def test_a_missing_library_names_the_extra(
    tmp_path: Path, method: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with peer(lambda _client: None) as port, pytest.raises(ProbeError, match=rf"check_failover\[{method}\]"):
        replicated.databases(*service(tmp_path, method, port), SyncDirection.FORWARD, 5.0)
