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
    """Over an earlier version: the site's config stays, the example is new, operators find failoverctl in PATH."""
    config, old = tmp_path / "etc/check_failover/config.toml", tmp_path / "usr/local/sbin/failoverctl"
    for path in (config, old):
        path.parent.mkdir(parents=True)
    config.write_text("[sms]\n")
    config.with_suffix(".toml.example").write_text("of an earlier version")
    old.symlink_to("/opt/check_failover/bin/failoverctl")
    assert "failoverctl nagios-config" in make("install", tmp_path)
    assert config.read_text() == "[sms]\n"
    assert config.with_suffix(".toml.example").read_text() == (ROOT / "nagios-conf/config.toml.example").read_text()
    assert (tmp_path / "usr/local/bin/failoverctl").is_symlink()
    assert not old.is_symlink()
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


# What an earlier version left: one directory and one group for all, passwords for whoever may look.
EARLIER = """
set -e
mount -t tmpfs tmpfs {scratch}
for name in etc run var opt usr; do
    mkdir -p {scratch}/$name/upper {scratch}/$name/work
    mount -t overlay overlay -o lowerdir=/$name,upperdir={scratch}/$name/upper,workdir={scratch}/$name/work /$name
done
rm -rf /etc/check_failover /run/check_failover /var/lib/check_failover /run/systemd
getent passwd nagios >/dev/null || useradd --system nagios
printf 'g check_failover -\\nu failover-redirector -\\nu failover-sniffer -\\nu failover-pair -\\n' >/tmp/earlier.conf
systemd-sysusers /tmp/earlier.conf; rm /tmp/earlier.conf
install -d -m 3770 -g check_failover /run/check_failover
install -d -m 2750 -o failover-redirector -g check_failover /var/lib/check_failover
install -d -m 2770 -o nagios -g check_failover /var/lib/check_failover/spool /var/lib/check_failover/spool/queue
install -m 660 -o nagios -g check_failover /dev/null /var/lib/check_failover/spool/queue/1.json
install -m 640 -o failover-pair -g check_failover /dev/null /run/check_failover/pair.ready
install -d -m 2750 -g check_failover /etc/check_failover
cd /etc/check_failover
for name in sms bind api; do install -m 640 -g check_failover /dev/null $name.password; done
printf '[monitoring]\\npassword_file = "/etc/check_failover/api.password"\\n[sms]\\n' >config.toml
printf "password_file = '/etc/check_failover/sms.password'\\n[[service]]\\n[service.check]\\n" >>config.toml
printf 'bind_password_file="/etc/check_failover/bind.password"\\n' >>config.toml
{root}/nagios-conf/install >/dev/null
cd /
stat -c '%n %a %U:%G' /etc/check_failover/*.password /etc/check_failover/config.toml /run/check_failover \
    /run/check_failover/redirector /run/check_failover/sniffer /var/lib/check_failover/spool/queue/1.json
readlink /run/check_failover/redirector.sock /run/check_failover/sniffer.sock
test -e /run/check_failover/pair.ready && echo ready
id -nG failover-report
"""


def test_over_an_earlier_version(tmp_path: Path) -> None:
    """Each secret is for those who need it; only root names a socket; keepalived sees no gap. In mounts of its own."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        ["/usr/bin/unshare", "--mount", "/bin/bash", "-c", EARLIER.format(scratch=scratch, root=ROOT)],
        capture_output=True, text=True, timeout=500, check=False, env=os.environ | {"PYTHON": "/usr/bin/python3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "/etc/check_failover/api.password 440 failover-redirector:failover-sniffer",
        "/etc/check_failover/bind.password 440 nagios:failover-sniffer",
        "/etc/check_failover/sms.password 400 nagios:root",
        "/etc/check_failover/config.toml 644 root:check_failover",
        "/run/check_failover 755 root:root",
        "/run/check_failover/redirector 750 failover-redirector:check_failover",
        "/run/check_failover/sniffer 750 failover-sniffer:check_failover",
        "/var/lib/check_failover/spool/queue/1.json 660 nagios:failover-sms",
        "redirector/redirector.sock",
        "sniffer/sniffer.sock",
        "ready",
        "failover-report check_failover failover-sms",
    ]
