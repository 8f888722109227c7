"""The doctor on FreeBSD and NetBSD: the systems' own programs are stand-ins that know these questions and no others."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover import programs
from check_failover.admin import finding, looks_bsd
from check_failover.admin.finding import Daemon, Scene, User, how_to
from check_failover.config import Config, Controller
from check_failover.model import CheckSpec, Endpoint, Service

SERVICE = Service(
    name="ldap",
    host="ldap.example.org",
    protocol="tcp",
    address=Endpoint("192.0.2.10", 389),
    primary=Endpoint("10.0.0.11", 389),
    standby=Endpoint("10.0.0.12", 389),
    check=CheckSpec("ldap"),
)
SIX = replace(SERVICE, name="six", address=Endpoint("2001:db8::10", 389))
RULE = "rdr em0 192.0.2.10/32 port 389 -> 10.0.0.11 port 389 tcp tag cfo.ldap\n"
IPF = "ipf: IP Filter: v5.1.2 (608)\nKernel: IP Filter: v5.1.2\nRunning: yes\nLog Flags: 0 = none set\n"
# program and its arguments -> what it prints; no entry: it fails
WELL = {
    "sysctl -n net.inet.ip.forwarding": "1\n",
    "kldstat -q -m ipfilter": "",
    "ipf -V": IPF,
    "sysrc -n gateway_enable": "YES\n",
    "sysrc -n ipfilter_enable": "yes\n",
    "sysrc -n ipnat_enable": "YES\n",
}

Look = Callable[..., list[str]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """What it says of such a system, without what is well."""
    rules, bpf = tmp_path / "ipnat.rules", tmp_path / "bpf"
    rules.write_text(RULE)
    bpf.touch()
    bpf.chmod(0o660)
    (tmp_path / "ipnat").touch()
    monkeypatch.setitem(programs.ENVIRONMENT, "PATH", str(tmp_path / "bin"))  # type: ignore[arg-type]
    monkeypatch.setattr(looks_bsd, "BPF", bpf)
    well = WELL | {"sysrc -n ipnat_rules": f"{rules}\n"}
    me = Daemon(None, "", User(pwd.getpwuid(os.getuid()).pw_name, os.getuid(), frozenset()))

    def look(
        wrong: dict[str, str | None] | None = None,
        platform: str = "freebsd14",
        services: tuple[Service, ...] = (SERVICE,),
        sniffer: Daemon = me,
        **table: str,
    ) -> list[str]:
        _place(tmp_path / "bin", {how: said for how, said in (well | (wrong or {})).items() if said is not None})
        ipfilter = {"ipnat": str(tmp_path / "ipnat"), "rules": str(rules)} | table
        config = Config(Path("config.toml"), Controller("ipfilter", ("em0",), ipfilter=ipfilter), services, {}, None)
        scene = Scene(config, Path("/nowhere"), me, sniffer)
        return [str(one) for one in looks_bsd.network(scene, platform) if one.level != "ok"]

    return look


def _place(directory: Path, answers: dict[str, str]) -> None:
    directory.mkdir(exist_ok=True)
    for program in ("sysctl", "kldstat", "ipf", "sysrc"):
        cases = "".join(
            f"'{how.partition(' ')[2]}') printf '%s' '{said}'; exit 0;;\n"
            for how, said in answers.items()
            if how.startswith(f"{program} ")
        )
        path = directory / program
        path.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\nexit 1\n')
        path.chmod(0o755)


def test_nothing_is_wrong(look: Look) -> None:
    """A controller as the page "Controller on FreeBSD" makes it."""
    assert look() == []


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (
            {"sysctl -n net.inet.ip.forwarding": "0\n"},
            "missing  net.inet.ip.forwarding: 0: clients' packets are not forwarded: sysctl net.inet.ip.forwarding=1, "
            "and sysrc gateway_enable=YES",
        ),
        ({"sysctl -n net.inet.ip.forwarding": None}, "unknown  net.inet.ip.forwarding: cannot be read"),
        (
            {"sysrc -n gateway_enable": "NO\n"},
            "missing  gateway_enable: not YES: the next boot does not forward: sysrc gateway_enable=YES",
        ),
        (
            {"kldstat -q -m ipfilter": None},
            "missing  ipfilter: its module is not loaded: service ipfilter start",
        ),
        ({"ipf -V": IPF.replace("yes", "no")}, "missing  ipfilter: does not run: service ipfilter start"),
        ({"ipf -V": None}, "unknown  ipfilter: ipf -V fails: run it as root"),
        (
            {"sysrc -n ipnat_enable": "NO\n"},
            "missing  ipnat_enable: not YES: no redirect after a boot: sysrc ipnat_enable=YES",
        ),
        ({"sysrc -n ipfilter_enable": None}, "missing  ipfilter_enable: not YES"),
        (
            {"sysrc -n ipnat_rules": "/etc/other.rules\n"},
            "missing  ipnat_rules: /etc/other.rules is loaded at boot, and",
        ),
    ],
)
def test_one_thing_is_wrong(look: Look, wrong: dict[str, str | None], line: str) -> None:
    """It is found, by one line that says what to do."""
    (found,) = look(wrong)
    assert found.startswith(line)


def test_the_rules_file(look: Look, tmp_path: Path) -> None:
    """It is there, and has a rule for each service: otherwise a boot begins without a redirect."""
    write = "no redirect after a boot: service failover_redirector restart"
    (tmp_path / "ipnat.rules").write_text("# nothing\n")
    (found,) = look()
    assert found == f"missing  ipnat rules: {tmp_path}/ipnat.rules has no rule for ldap: {write}"
    (tmp_path / "ipnat.rules").unlink()
    (found,) = look()
    assert found == f"missing  ipnat rules: {tmp_path}/ipnat.rules: No such file or directory: {write}"


def test_over_ipv6(look: Look, tmp_path: Path) -> None:
    """A service over IPv6 has a setting and a rule of its own."""
    text = RULE + "rdr em0 inet6 2001:db8::10/128 port 389 -> 2001:db8:1::1 port 389 tcp tag cfo.six\n"
    (tmp_path / "ipnat.rules").write_text(text)
    six = {"sysctl -n net.inet6.ip6.forwarding": "1\n", "sysrc -n ipv6_gateway_enable": "YES\n"}
    assert look(six, services=(SERVICE, SIX)) == []
    (found,) = look(six | {"sysrc -n ipv6_gateway_enable": "NO\n"}, services=(SERVICE, SIX))
    assert found.startswith("missing  ipv6_gateway_enable: not YES")


def test_a_tool_that_is_not_there(look: Look) -> None:
    (found,) = look(ipnat="/nowhere/ipnat")
    assert found == "missing  ipnat: /nowhere/ipnat is not there: say where it is: [controller.ipfilter] ipnat"


def test_the_packet_filter_devices(look: Look, tmp_path: Path) -> None:
    """failover-sniffer opens them for reading and writing."""
    stranger = Daemon(None, "", User("failover-sniffer", 4242, frozenset()))
    tmp_path.joinpath("bpf").chmod(0o644)
    found = look(sniffer=stranger)
    assert [line for line in found if not line.startswith("missing  capture: failover-sniffer may not use ")] == []
    assert len(found) == 1
    assert found[0].endswith(
        "add path 'bpf*' mode 0660 group check_failover in /etc/devfs.rules, service devfs restart"
    )


def test_every_system_has_every_way() -> None:
    """What the doctor advises is said for each system; bpf's devices are the BSDs' alone."""
    ways = {name: set(rows) for name, rows in finding.INSTRUCTIONS.items()}
    assert ways["freebsd"] == ways["netbsd"] == ways["linux"] | {"devices"}
    assert how_to("order", "freebsd14", verb="start", daemon="failover-sniffer") == "service failover_sniffer start"
    assert how_to("order", "linux", verb="start", daemon="failover-sniffer") == "systemctl start failover-sniffer"


def test_netbsd(look: Look) -> None:
    """No kldstat, no sysrc: they are not asked."""
    bare = {how: None for how in WELL if how.split()[0] in ("kldstat", "sysrc")} | {"sysrc -n ipnat_rules": None}
    assert look(bare, platform="netbsd10") == []
    (found,) = look(bare | {"sysctl -n net.inet.ip.forwarding": "0\n"}, platform="netbsd10")
    assert found.endswith("sysctl net.inet.ip.forwarding=1, and net.inet.ip.forwarding=1 in /etc/sysctl.conf")
