"""The doctor's looks at FreeBSD and NetBSD: forwarding, IPFilter now and after the next boot, the devices of bpf(4).

Sources: sysrc(8), kldstat(8), rc.conf(5), ipf(8), devfs.rules(5). rc.conf is read on FreeBSD only.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from check_failover.admin.finding import Finding, Scene, access, how_to, output, unusable
from check_failover.places import PLACES

BPF = Path("/dev/bpf")
# family -> sysctl(8), rc.conf(5)
FORWARDING = {4: ("net.inet.ip.forwarding", "gateway_enable"), 6: ("net.inet6.ip6.forwarding", "ipv6_gateway_enable")}
ON = ("yes", "true", "on", "1")  # checkyesno of rc.subr(8)


def network(scene: Scene, platform: str = sys.platform) -> Iterator[Finding]:
    """All findings. ``platform`` begins with freebsd or netbsd."""
    freebsd = platform.startswith("freebsd")
    for family in sorted({service.address.family for service in scene.config.services}):
        yield from _forwarding(family, freebsd)
    table = scene.config.controller.ipfilter
    usual = PLACES["freebsd" if freebsd else "netbsd"]
    tool, rules = Path(table.get("ipnat", usual["ipnat"])), Path(table.get("rules", usual["ipnat_rules"]))
    if not tool.exists():
        yield Finding("missing", "ipnat", f"{tool} is not there", "say where it is: [controller.ipfilter] ipnat")
    yield from _running(freebsd)
    yield from _rules(scene, rules, how_to("order", platform, verb="restart", daemon="failover-redirector"))
    if freebsd:
        yield from _at_boot(rules)
    yield from access("capture", scene.sniffer.user, BPF, os.R_OK | os.W_OK, how_to("devices", platform))


def _forwarding(family: int, freebsd: bool) -> Iterator[Finding]:
    key, knob = FORWARDING[family]
    value = (output("sysctl", "-n", key) or "").strip()
    keep = f"sysrc {knob}=YES" if freebsd else f"{key}=1 in /etc/sysctl.conf"
    if value == "1":
        yield Finding("ok", key, "1")
    elif value:
        yield Finding("missing", key, f"{value}: clients' packets are not forwarded", f"sysctl {key}=1, and {keep}")
    else:
        yield Finding("unknown", key, "cannot be read", f"sysctl {key}=1, and {keep}")
    if freebsd and not _on(knob):
        yield Finding("missing", knob, "not YES: the next boot does not forward", keep)


def _running(freebsd: bool) -> Iterator[Finding]:
    if freebsd and output("kldstat", "-q", "-m", "ipfilter") is None:
        yield Finding("missing", "ipfilter", "its module is not loaded", "service ipfilter start")
        return
    said = output("ipf", "-V")
    if said is None:
        yield Finding("unknown", "ipfilter", "ipf -V fails", "run it as root")
    elif "Running: yes" not in said:
        yield Finding("missing", "ipfilter", "does not run", "service ipfilter start, service ipnat start")
    else:
        yield Finding("ok", "ipfilter", "runs")


def _rules(scene: Scene, rules: Path, write: str) -> Iterator[Finding]:
    """Whether the boot's rules file has a rule for each service; ``write``: the instruction to write it."""
    try:
        text = rules.read_text("utf-8", "replace")
    except OSError as error:
        yield unusable("ipnat rules", rules, error, f"no redirect after a boot: {write}")
        return
    for service in scene.config.services:
        bits = 128 if service.address.family == 6 else 32
        if f" {service.address.address}/{bits} port {service.address.port} -> " not in text:
            found = f"{rules} has no rule for {service.name}: no redirect after a boot"
            yield Finding("missing", "ipnat rules", found, write)
            return
    yield Finding("ok", "ipnat rules", f"{rules} has a rule for each service")


def _at_boot(rules: Path) -> Iterator[Finding]:
    off = [knob for knob in ("ipfilter_enable", "ipnat_enable") if not _on(knob)]
    for knob in off:
        yield Finding("missing", knob, "not YES: no redirect after a boot", f"sysrc {knob}=YES")
    loaded = (output("sysrc", "-n", "ipnat_rules") or "").strip()
    if loaded and Path(loaded) != rules:
        found = f"{loaded} is loaded at boot, and failover-redirector writes {rules}"
        yield Finding("missing", "ipnat_rules", found, f"sysrc ipnat_rules={rules}")
    elif not off:
        yield Finding("ok", "boot", f"rc.conf loads {rules}")


def _on(knob: str) -> bool:
    return (output("sysrc", "-n", knob) or "").strip().lower() in ON
