"""Any Monitoring Plugin as a probe: real ones, and some that hang, fork, or talk without end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from check_failover.checks import ProbeError, external
from check_failover.config import ConfigError, load
from check_failover.model import Endpoint, Probe
from tests.lab.netns import poll
from tests.lab.scripted import HOST, Scripted, closed_port
from tests.unit.test_plugins import ROOT

PLUGINS = "/usr/lib/nagios/plugins"


def ask(*command: str, port: int = 1, timeout: float = 2.0) -> Probe:
    return external.probe(Endpoint(HOST, port), {"command": list(command)}, timeout)


def script(text: str, timeout: float = 2.0) -> Probe:
    return ask("/bin/sh", "-c", text, timeout=timeout)


def test_a_real_plugin() -> None:
    """check_tcp of the Monitoring Plugins, against a server and against none."""
    tcp = (f"{PLUGINS}/check_tcp", "-H", "{address}", "-p", "{port}", "-e", "220")
    with Scripted(lambda client: client.sendall(b"220 hello\r\n")) as server:
        probe = ask(*tcp, port=server.port)
        assert probe.passed, probe.text
        assert probe.text.startswith("TCP OK - ")
        assert "|" not in probe.text
    probe = ask(*tcp, port=closed_port())
    assert not probe.passed
    assert "onnection refused" in probe.text


@pytest.mark.parametrize(
    ("text", "passes", "said"),
    [
        ("echo 'FINE - all well | time=1s'; echo more; exit 0", True, "FINE - all well"),
        ("echo slow; exit 1", True, "slow"),
        ("printf 'DEAD \\001 as \\377'; exit 2", False, "DEAD as �"),
        ("exit 2", False, "CRITICAL without a word"),
        ("exit 0", True, "OK without a word"),
        ("echo out; echo err >&2; cat", True, "out"),
        ('echo "$LC_ALL $PWD"', True, "C /"),
        ("(trap '' HUP; sleep 60) & echo left a child behind; exit 0", True, "left a child behind"),
        ("head -c 3000000 /dev/zero | tr '\\0' x; exit 1", True, "x" * 160),
    ],
)
def test_exit_codes_and_first_lines(text: str, passes: bool, said: str) -> None:
    """0 and 1 pass, 2 fails; the first line, without perfdata, is the text."""
    probe = script(text)
    assert (probe.passed, probe.text) == (passes, said)
    assert probe.seconds < 1.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo no such option; exit 3", "/bin/sh: exit code 3: no such option"),
        ("exit 4", "/bin/sh: exit code 4"),
        ("nothing_of_this_name", "/bin/sh: exit code 127"),
        ("kill -SEGV $$", "/bin/sh: ended by signal 11"),
    ],
)
def test_unknown_is_no_failure_of_the_server(text: str, said: str) -> None:
    """A plugin that does not know, or dies, proves nothing."""
    with pytest.raises(ProbeError) as caught:
        script(text)
    assert str(caught.value) == said


def test_what_cannot_be_run(tmp_path: Path) -> None:
    """A missing or broken plugin is our own fault."""
    (tmp_path / "garbage").write_bytes(b"\x00\x01")
    (tmp_path / "garbage").chmod(0o755)
    for program, reason in (("/nowhere", "No such file"), (str(tmp_path), "denied"), (f"{tmp_path}/garbage", "format")):
        with pytest.raises(ProbeError, match=f"{program}: cannot run: .*{reason}"):
            ask(program)


def test_nothing_reaches_a_shell() -> None:
    """Arguments arrive as they are; only {address} and {port} are replaced."""
    odd = ["$HOME `id` ; x", "{port}{address}{other}", "%s", "", "'"]
    probe = ask("/usr/bin/printf", "<%s>", *odd, port=389)
    assert probe.text == "<$HOME `id` ; x><389127.0.0.1{other}><%s><><'>"


def test_late_is_a_failure_and_ends_the_group(tmp_path: Path) -> None:
    """A plugin that hangs waits for the server; it and its children are killed."""
    pids = tmp_path / "pids"
    began = time.monotonic()
    probe = script(f"trap '' TERM; sleep 60 & echo $$ $! >{pids}; wait; sleep 60", timeout=0.1)
    assert (probe.passed, probe.text) == (False, "no answer in time")
    assert time.monotonic() - began < external.STARTING + 0.6
    for pid in pids.read_text().split():
        poll(lambda at=Path(f"/proc/{pid}/stat"): _gone(at), 2.0, f"{pid} is gone")  # type: ignore[misc]


def _gone(stat: Path) -> bool:
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"  # its new parent has not looked yet
    except OSError:
        return True


def test_output_without_end(tmp_path: Path) -> None:
    """Endless talk costs the time limit and no memory to speak of."""
    probe = script("while :; do echo talk; done", timeout=0.1)
    assert (probe.passed, probe.text) == (False, "no answer in time")


def test_no_capability_is_handed_down() -> None:
    """The sniffer's CAP_NET_RAW is its own; a plugin has no privilege."""
    capability = ["--inh-caps", "+net_raw", "--ambient-caps", "+net_raw"]
    code = (
        "from check_failover.checks import external; from check_failover.model import Endpoint\n"
        "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])\n"
        "spec = {'command': ['/bin/grep', 'CapEff', '/proc/self/status']}\n"
        "print(external.probe(Endpoint('127.0.0.1', 1), spec, 5.0).text)"
    )
    done = subprocess.run(
        ["/usr/bin/setpriv", "--reuid", "nobody", "--clear-groups", *capability, sys.executable, "-c", code],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["0000000000002000", "CapEff: 0000000000000000"], done.stderr


CONFIG = """\
[[service]]
name = "mail"
host = "h"
protocol = "tcp"
address = "192.0.2.1"
port = 25
primary = "10.0.0.11"
standby = "10.0.0.12"
[service.check]
type = "plugin"
command = {command}
"""


@pytest.mark.parametrize(
    ("command", "good"),
    [
        ('["/usr/lib/nagios/plugins/check_smtp", "-H", "{address}", ""]', True),
        ('["check_smtp"]', False),
        ("[]", False),
        ('"/usr/lib/nagios/plugins/check_smtp"', False),
        ('["/x", "a\\nb"]', False),
        ('["/x", "a\\n"]', False),
        ('["/x\\n"]', False),
        ('["/x", 1]', False),
    ],
)
def test_config(tmp_path: Path, command: str, good: bool) -> None:
    """An argument list, its program by absolute path, on one line."""
    (tmp_path / "config.toml").write_text(CONFIG.replace("{command}", command))
    if good:
        assert load(tmp_path / "config.toml").services[0].check.type == "plugin"
        return
    with pytest.raises(ConfigError, match=r"\$\.service\[0\]\.check\.command"):
        load(tmp_path / "config.toml")
