"""A config is validated once: the redirector notes which one, and a check that finds the note needs no jsonschema."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from check_failover import config_shape
from check_failover.config import Config, ConfigError, load, publish

ROOT = Path(__file__).parents[2]
TEXT = """
[controller]
run_dir = "{run}"
[monitoring]
command_file = "/nowhere"
[[service]]
name = "ldap"
host = "h"
protocol = "tcp"
address = "192.0.2.10"
port = 389
primary = "127.0.0.1:1"
standby = "127.0.0.2:1"
[service.check]
type = "{type}"
"""
STARTS = """
import sys
sys.argv = ["check", *sys.argv[1:]]
try:
    from check_failover.checks.entry import {name}
    {name}()
except SystemExit as end:
    heavy = {{"jsonschema", "ldap3", "dns", "requests", "msgspec"}} & set(sys.modules)
    print("imported:", *sorted(heavy))
    raise
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o755)
    path = tmp_path / "config.toml"
    path.write_text(TEXT.format(run=tmp_path / "run", type="tcp"))
    return path


def note(file: Path) -> Path:
    return file.parent / "run" / "config.valid"


def ended(name: str, *argv: str) -> tuple[int, str]:
    """A check's exit code and output; its last line says which heavy packages it imported."""
    code = [sys.executable, "-c", STARTS.format(name=name), *argv]
    done = subprocess.run(code, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    return done.returncode, done.stdout


def validates(monkeypatch: pytest.MonkeyPatch, file: Path) -> bool:
    """Whether a quick load applies the schema."""
    seen = []
    monkeypatch.setattr(config_shape, "problem", lambda raw: seen.append(raw))
    load(file, quick=True)
    monkeypatch.undo()
    return bool(seen)


def test_a_check_imports_what_it_needs(file: Path) -> None:
    """Not the other probes' packages, not jsonschema for a config that is known to be valid."""
    argv = ("--service", "ldap", "--config", str(file))
    assert ended("tcp", *argv)[1].endswith("imported: jsonschema\n")
    publish(load(file))
    code, said = ended("tcp", *argv)
    assert code == 2
    assert said.endswith("imported:\n")
    file.write_text(TEXT.format(run=file.parent / "run", type="ldap") + 'base = "dc=x"\n')
    publish(load(file))
    assert ended("ldap", *argv)[1].endswith("imported: ldap3\n")
    assert "jsonschema" not in ended("redirect", *argv)[1]
    (file.parent / "run" / "sniffer.sock").touch()
    (file.parent / "run" / "redirector.sock").touch()
    for name in ("traffic", "redirect"):
        said = ended(name, *argv)[1].splitlines()[-1]
        assert not {"jsonschema", "ldap3", "dns", "requests"} & set(said.split()), name


def test_only_this_very_file_is_known(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Not with another byte, another schema or another version; and never without being asked to be quick."""
    assert validates(monkeypatch, file)
    publish(load(file))
    assert not validates(monkeypatch, file)
    before = load(file).digest
    for what, value in (("config_shape.text", lambda: b"{}"), ("__version__", "0")):
        monkeypatch.setattr(f"check_failover.config.{what}", value)
        assert load(file).digest != before
        monkeypatch.undo()
    file.write_text(file.read_text() + "\nnonsense = 1\n")
    for quick in (False, True):
        with pytest.raises(ConfigError, match="unknown key"):
            load(file, quick=quick)


def other_owner(path: Path) -> None:
    os.chown(path, 54321, -1)


def writable(path: Path) -> None:
    path.chmod(0o660)


def link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def more(path: Path) -> None:
    path.write_text(path.read_text() + "x")


def nothing(path: Path) -> None:
    path.write_bytes(b"\xff")


@pytest.mark.parametrize("forge", [other_owner, writable, link, directory, fifo, more, nothing])
def test_a_note_that_another_may_have_written_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, file: Path, forge: Callable[[Path], None]
) -> None:
    """Where the owner of the redirector's directory did not write it alone, the config is validated."""
    publish(load(file))
    forge(note(file))
    assert validates(monkeypatch, file)


def test_the_note_is_in_the_redirectors_own_directory(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Behind the socket's name, as it is installed; its owner is the one who may write."""
    run = file.parent / "run"
    (run / "redirector").mkdir()
    shutil.chown(run / "redirector", 54321)
    (run / "redirector.sock").symlink_to("redirector/redirector.sock")
    config: Config = load(file)
    publish(config)
    assert (run / "redirector" / "config.valid").read_text() == config.digest
    shutil.chown(run / "redirector" / "config.valid", 54321)
    assert not validates(monkeypatch, file)
    shutil.chown(run / "redirector" / "config.valid", 54322)
    assert validates(monkeypatch, file)


@pytest.mark.parametrize("bad", ["5", '"relative"', '"/\\u0000"'])
def test_a_run_dir_that_is_none_is_refused_as_ever(file: Path, bad: str) -> None:
    """In one line."""
    file.write_text(file.read_text().replace(f'"{file.parent}/run"', bad))
    with pytest.raises(ConfigError) as first:
        load(file)
    with pytest.raises(ConfigError) as second:
        load(file, quick=True)
    assert str(first.value) == str(second.value)
