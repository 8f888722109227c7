"""``make install`` into a directory: what is where, units that systemd accepts, and gone again."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.component

ROOT = Path(__file__).resolve().parents[2]
PLUGINS, UNITS = "usr/lib/nagios/plugins", "etc/systemd/system"


def make(target: str, into: Path) -> str:
    argv = ["/usr/bin/make", "-s", "-C", str(ROOT), target, f"DESTDIR={into}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"PYTHON": "/usr/bin/python3"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_and_gone_again(tmp_path: Path) -> None:
    assert "failoverctl nagios-config" in make("install", tmp_path)
    plugins = {path.name for path in (tmp_path / PLUGINS).iterdir()}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    shipped = {line.split("=")[0].strip() for line in setup["options.entry_points"]["console_scripts"].split("\n")}
    assert {name for name in shipped if name.startswith("check_failover_")} <= plugins
    for link in (tmp_path / PLUGINS).rglob("*"):
        if link.is_symlink():
            assert (tmp_path / str(link.readlink()).lstrip("/")).exists(), link
    assert (tmp_path / "etc/check_failover/config.toml.example").stat().st_mode & 0o777 == 0o640
    for unit in (tmp_path / UNITS).glob("failover-*.service"):
        (document,) = [line for line in unit.read_text().splitlines() if line.startswith("Documentation=file:/")]
        assert (tmp_path / document.removeprefix("Documentation=file:/")).exists(), unit.name
    units = sorted(str(path) for path in (tmp_path / UNITS).glob("failover-*.*") if path.is_file())
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/kill", tmp_path / "bin")  # of the base system, as ExecReload= wants it
    done = subprocess.run(
        ["/usr/bin/systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *(Path(u).name for u in units)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # There is no base system below that root; what systemd says of our own lines is left.
    complaints = [line for line in done.stderr.splitlines() if "failover" in line and "Unit" not in line]
    assert len(units) >= 5
    assert complaints == []
    make("uninstall", tmp_path)
    left = [path.name for path in tmp_path.rglob("*failover*") if path.is_symlink() or path.is_file()]
    assert left == []
    assert (tmp_path / "etc/check_failover/config.toml.example").exists()
