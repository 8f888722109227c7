"""Every shipped plugin and handler keeps the conventions. Read from setup.cfg, so that a new one is covered unnamed.

Each is run as the core runs it: its entry point in a process of its own, under LC_ALL=C. A driver imports it once and
forks for each command line, so that thousands of them take seconds.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from check_failover.checks import PROBES
from check_failover.model import State
from tests.lab.guidelines import first_line
from tests.lab.registry import EXAMPLES
from tests.lab.scripted import Scripted, closed_port, silent

ROOT = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
ENTRIES = dict(re.findall(r"^(\S+) = (\S+)$", SETUP["options.entry_points"]["console_scripts"], re.MULTILINE))
PLUGINS = {name: entry for name, entry in ENTRIES.items() if name.startswith("check_")}
HANDLERS = {
    Path(path).name: re.sub(r"(?s).*from (\S+) import (\w+).*", r"\1:\2", (ROOT / path).read_text())
    for path in SETUP["options"]["scripts"].split()
}
PROGRAMS = PLUGINS | HANDLERS
LIMIT = 20.0  # seconds for one run, whatever the load of the machine

DRIVER = """
import importlib, json, os, signal, sys, tempfile
name, module, function = sys.argv[1:]
main = getattr(importlib.import_module(module), function)
def child(argv, out, err):
    os.dup2(out.fileno(), 1); os.dup2(err.fileno(), 2)
    sys.argv = [name, *argv]
    signal.alarm(LIMIT)  # ends a run that never ends, unless it sets its own
    try:
        sys.exit(main())
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(code)
for argv in json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogateescape")):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            child(argv, out, err)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode("utf-8", "backslashreplace"))
    print(json.dumps([code, *said]), flush=True)
""".replace("LIMIT", str(int(LIMIT)))

# What a person, a macro or an attacker may put behind an option.
BAD = ["", "nan", "9" * 400, "a|b\nü", "\udcff"]
# they answer and end; a name that is looked up, for as long as the resolver likes; a wait as long as asked for
UNTRIED = ("--help", "--version", "--flush", "--hostname", "--patience")
NOT_TIMES = ["never", "-1", "0", "nan", "inf", "", "1e999"]
NOT_RANGES = ["a:b", "5:1:2", "", "@", "ü"]


def run_all(name: str, argvs: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_")} | {"LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, name, *PROGRAMS[name].split(":")],
        input=json.dumps(argvs).encode(),
        capture_output=True,
        timeout=(2 + len(argvs)) * LIMIT,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def run(name: str, *argv: str) -> tuple[int, str, str]:
    return run_all(name, [argv])[0]


def options(name: str) -> list[str]:
    """The long options that its help names."""
    found = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", run(name, "--help")[1])))
    assert found
    return found


def proper(name: str, argv: Sequence[str], done: tuple[int, str, str], *states: State) -> str:
    """The output keeps the rules and the exit code is one of ``states``; returns the output."""
    code, out, err = done
    assert "Traceback" not in out + err, (argv, out, err)
    assert "internal error" not in out, (argv, out)
    if name in PLUGINS:
        assert code in states, (argv, code, out, err)
        first_line(out, code)
    else:
        assert code in (0, 1, 3), (argv, code, out, err)
        assert out.count("\n") >= 1, (argv, "says nothing")
    return out


CONFIG = """\
[controller]
run_dir = "{run_dir}"
state_dir = "{run_dir}"
[sms]
gateway = "kannel"
url = "http://127.0.0.1:{port}/"
"""
SERVICE = """\
[[service]]
name = "{name}"
host = "h"
protocol = "{protocol}"
address = "192.0.2.1"
port = {number}
primary = "127.0.0.1:{port}"
standby = "127.0.0.2:{port}"
[service.check]
type = "{name}"
{options}
"""


def config(directory: Path, port: int) -> Path:
    """A config with a service of every check type, named like it, whose servers are at ``port``."""
    text = CONFIG.format(run_dir=directory, port=port)
    for number, name in enumerate(PROBES, 1):
        protocol = "udp" if name in ("dns", "udp") else "tcp"
        options = EXAMPLES[name].replace("{command}", '["/bin/true"]')
        text += SERVICE.format(name=name, protocol=protocol, number=number, port=port, options=options)
    (directory / "config.toml").write_text(text)
    return directory / "config.toml"


def usual(name: str, path: Path) -> list[str]:
    """The options with which the core would run it."""
    if name in HANDLERS:
        return HANDLED[name] + (["--config", str(path)] if name == "failover_sms" else [])
    known, kind = options(name), name.removeprefix("check_failover_")
    argv = ["--config", str(path)]
    argv += ["--service", kind if kind in PROBES else "ldap"] if "--service" in known else []
    return argv


HANDLED = {
    "failover_event": ["--service=x", "--state=CRITICAL", "--state-type=HARD", "--patience=0.1", "--socket=/nowhere"],
    "failover_remote": ["--socket=/nowhere"],
    "failover_sms": ["--number=+491701", "--text=x", "--now"],
}


def test_they_are_found() -> None:
    """An empty list below would test nothing."""
    assert {"check_failover_ldap", "check_failover_redirect", "check_failover_sms"} <= set(PLUGINS)
    assert set(HANDLERS) == set(HANDLED)


@contextlib.contextmanager
def silent_daemons(directory: Path, port: int) -> Iterator[None]:
    """Sockets of both daemons, and a UDP port, that take everything and say nothing."""
    with contextlib.ExitStack() as stack:
        for daemon in ("sniffer", "redirector"):
            stack.enter_context(unix := socket.socket(socket.AF_UNIX))
            unix.bind(str(directory / f"{daemon}.sock"))
            unix.listen()
        stack.enter_context(udp := socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", port))
        yield


@pytest.mark.parametrize("name", PROGRAMS)
class TestConventions:
    """One class, every program."""

    def test_help_and_version(self, name: str) -> None:
        """They exit 3: a core that runs them by mistake must not take help for OK."""
        for option in ("-h", "--help", "-V", "--version"):
            code, out, err = run(name, option)
            assert (code, err) == (3, "")
            assert name in out.splitlines()[0]
        assert re.search(r"\d+\.\d+", out)
        wanted = {"--timeout", "--verbose", "--warning", "--critical"} if name in PLUGINS else set()
        assert wanted | {"--version", "--help"} <= set(options(name))

    def test_a_wrong_command_line(self, name: str, tmp_path: Path) -> None:
        """Exit code 3, never argparse's 2, which would fail over; says what to do."""
        known = usual(name, config(tmp_path, closed_port()))
        wrong = [
            ["--nonsense"],
            ["positional"],
            ["-x"],
            ["--conf", "x"],
            ["-t"] if name in PLUGINS else ["--text"],
            ["--nonsense=|"],
        ]
        if name in PLUGINS:
            wrong += [[option, value] for option in ("-t", "--timeout") for value in NOT_TIMES]
            wrong += [[o, value] for o in ("-w", "-c", "--warning", "--critical") for value in NOT_RANGES]
        argvs = [[*known, *more] for more in wrong] + [wrong[0]]
        for argv, done in zip(argvs, run_all(name, argvs), strict=True):
            out = proper(name, argv, done, State.UNKNOWN)
            assert done[0] == 3, (argv, done)
            assert "--help" in out or "needs a value" in out, (argv, out)

    def test_any_value_of_any_option(self, name: str, tmp_path: Path) -> None:
        """No traceback, no odd exit code, no output that a core would misread; never OK or WARNING."""
        known = usual(name, config(tmp_path, closed_port()))
        more = [o for o in options(name) if o not in UNTRIED]
        quick = ["-t", "3"] if name in PLUGINS else []
        argvs = [[*known, *quick, option, value] for option in more for value in BAD]
        for argv, done in zip(argvs, run_all(name, argvs), strict=True):
            proper(name, argv, done, State.UNKNOWN, State.CRITICAL)

    def test_a_config_that_is_missing_or_broken(self, name: str, tmp_path: Path) -> None:
        """One line that names the file and what is wrong. A handler that needs none goes on; sms says NOT SENT."""
        good = config(tmp_path, closed_port())
        known = usual(name, good)
        if str(good) not in known:
            return  # failover_event reads none: test_an_absent_redirector
        broken = {
            "none": None,
            "directory": "",
            "empty": b"",
            "not TOML": b"[controller\n",
            "not UTF-8": b"\xff\xfe",
            "unknown key": good.read_bytes().replace(b"[controller]", b"[controller]\nnonsense = 1"),
            "wrong type": good.read_bytes().replace(b"port = 1\n", b'port = "one"\n'),
        }
        argvs = []
        for what, data in broken.items():
            path = tmp_path / what
            if isinstance(data, bytes):
                path.write_bytes(data)
            elif data is not None:
                path.mkdir()
            argvs.append([str(path) if word == str(good) else word for word in known])
        for what, argv, done in zip(broken, argvs, run_all(name, argvs), strict=True):
            out = proper(name, argv, done, State.UNKNOWN)
            assert done[0] == (3 if name in PLUGINS else 1), (what, done)
            assert str(tmp_path / what) in out, (what, out)
            assert len(out.split(str(tmp_path / what), 1)[1].strip()) > 10, (what, "no reason", out)

    def test_an_unknown_service(self, name: str, tmp_path: Path) -> None:
        """It is named; a plugin that leaves that to a daemon says that the daemon is away."""
        known = usual(name, config(tmp_path, closed_port()))
        if name in HANDLERS or "--service" not in known:
            return
        argv = [*known, "--service", "no|such"]
        out = proper(name, argv, run(name, *argv), State.UNKNOWN, State.CRITICAL)
        assert "no/such" in out or "is the daemon running" in out, out

    def test_nobody_there(self, name: str, tmp_path: Path) -> None:
        """Verbose or not, the answer has its form, and comes at once."""
        known = usual(name, config(tmp_path, closed_port()))
        argvs = [known] + ([[*known, v] for v in ("-v", "-vv", "-vvv")] if name in PLUGINS else [])
        for argv, done in zip(argvs, run_all(name, argvs), strict=True):
            proper(name, argv, done, State.CRITICAL, State.UNKNOWN)
            assert done[0] != 0

    def test_a_silent_target(self, name: str, tmp_path: Path) -> None:
        """-t ends the run, and what is silent is CRITICAL; check_failover_sync asks nobody here."""
        if name in HANDLERS or name == "check_failover_sync":
            return
        with Scripted(silent) as server, silent_daemons(tmp_path, server.port):
            argv = [*usual(name, config(tmp_path, server.port)), "-t", "1"]
            began = time.monotonic()
            done = run(name, *argv)
        assert time.monotonic() - began < LIMIT / 2
        proper(name, argv, done, State.CRITICAL)
