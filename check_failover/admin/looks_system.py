"""The doctor's looks at the operating system: forwarding, routes, the redirect's rules, files."""

import grp
import json
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from check_failover import story, syncstate
from check_failover.admin import looks_bsd
from check_failover.admin.finding import Finding, Scene, User, absent, access, describe, how_to, output, user_of
from check_failover.model import Target
from check_failover.rights import user_name

PROC = Path("/proc/sys/net")
CONNTRACK_FULL = 0.8  # share of nf_conntrack_max from which the doctor warns


def redirect(scene: Scene) -> Iterator[Finding]:
    """The rules as the redirector reads them back from the kernel."""
    path = "/sbin:/usr/sbin:/bin:/usr/bin:/usr/local/sbin"
    if scene.config.controller.redirect == "nftables" and shutil.which("nft", path=path) is None:
        yield Finding("warning", "nft", "not installed: the rules cannot be listed by hand", "install nftables")
    if scene.redirector.status is None:
        yield Finding("unknown", "redirect", "failover-redirector is away", "start it first")
        return
    for service in scene.config.services:
        status, about = scene.redirector.status.get(service.name), f"{service.name} redirect"
        if status is None:
            do = how_to("order", verb="restart", daemon="failover-redirector")
            yield Finding("missing", about, "unknown to failover-redirector", do)
        elif status.problem or status.kernel is not status.target:
            found = status.problem or f"the kernel says {status.kernel or 'nothing'}, not {status.target}"
            yield Finding("missing", about, found, "see failover-redirector's log")
        elif status.withheld is False:
            do = f"failoverctl status {service.name}; it ends with a flip or the server's recovery"
            yield Finding("warning", about, f"withholding is off, {story.unwithheld(status)}", do)
        else:
            yield Finding("ok", about, f"intended and in the kernel: {status.target}")


def network(scene: Scene) -> Iterator[Finding]:
    """Interfaces, forwarding, routes and possible reasons for dropped packets."""
    here = [name for _, name in socket.if_nameindex()]
    for name in scene.config.controller.client_interfaces:
        if name not in here:
            do = f"set [controller] client_interface to one of: {', '.join(here)}"
            yield Finding("missing", "client_interface", f"no interface {name} here", do)
    if sys.platform == "linux":
        yield from _forwarding_linux(scene)
        yield from _routes(scene)
        yield from _conntrack()
    elif sys.platform.startswith(("freebsd", "netbsd")):
        yield from looks_bsd.network(scene)
    else:
        yield Finding("unknown", "network", f"no look for {sys.platform}", "is this machine a router?")


def _forwarding_linux(scene: Scene) -> Iterator[Finding]:
    for family in sorted({service.address.family for service in scene.config.services}):
        key = "net.ipv6.conf.all.forwarding" if family == 6 else "net.ipv4.ip_forward"
        value = _proc(key.removeprefix("net.").replace(".", "/"))
        if value is None:
            yield Finding("unknown", key, "cannot be read", "is this kernel built with it?")
        elif value == 0:
            do = f"sysctl -w {key}=1, and into /etc/sysctl.d/60-failover.conf"
            yield Finding("missing", key, "0: clients' packets are not forwarded", do)
        else:
            yield Finding("ok", key, str(value))


def _routes(scene: Scene) -> Iterator[Finding]:
    """The routes to both servers and the service address; then the reverse path filter of their interfaces."""
    interfaces, services = set(scene.config.controller.client_interfaces), scene.config.services
    ends = {end.address for service in services for end in (service.address, service.primary, service.standby)}
    routes = {address: _route(address) for address in ends}  # services share servers
    for service in services:
        for target in Target:
            server, about = service.server(target).address, f"{service.name} {target}"
            route = routes[server]
            if route is None:
                yield Finding("missing", about, f"no route to {server}", f"ip route get {server}")
                continue
            interfaces.add(str(route.get("dev")))
            yield Finding("ok", about, f"{server} is reached by {route.get('dev')}")
        address = service.address.address
        if (routes[address] or {}).get("type") == "local":
            yield Finding("ok", f"{service.name} address", f"{address} is this machine's own")
        else:
            found = f"{address} is on no interface here"
            yield Finding("warning", f"{service.name} address", found, how_to("address"))
    if any(service.address.family == 4 for service in services):
        every = _proc("ipv4/conf/all/rp_filter") or 0
        for name in sorted(interfaces - {"lo"}):
            if max(every, _proc(f"ipv4/conf/{name}/rp_filter") or 0) == 1:  # the higher one counts (ip-sysctl.rst)
                found = f"rp_filter is strict on {name}: it drops packets whose return route is another interface"
                yield Finding("warning", "rp_filter", found, how_to("reverse path", interface=name))


def _route(address: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(output("ip", "-j", "route", "get", address) or "[]")
    except ValueError:
        return None
    return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else None


def _conntrack() -> Iterator[Finding]:
    count, limit = _proc("netfilter/nf_conntrack_count"), _proc("netfilter/nf_conntrack_max")
    if count is None or not limit:
        yield Finding("unknown", "conntrack", "its table cannot be read", "modprobe nf_conntrack, or run it as root")
    elif count > CONNTRACK_FULL * limit:
        do = f"sysctl -w net.netfilter.nf_conntrack_max={4 * limit}"
        yield Finding("warning", "conntrack", f"{count} of {limit} entries: new connections are dropped when full", do)
    else:
        yield Finding("ok", "conntrack", f"{count} of {limit} entries")


def _proc(name: str) -> int | None:
    try:
        return int((PROC / name).read_text())
    except (OSError, ValueError):
        return None


def files(scene: Scene) -> Iterator[Finding]:
    """Existence and permissions of state and secrets."""
    state_dir = scene.config.controller.state_dir
    user = scene.redirector.user
    bad = list(access("state", user, state_dir, os.W_OK | os.X_OK, how_to("state")))
    yield from bad or [Finding("ok", "state", f"{state_dir} can be written by {user.name if user else 'its daemon'}")]
    for path, (rights, readers) in sorted(_secrets(scene).items()):
        yield from _secret(Path(path), rights, readers)
    reports = scene.config.monitoring.get("report_dir")
    if reports is not None and not Path(reports).is_dir():
        yield Finding("warning", "reports", f"{reports} is no directory", how_to("reports"))


def _secrets(scene: Scene) -> dict[str, tuple[str, list[User | None]]]:
    """Each file with a secret: the right owner, group and mode, and its readers."""
    controller, monitoring, sms = scene.config.controller, scene.config.monitoring, scene.config.sms or {}
    core, sniffer, syncer = user_of(controller.core_user), scene.sniffer.user, _sync_user(controller.state_dir)
    found: dict[str, tuple[str, list[User | None]]] = {}

    def add(path: object, rights: str, *readers: User | None) -> None:
        if path:
            found.setdefault(str(path), (rights, []))[1].extend(readers)

    for table in (sms, sms.get("second", {})):
        add(table.get("password_file"), f"{controller.core_user}:root 400", core)
    for service in scene.config.services:
        rights = f"{controller.core_user}:{controller.sniffer_user} 440"
        add(service.check.options.get("bind_password_file"), rights, core, sniffer)
        if service.sync:
            for path in (service.sync.password_file, service.sync.bind_password_file):
                add(path, f"{syncer.name if syncer else 'root'}:root 400", syncer)
    for key in ("token_file", "password_file", "key_file"):
        rights = f"{controller.redirector_user}:{controller.sniffer_user} 440"
        add(monitoring.get(key), rights, scene.redirector.user, sniffer)
    return found


def _sync_user(state_dir: Path) -> User | None:
    """As which failover-sync runs: the owner of its records; before its first run: root."""
    try:
        return user_of(user_name(syncstate.directory(state_dir).stat().st_uid))
    except OSError:
        return user_of("root")


def _secret(path: Path, rights: str, readers: list[User | None]) -> Iterator[Finding]:
    owner, mode_bits = rights.split()
    do = f"chown {owner} {path} && chmod {mode_bits} {path}"
    if absent(path):
        do = f"write the password into it, then {do}"
    for reader in readers:
        bad = list(access("password", reader, path, os.R_OK, do))
        if bad:
            yield from bad
            return
    mode, lookers = path.stat(), [group.gr_gid for group in grp.getgrall() if group.gr_name == "check_failover"]
    if mode.st_mode & stat.S_IRWXO:
        yield Finding("warning", "password", f"{path} is {describe(mode)}, all users may use it", do)
    elif mode.st_mode & stat.S_IRWXG and mode.st_gid in lookers:
        yield Finding("warning", "password", f"{path} is {describe(mode)}, whoever may look may use it", do)
    else:
        yield Finding("ok", "password", f"{path} is {describe(mode)}")
