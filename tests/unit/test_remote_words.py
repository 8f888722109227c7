"""The forced command of a remote core: the few words it takes, and how it ends when it gets any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover.handlers.arguments import UsageError
from check_failover.handlers.remote import WORDS, main, understood

ROOT = Path(__file__).resolve().parents[2]


def test_the_words() -> None:
    """Each becomes the options that the handler on the same machine would get."""
    assert understood("event ldap CRITICAL HARD 0 2") == (
        "event",
        {"service": "ldap", "state": "CRITICAL", "state-type": "HARD", "downtime": "0", "host-downtime": "2"},
    )
    assert understood("fail-back ldap OK HARD go back, says --the night shift")[1]["output"] == (
        "go back, says --the night shift"
    )
    assert understood("fail-back ldap OK HARD")[1]["output"] == ""
    assert understood("notice DOWNTIMESTART ldap.example.org ldap primary")[1] == {
        "notice": "DOWNTIMESTART",
        "host": "ldap.example.org",
        "description": "ldap primary",
    }
    assert understood("probe ldap standby")[1] == {"service": "ldap", "target": "standby"}


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "bash",
        "event",
        "event ldap CRITICAL HARD 0",
        "event ldap CRITICAL HARD 0 0 0",
        "event ldap CRITICAL HARD 0 0 --socket=/tmp/x",
        "event --help CRITICAL HARD 0 0",
        "event ldap critical HARD 0 0",
        "event ldap CRITICAL|OK HARD 0 0",
        "event ldap  CRITICAL HARD 0 0",
        "event ldap;id CRITICAL HARD 0 0",
        "event $(id) CRITICAL HARD 0 0",
        "event ldap CRITICAL HARD 0 0\nid",
        "event ldap CRITICAL HARD 0 -1",
        "event ldap CRITICAL HARD 0 ٣",
        "probe ldap ../x",
        "traffic ldap --counters",
        "traffic -h",
        "notice DOWNTIMESTART --by=x",
        "fail-back ldap OK HARD " + "x" * 5000,
    ],
)
def test_any_other_word_is_refused(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 3, and nothing was asked of anybody."""
    with pytest.raises(UsageError):
        understood(asked)
    monkeypatch.setattr(sys, "argv", ["failover_remote", "--socket", "/nonexistent"])
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", asked)
    assert main() == 3
    said = capsys.readouterr().out
    assert said.startswith("UNKNOWN: failover_remote: ")
    assert said.count("\n") == 1


@given(st.text(max_size=80), st.sampled_from(sorted(WORDS)))
def test_no_text_gets_through_as_another_option(text: str, verb: str) -> None:
    """Whatever is understood is what the table says, word by word."""
    try:
        said, words = understood(f"{verb} {text}")
    except UsageError:
        return
    assert said == verb
    names = [name for name, _ in WORDS[verb]]
    assert list(words)[: len(names)] == names
    assert all(not value.startswith("-") for name, value in words.items() if name in names)


def test_the_script_as_sshd_runs_it() -> None:
    """Without a command (somebody asked for a shell) and with a handler whose redirector is away."""

    def ssh(asked: str | None) -> tuple[int, str]:
        environment = {"PYTHONPATH": str(ROOT)} | ({} if asked is None else {"SSH_ORIGINAL_COMMAND": asked})
        argv = [sys.executable, str(ROOT / "handlers" / "failover_remote"), "--socket", "/nonexistent"]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert ssh(None) == (3, "UNKNOWN: failover_remote: '' is not one of: " + ", ".join(WORDS) + "; see --help\n")
    assert ssh("event ldap UNKNOWN HARD 0 0") == (
        0,
        "ldap: nothing to do: UNKNOWN HARD, only CRITICAL HARD moves traffic\n",
    )
    code, said = ssh("redirect ldap")
    assert code == 3
    assert "/etc/check_failover/config.toml" in said
