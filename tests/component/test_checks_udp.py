"""The UDP probe: sends, expects, and hears an ICMP port unreachable."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_failover.checks import ProbeError, udp
from check_failover.config import ConfigError, load
from check_failover.model import Endpoint, Probe, State
from tests.lab.scripted import HOST, ScriptedUdp, closed_port
from tests.unit.test_plugins import proper, run


def ask(options: dict[str, object], port: int, timeout: float = 2.0, host: str = HOST) -> Probe:
    return udp.probe(Endpoint(host, port), {"send": "hello", **options}, timeout)


@pytest.mark.parametrize(
    ("options", "answers", "passes", "said"),
    [
        ({}, [b"anything"], True, "answers as expected"),
        ({}, [b""], True, "answers as expected"),
        ({"expect": "you"}, [b"how do you do"], True, "answers as expected"),
        ({"expect": r"\xff\x00"}, [b"\xff\x00"], True, "answers as expected"),
        ({"expect": "two"}, [b"one", b"two"], True, "answers as expected"),
        ({"expect": "you"}, [b"no | such\nthing"], False, "expected 'you', got 'no / such thing'"),
        ({}, [], False, "no answer in time"),
        ({"expect": "you"}, [], False, "no answer in time"),
    ],
    ids=str,
)
@pytest.mark.parametrize("host", [HOST, "::1"])
def test_send_and_expect(options: dict[str, object], answers: list[bytes], passes: bool, said: str, host: str) -> None:
    """One of the answers must have the text; any will do where none is expected."""
    with ScriptedUdp(lambda asked: answers if asked == b"hello" else [], host) as server:
        probe = ask(options, server.port, 2.0 if passes else 0.2, host)
        assert (probe.passed, probe.text) == (passes, said)


def test_refused() -> None:
    """Where nobody listens the host says so, and that is an answer."""
    probe = ask({}, closed_port())
    assert (probe.passed, probe.refused, probe.text) == (False, True, "connection refused")
    assert probe.seconds < 1.0


def test_chatter_does_not_outlive_the_deadline() -> None:
    """A flood of wrong answers has the same deadline as silence."""

    def chatter(_asked: bytes) -> list[bytes]:
        time.sleep(0.01)
        return [b"no"]

    with ScriptedUdp(lambda asked: (chatter(asked)[0] for _ in range(200))) as server:
        began = time.monotonic()
        assert not ask({"expect": "yes"}, server.port, 0.3).passed
        assert time.monotonic() - began < 0.6


@settings(max_examples=50, deadline=None)
@given(garbage=st.binary(max_size=100))
def test_garbage_is_shown_in_order(garbage: bytes) -> None:
    """Nothing that a server says can leave the line it stands in."""
    with ScriptedUdp(lambda asked: [garbage]) as server:
        probe = ask({"expect": "such a text will not come up"}, server.port, 0.02)
    assert not probe.passed
    assert probe.text.isprintable()
    assert "|" not in probe.text


def test_a_datagram_too_big_is_our_own_fault() -> None:
    """What cannot be sent says nothing about the server."""
    with pytest.raises(ProbeError, match="too long"):
        udp.probe(Endpoint(HOST, closed_port()), {"send": "x" * 70000}, 0.5)


def test_plugin(tmp_path: Path) -> None:
    """The shipped program, by hand and from the config."""
    with ScriptedUdp(lambda asked: [asked.upper()]) as server:
        where = ("-H", HOST, "-p", str(server.port))
        proper(run("udp", *where, "--send", "ping", "--expect", "PING"), State.OK)
        proper(run("udp", *where, "--send", "ping", "--expect", "pong", "-t", "1"), State.CRITICAL)
        proper(run("udp", *where), State.UNKNOWN)
        config = tmp_path / "config.toml"
        text = (
            '[[service]]\nname = "echo"\nhost = "h"\nprotocol = "udp"\naddress = "192.0.2.1"\nport = 7\n'
            f'primary = "{HOST}:{server.port}"\nstandby = "{HOST}:{closed_port()}"\n'
            '[service.check]\ntype = "udp"\nsend = "ping"\nexpect = "PING"\n'
        )
        config.write_text(text)
        where = ("--config", str(config), "--service", "echo")
        proper(run("udp", *where), State.OK)
        proper(run("udp", *where, "--target", "standby"), State.CRITICAL)
    config.write_text(text.replace('send = "ping"\n', ""))
    with pytest.raises(ConfigError, match="'send' is a required property"):
        load(config)
