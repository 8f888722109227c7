"""Results for a core on another machine: what NRDP and an NSCA client are given, and what each of their faults says."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover.config import ConfigError, load
from check_failover.model import PassiveResult, State
from check_failover.transports import SIZE, TRANSPORTS, TransportError, output
from tests.lab.apache import certificate
from tests.lab.nrdp import TOKEN, NrdpServer

GOOD = Path(__file__).parent.parent / "fixtures" / "config" / "good.toml"
NOW = 1_700_000_000.0


def result(text: str = "CRITICAL: gone", service: str = "ldap primary", **more: object) -> PassiveResult:
    fields: dict[str, object] = {"host": "h", "service": service, "state": State.CRITICAL, "text": text, "at": NOW}
    return PassiveResult(**(fields | more))  # type: ignore[arg-type]


def test_output_is_a_plugins() -> None:
    """First line, perfdata, further lines; a result that had to wait tells when it was made."""
    made = result(perfdata="probes=2", details="one\ntwo\x17\t")
    assert output(made, NOW + 1) == "CRITICAL: gone|probes=2\none\ntwo  "
    kept = output(made, NOW + 100).splitlines()
    assert kept[0] == "CRITICAL: gone|probes=2"
    assert kept[1] == f"of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(NOW))}, kept while the core was away"


@given(text=st.text(max_size=5000), details=st.text(max_size=5000))
def test_any_output_is_bounded_and_printable(text: str, details: str) -> None:
    """Whatever a server said: no separator of a client's format, and not more than one write to the core."""
    made = output(result(text, details=details), NOW)
    assert len(made.encode()) <= SIZE
    assert not set(made) & set("\t\r\x17\x00\x1b")


# ---------------------------------------------------------------- NRDP


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NrdpServer]:
    with NrdpServer(tmp_path, "127.0.0.1") as running:
        yield running


def nrdp(server: NrdpServer, **more: Any) -> Any:
    options = {"url": server.url, "token_file": str(server.token_file), "ca_file": str(server.ca_file)}
    return TRANSPORTS["nrdp"](options | more)


def test_one_post_for_several_results(server: NrdpServer) -> None:
    """As NRDP documents submitcheck; newlines real, backslashes doubled, order kept."""
    made = time.time()
    nrdp(server).send([result("a\\n", at=made, details="x\ny"), result("b", "ldap redirect", state=State.OK, at=made)])
    assert server.posts == 1
    assert server.commands == [
        "PROCESS_SERVICE_CHECK_RESULT;h;ldap primary;2;a\\\\n\\nx\\ny",
        "PROCESS_SERVICE_CHECK_RESULT;h;ldap redirect;0;b",
    ]


def test_moods_of_an_nrdp_server(server: NrdpServer, tmp_path: Path) -> None:
    """Wrong token, somebody else's page, a redirect, nobody there: one line each, and nothing counts as taken."""
    wrong = tmp_path / "wrong"
    wrong.write_text("guess\n")
    with pytest.raises(TransportError, match=r"not accepted: BAD TOKEN; check the token in .*wrong"):
        nrdp(server, token_file=str(wrong)).send([result()])
    with pytest.raises(TransportError, match="cannot read the secret: No such file"):
        nrdp(server, token_file="/nonexistent").send([result()])
    for status, body, said in (
        (200, b"<html>welcome</html>", "the answer is not from NRDP 1.5"),
        (200, b"[]", "the answer is not from NRDP 1.5"),
        (500, b"{}", "HTTP 500"),
        (302, b"", "HTTP 302"),
    ):
        server.answers.append((status, body))
        with pytest.raises(TransportError, match=said):
            nrdp(server).send([result()])
    assert server.commands == []
    server.stop()
    with pytest.raises(TransportError, match="connection refused"):
        nrdp(server).send([result()])


def test_an_nrdp_server_that_nobody_vouches_for(
    server: NrdpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token goes to nobody whose certificate the site's CA did not sign, whatever the environment says."""
    other = tmp_path / "other"
    other.mkdir()
    certificate(other, "server", "IP:127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.ca_file))
    with pytest.raises(TransportError, match="certificate not accepted"):
        nrdp(server, ca_file=str(other / "ca.pem")).send([result()])
    assert server.posts == 0


def test_the_strict_server_is_strict(server: NrdpServer) -> None:
    """What the tests lean on: it refuses a form that NRDP would misread."""
    import requests

    def post(**form: str) -> dict[str, Any]:
        answer = requests.post(server.url, data=form, verify=str(server.ca_file), timeout=5)
        found: dict[str, Any] = answer.json()["result"]
        return found

    assert post(token=TOKEN, cmd="submitcheck", json="{")["message"] == "BAD JSON"
    row = {"checkresult": {"type": "service"}, "hostname": "h", "servicename": "s", "state": "9", "output": "x"}
    assert post(token=TOKEN, cmd="submitcheck", json=json.dumps({"checkresults": [row]}))["status"] == -1
    assert server.commands == []


# ---------------------------------------------------------------- NSCA


def client(tmp_path: Path, script: str) -> Any:
    program = tmp_path / "send_nsca"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return TRANSPORTS["nsca"]({"send_nsca": [str(program), "-c", "my file"], "timeout": 1.0})


def test_one_call_for_several_results(tmp_path: Path) -> None:
    """As send_nsca(8) wants it: tabs, a newline, ETB between two; arguments as they are."""
    made = time.time()
    transport = client(tmp_path, f'cat > {tmp_path}/in; printf "%s|" "$@" > {tmp_path}/arguments')
    transport.send([result("a\tb", at=made, details="x"), result("c", "ldap redirect", state=State.OK, at=made)])
    assert (tmp_path / "in").read_bytes() == b"h\tldap primary\t2\ta b\nx\n\x17h\tldap redirect\t0\tc\n"
    assert (tmp_path / "arguments").read_text() == "-c|my file|"


def test_moods_of_an_nsca_client(tmp_path: Path) -> None:
    """It fails, says nothing, hangs, is not there: one line each."""
    with pytest.raises(TransportError, match=r"send_nsca: .FATAL. TLS error$"):
        client(tmp_path, "echo '[FATAL] TLS error' >&2; echo more >&2; exit 1").send([result()])
    with pytest.raises(TransportError, match=r"send_nsca: exit code 7$"):
        client(tmp_path, "exit 7").send([result()])
    with pytest.raises(TransportError, match="no answer from the NSCA server within 1 s"):
        client(tmp_path, "exec sleep 30").send([result()])
    with pytest.raises(TransportError, match="cannot run: No such file"):
        TRANSPORTS["nsca"]({"send_nsca": ["/nonexistent"]}).send([result()])


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('transport = "nrdp"', r"\$\.monitoring: 'url' is a required property"),
        ('transport = "nrdp"\nurl = "https://core/nrdp/"', r"'token_file' is a required property"),
        ('transport = "nrdp"\nurl = "core"\ntoken_file = "/t"', r"\$\.monitoring\.url: 'core' does not match"),
        ('transport = "nsca"', r"\$\.monitoring: 'send_nsca' is a required property"),
        (
            'transport = "nsca"\nsend_nsca = "send_nsca"',
            r"\$\.monitoring\.send_nsca: 'send_nsca' is not of type 'array'",
        ),
        (
            'transport = "nsca"\nsend_nsca = ["send_nsca"]',
            r"\$\.monitoring\.send_nsca\[0\]: 'send_nsca' does not match",
        ),
        ("core_deadline = 0", r"\$\.monitoring\.core_deadline: 0 is less than or equal to the minimum of 0"),
    ],
)
def test_what_a_config_must_have(tmp_path: Path, table: str, said: str) -> None:
    """A way to the core that could never work is refused when the config is read."""
    path = tmp_path / "config.toml"
    text = GOOD.read_text()
    path.write_text(
        text.replace('transport = "command_file"', table)
        if "transport" in table
        else text.replace('transport = "command_file"', f'transport = "command_file"\n{table}')
    )
    with pytest.raises(ConfigError, match=said):
        load(path)


def test_every_core_has_a_deadline(tmp_path: Path) -> None:
    """A core that is alive may still order nothing: its event handler cannot be run, or is switched off."""
    path = tmp_path / "config.toml"
    path.write_text(GOOD.read_text())
    assert load(path).monitoring["core_deadline"] == 5.0
    path.write_text(GOOD.read_text().replace('"command_file"', '"nsca"\nsend_nsca = ["/usr/sbin/send_nsca"]'))
    assert load(path).monitoring["core_deadline"] == 5.0
