"""The doctor at a whole site: nothing wrong, then one thing after the other broken for real, each found by its line."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import poll, python_argv
from tests.lab.site import ROOT, Site

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="cfo-") as name:
        Path(name).chmod(0o755)
        with Site(Path(name) / "site") as made:
            made.wait_healthy("standby", deadline=90.0)
            yield made


def doctor(site: Site, nagios_cfg: Path | None = None) -> tuple[int, list[str]]:
    """Exit code, and the findings that are not ok."""
    assert site.core is not None
    said = site.ctl("doctor", "--nagios-cfg", str(nagios_cfg or site.core.config), check=False)
    code, _, text = said.partition(": ")
    assert "Traceback" not in text, text
    assert "the look failed" not in text, text
    lines = text.splitlines()
    assert all(line.split()[0] in ("ok", "warning", "missing", "unknown") for line in lines), text
    return int(code), [line for line in lines if not line.startswith("ok ")]


def sysctl(site: Site, setting: str) -> None:
    site.house.run("controller", "/usr/sbin/sysctl", "-qw", setting)


@pytest.fixture(scope="module")
def usual(site: Site) -> list[str]:
    """What it says of a site where nothing is broken: nothing is missing or hidden."""
    code, lines = doctor(site)
    assert code <= 1, lines
    assert not [line for line in lines if not line.startswith("warning ")], lines
    return lines


def new(site: Site, usual: list[str], nagios_cfg: Path | None = None) -> tuple[int, list[str]]:
    """Exit code and the lines beyond the usual ones."""
    code, lines = doctor(site, nagios_cfg)
    return code, [line for line in lines if line not in usual]


def test_nothing_is_broken(usual: list[str]) -> None:
    """Only the handler is not proven yet; the lab has neither the operators' group nor loose rp_filter of its own."""
    assert [line for line in usual if "ldap event handler: the core has never run it" in line]
    known = ("ldap event handler", "operators", "rp_filter")
    assert [line for line in usual if line.split(maxsplit=1)[1].split(":")[0] not in known] == []


def test_no_forwarding(site: Site, usual: list[str]) -> None:
    sysctl(site, "net.ipv4.ip_forward=0")
    try:
        code, (line,) = new(site, usual)
    finally:
        sysctl(site, "net.ipv4.ip_forward=1")
    assert code == 2
    assert line.startswith("missing  net.ipv4.ip_forward: 0")


def test_strict_reverse_path(site: Site) -> None:
    for value, warned in (("1", True), ("2", False)):
        for name in ("all", "cl0", "sv0"):
            sysctl(site, f"net.ipv4.conf.{name}.rp_filter={value}")
        assert any("rp_filter is strict on cl0" in line for line in doctor(site)[1]) is warned


def test_a_server_without_a_route(site: Site, usual: list[str]) -> None:
    site.house.run("controller", "/usr/sbin/ip", "route", "add", "unreachable", "10.0.0.12/32")
    try:
        code, lines = new(site, usual)
    finally:
        site.house.run("controller", "/usr/sbin/ip", "route", "del", "unreachable", "10.0.0.12/32")
    assert code == 2
    assert any(line.startswith("missing  ldap standby: no route to 10.0.0.12") for line in lines)


def test_a_setting_of_nagios_is_off(site: Site, usual: list[str]) -> None:
    assert site.core is not None
    text = site.core.config.read_text()
    copy = site.core.directory / "copy.cfg"
    copy.write_text(text.replace("enable_event_handlers=1", "enable_event_handlers=0"))
    code, (line,) = new(site, usual, copy)
    assert code == 2
    assert line.startswith("missing  nagios.cfg: enable_event_handlers=0: set enable_event_handlers=1")


def test_objects_are_missing(site: Site, usual: list[str]) -> None:
    assert site.core is not None
    objects, text = site.core.directory / "objects.cfg", site.core.config.read_text()
    other = objects.with_name("other.cfg")
    other.write_text(objects.read_text().replace("ldap fail-back", "ldap other").replace("check_failover_event!", "x!"))
    copy = objects.with_name("copy.cfg")
    copy.write_text(text.replace(str(objects), str(other)))
    code, lines = new(site, usual, copy)
    assert (code, len(lines)) == (2, 2), lines
    assert lines[0].startswith("missing  ldap primary: has no event handler of ours")
    assert lines[1].startswith("missing  ldap in Nagios: not defined: ldap fail-back")


def test_no_nagios_cfg(site: Site, usual: list[str]) -> None:
    code, (line,) = new(site, usual, site.directory / "nowhere.cfg")
    assert code == 2
    assert line.startswith("missing  nagios.cfg: ")
    assert "--nagios-cfg" in line


def test_a_handler_that_the_core_may_not_run(site: Site, usual: list[str]) -> None:
    handlers = site.directory / "plugins" / "eventhandlers"
    handlers.chmod(0o700)
    try:
        code, (line,) = new(site, usual)
    finally:
        handlers.chmod(0o755)
    assert code == 2
    assert line.startswith("missing  event handler: nagios may not use ")
    assert "0700 root:root" in line


def test_a_password_for_everybody(site: Site, usual: list[str]) -> None:
    assert site.kannel is not None
    path = site.kannel.password_file
    for mode, level, code in ((0o644, "warning ", 1), (0o600, "missing ", 2)):
        path.chmod(mode)
        try:
            found, (line,) = new(site, usual)
        finally:
            path.chmod(0o640)
        assert found == code
        assert line.startswith(f"{level} password: ")
        assert f"{mode:04o}" in line


def test_the_secrets_of_failover_sync(site: Site, usual: list[str]) -> None:
    """Both files of ``[service.sync]``: each must be there, for the user that failover-sync runs as (the owner of its
    records), and for no others.
    """
    text, secret, records = site.config.read_text(), site.directory / "sync-secret", site.directory / "state" / "sync"
    records.mkdir(exist_ok=True)
    owner = records.stat().st_uid
    database = f'method = "postgresql"\nuser = "failover"\npassword_file = "{secret}"\n'
    directory = f'method = "syncrepl"\nbind_dn = "cn=failover"\nbind_password_file = "{secret}"\n'
    for sync in (database, directory):
        secret.write_text("secret\n")
        site.config.write_text(f"{text}\n[service.sync]\n{sync}")
        try:
            for mode, runs_as, wanted in (
                (0o400, "root", ""),
                (
                    0o444,
                    "root",
                    f"warning  password: {secret} is 0444 root:root, all users may use it: chown root:root ",
                ),
                (0o400, "nobody", f"missing  password: nobody may not use {secret}: {secret} is 0400 root:root: chown"),
                (0, "root", f"missing  password: {secret}: No such file or directory: write the password into it"),
            ):
                shutil.chown(records, runs_as)
                secret.chmod(mode)
                if not mode:
                    secret.unlink()
                found = "".join(line for line in new(site, usual)[1] if " password: " in line)
                assert found.startswith(wanted), found
                assert bool(found) == bool(wanted), found
        finally:
            site.config.write_text(text)
            shutil.chown(records, owner)


def test_no_place_for_reports(site: Site, usual: list[str]) -> None:
    """A link that leads nowhere; a fail-over works all the same."""
    path = site.directory / "reports"
    path.rename(path.with_suffix(".away"))
    try:
        code, (line,) = new(site, usual)
    finally:
        path.with_suffix(".away").rename(path)
    assert code == 1
    assert line.startswith(f"warning  reports: {path} is no directory: ")


def test_a_daemon_is_away(site: Site, usual: list[str]) -> None:
    site.stop("redirector")
    try:
        code, lines = new(site, usual)
    finally:
        site.start("redirector")
    assert code == 2
    assert [line for line in lines if line.startswith("missing  failover-redirector: does not answer")]
    assert [line for line in lines if line.startswith("unknown  redirect: failover-redirector is away")]


def test_nagios_is_stopped(site: Site, usual: list[str]) -> None:
    assert site.core is not None
    for gone, why in ((True, "No such file or directory"), (False, "nobody reads it")):
        site.core.kill()
        if gone:
            site.core.command_file.unlink()
        try:
            code, (line,) = new(site, usual)
        finally:
            site.core.command_file.unlink(missing_ok=True)
            site.core.start()
        assert code == 2
        assert line.startswith("missing  command file: ")
        assert why in line


def test_what_the_config_names_is_not_there(site: Site, usual: list[str]) -> None:
    """Interface, core's user, password file: each by a line that says what to write where."""
    text = site.config.read_text()
    assert site.kannel is not None
    for old, wrong, begin, do in (
        ('"cl0"', '"eth7"', "missing  client_interface: no interface eth7 here: ", "cl0"),
        (
            "[controller]",
            '[controller]\ncore_user = "nobodys"',
            "missing  core_user: no user nobodys here",
            "core_user",
        ),
        (str(site.kannel.password_file), "/nowhere/pw", "missing  password: /nowhere/pw: No such file", "then chown"),
        (str(site.kannel.password_file), "/nowhere/pw", "missing  SMS gateway: /nowhere/pw is not there", "write"),
    ):
        assert old in text
        site.config.write_text(text.replace(old, wrong))
        try:
            code, lines = new(site, usual)
        finally:
            site.config.write_text(text)
        assert code == 2
        (line,) = [line for line in lines if line.startswith(begin)]
        assert do in line


def test_somebody_who_may_not_read_what_nagios_may(site: Site) -> None:
    """resource.cfg holds passwords, so that most people may not read it."""
    assert site.core is not None
    copy, resource = site.core.directory / "copy.cfg", site.core.directory / "hidden.cfg"
    resource.write_text("$USER1$=/usr/lib/nagios/plugins\n")
    resource.chmod(0o600)
    copy.write_text(site.core.config.read_text().replace("resource.cfg", resource.name))
    copy.chmod(0o644)
    who = ("/usr/bin/setpriv", "--reuid=nobody", "--clear-groups", "/usr/bin/env", f"PYTHONPATH={ROOT}")
    argv = python_argv("check_failover.admin.ctl", "doctor", "--config", str(site.config))
    text = site.house.run("controller", *who, *argv, "--nagios-cfg", str(copy), check=False)
    assert f"unknown  event handler: {resource}: Permission denied: run it as root" in text, text


def test_the_gateway_is_away(site: Site, usual: list[str]) -> None:
    text = site.config.read_text()
    assert site.kannel is not None
    site.config.write_text(text.replace(site.kannel.url, "http://127.0.0.1:9/cgi-bin/sendsms"))
    try:
        code, (line,) = new(site, usual)
    finally:
        site.config.write_text(text)
    assert code == 1
    assert line.startswith("warning  SMS gateway: ")


def test_somebody_without_rights(site: Site) -> None:
    """What cannot be looked at is said, not taken for well, and nothing is blamed that is only hidden."""
    assert site.core is not None
    who = ("/usr/sbin/runuser", "-u", "nobody", "--", "/usr/bin/env", f"PYTHONPATH={ROOT}")
    argv = python_argv("check_failover.admin.ctl", "doctor", "--config", str(site.config))
    text = site.house.run("controller", *who, *argv, "--nagios-cfg", str(site.core.config), check=False)
    for about in ("failover-redirector", "failover-sniffer", "redirect", "SMS gateway", "command file"):
        assert f"unknown  {about}: " in text, text
    assert "missing " not in text, text
    assert "the look failed" not in text, text


def test_the_core_ran_the_handler(site: Site) -> None:
    """After a fail-over that Nagios ordered, the journal shows it."""
    poll(lambda: site.sniffer()["standby"]["ok"], 90.0, "the standby passes its probe")
    site.fault("crash")
    site.house.start("client", "/usr/bin/ldapsearch", "-x", "-H", "ldap://192.0.2.10", "-b", "", "-s", "base")
    site.wait_target("standby", deadline=60.0)
    poll(lambda: not any("never run it" in line for line in doctor(site)[1]), 30.0, "the core's order is seen")
