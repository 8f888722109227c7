"""A whole site in network namespaces: two slapd, the controller with both daemons, a core, Kannel. Real parts only.

    with Site(directory) as site:
        site.load ...            # clients, see tests.lab.load
        site.crash("primary")    # see tests.lab.faults

The redirect is nftables, or ``redirect="ipfilter"`` (see ``ipnat``). The core is Nagios 4, Icinga 2
(``core="icinga2"``) or a zone of two masters ("icinga2 zone", see ``icinga_zone``). The daemons, the core and Kannel
run in the controller's namespace; handlers and plugins run as the core's own user. ``config`` says what differs from
the usual config; everything is ended and removed by ``close``.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_failover import control
from tests.lab import faults, icinga, icinga_zone
from tests.lab.daemon import Housed
from tests.lab.icinga import Icinga
from tests.lab.icinga_zone import Zone
from tests.lab.ipnat import Ipnat
from tests.lab.kannel import Kannel
from tests.lab.nagios import BASE_OBJECTS, PLUGINS, Nagios
from tests.lab.netns import (
    CONTROLLER,
    MANAGEMENT,
    PRIMARY,
    PRIMARY6,
    SERVICE_ADDRESS,
    SERVICE_ADDRESS6,
    STANDBY,
    STANDBY6,
    House,
    poll,
    python_argv,
)
from tests.lab.registry import programs
from tests.lab.slapd import BASE, Slapd

ROOT = Path(__file__).resolve().parents[2]
HOST = "ldap.example.org"
ONCALL = "+491701234567"
SERVERS = {"primary": PRIMARY, "standby": STANDBY}
SIX = {"address": SERVICE_ADDRESS6, "primary": PRIMARY6, "standby": STANDBY6}  # Site(**SIX): all of it over IPv6
CHECKS = (*programs(), "traffic", "redirect", "sync")
PROGRAMS = {
    "eventhandlers/failover_event": "check_failover.handlers.event",
    "eventhandlers/failover_sms": "check_failover.handlers.sms",
    "eventhandlers/failover_remote": "check_failover.handlers.remote",
    **{f"check_failover_{kind}": f"check_failover.checks.entry:{kind}" for kind in CHECKS},
    "check_failover_sms": "check_failover.handlers.check_sms",
}

CONFIG = """\
[controller]
redirect = "{redirect}"
client_interface = "cl0"
run_dir = "{directory}/run"
state_dir = "{directory}/state"
{controller}
[monitoring]
{monitoring}
report_dir = "{directory}/reports"
report_url = "/check_failover"
{links}
[sms]
gateway = "kannel"
url = "{sms_url}"
username = "nagios"
password_file = "{password_file}"
sender = "1234"
{sms}
[[service]]
name = "ldap"
host = "ldap.example.org"
protocol = "tcp"
address = "{address}"
port = 389
primary = "{primary}"
standby = "{standby}"
writes = "{writes}"
{service}
[service.check]
type = "ldap"
base = "{base}"
attribute = "description"
[service.policy]
hold_down = 2
fail_back_passes = 2
fail_back_seconds = 1
{policy}
"""

SITE_OBJECTS = f"""\
define contact {{
    use           failover-sms-contact
    contact_name  oncall
    pager         {ONCALL}
}}
define contactgroup {{
    contactgroup_name  oncall
    members            oncall
}}
define host {{
    host_name              {HOST}
    address                {SERVICE_ADDRESS}
    check_command          check-host-alive
    check_period           24x7
    max_check_attempts     3
    contact_groups         oncall
    notification_period    24x7
    notification_interval  60
}}
"""


class Site:
    """See the module. Parts that are left out (``nagios``, ``kannel``, ``servers`` False) do not run."""

    def __init__(
        self,
        directory: Path,
        *,
        prefix: str | None = None,
        nagios: bool = True,
        core: str = "nagios",
        kannel: bool = True,
        servers: bool = True,
        interval_length: int = 60,
        extra: str = "",
        objects: Callable[[str], str] = lambda text: text,
        **config: str,
    ) -> None:
        self.directory = directory
        self.house = House(prefix)
        self.core_user = "nagios"
        self._parts = contextlib.ExitStack()
        self._daemons: dict[str, Housed] = {}
        self._with = {"nagios": nagios, "kannel": kannel, "servers": servers}
        self._settings, self._extra, self._change = config, extra, objects
        self._kind = core
        self.interval_length = interval_length  # seconds in a "minute" of Nagios's objects
        self.slapd: dict[str, Slapd] = {}
        self.kannel: Kannel | None = None
        self.core: Nagios | Icinga | Zone | None = None
        self.ipnat: Ipnat | None = None
        self.config = directory / "config.toml"

    def __enter__(self) -> Site:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything, newest first."""
        for name in list(self._daemons):
            self.stop(name)
        self._parts.close()

    # ------------------------------------------------------------ building

    def _build(self) -> None:
        _readable_by(self.core_user)
        self._parts.enter_context(self.house)
        _shared(self.directory, self.core_user, 0o755)
        for name in ("run", "state", "reports"):
            _shared(self.directory / name, self.core_user, 0o2770)
        if self._with["servers"]:
            for name, address in SERVERS.items():
                address = self._settings.get(name, address)
                self.slapd[name] = self._parts.enter_context(self._server(name, address))
        prefix = self.house.argv("controller")
        listen = "127.0.0.1"
        if self._kind == "icinga2 zone":
            icinga_zone.join(self.house)
            listen = MANAGEMENT  # the masters send from their own namespaces
        self.kannel = Kannel(self.directory / "kannel", prefix, listen=listen)
        shutil.chown(self.kannel.password_file, group=_group_of(self.core_user))
        self.kannel.password_file.chmod(0o640)
        if self._with["kannel"]:
            self._parts.enter_context(self.kannel)
        if self._settings.get("redirect") == "ipfilter":
            self.ipnat = Ipnat(self.directory / "ipnat", self.house)
        self._write_config()
        self.start("redirector")
        if self._with["nagios"]:
            self.core = CORES[self._kind](self, prefix)
            self.core.verify()
            self._parts.enter_context(self.core)
        self.start("sniffer")

    def _server(self, name: str, address: str) -> Slapd:
        return Slapd(self.directory / name, address, serves=name, argv_prefix=self.house.argv(name))

    def _write_config(self) -> None:
        assert self.kannel is not None
        values = {
            "directory": str(self.directory),
            "address": SERVICE_ADDRESS,
            "primary": PRIMARY,
            "standby": STANDBY,
            "sms_url": self.kannel.url,
            "sms": "",
            "password_file": str(self.kannel.password_file),
            "base": BASE,
            "redirect": "nftables",
            "controller": self.ipnat.config if self.ipnat else "",
            "monitoring": self._monitoring(),
            "links": "",
            "service": "",
            "writes": "none",  # the clients only read
            "policy": "",
        }
        self.config.write_text(CONFIG.format(**values | self._settings) + self._extra)
        self.config.chmod(0o644)

    def _monitoring(self) -> str:
        if self._kind == "icinga2":
            return icinga.monitoring(self.directory / "icinga2")
        if self._kind == "icinga2 zone":
            return icinga_zone.monitoring(self.directory)
        place = self.directory / "nagios"
        return f'command_file = "{place}/rw/nagios.cmd"\nnagios_cfg = "{place}/nagios.cfg"'

    def objects(self) -> str:
        """What the core reads: the site's own objects and what ``failoverctl`` prints for it."""
        if self._kind == "icinga2 zone":
            return self._change(self.ctl("icinga2-config", "--endpoint", icinga_zone.AGENT))
        if self._kind == "icinga2":
            return self._change(icinga.site_objects(HOST, ONCALL) + self.ctl("icinga2-config"))
        return self._change(BASE_OBJECTS + SITE_OBJECTS + self.ctl("nagios-config"))

    def plugins(self) -> Path:
        """``$USER1$``: the installed programs, or wrappers around this source tree where it is not installed."""
        place = self.directory / "plugins"
        (place / "eventhandlers").mkdir(parents=True, exist_ok=True)
        for name, module in PROGRAMS.items():
            installed = Path(sys.executable).parent / Path(name).name
            path = place / name
            if installed.exists():
                path.symlink_to(installed)
                continue
            where, _, function = module.partition(":")
            path.write_text(
                f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "
                f'"import sys; from {where} import {function or "main"} as main; sys.exit(main())" "$@"\n'
            )
            path.chmod(0o755)
        (place / "check_dummy").symlink_to(PLUGINS / "check_dummy")
        return place

    # ------------------------------------------------------------ daemons

    def start(self, name: str, *argv: str) -> None:
        """Start ``redirector`` or ``sniffer`` and wait for its socket."""
        command = [*python_argv(f"check_failover.{name}.daemon", "--config", str(self.config)), *argv]

        def serves() -> bool:
            try:
                control.ask(self.socket(name), {"verb": "status"}, timeout=2.0)
            except control.ControlError:
                return False
            return True

        log = self.directory / f"{name}.log"
        daemon = Housed(self.house, "controller", command, log, serves, cwd=ROOT, env=environment())
        self._daemons[name] = daemon
        daemon.limit = 20.0
        daemon.start()

    def stop(self, name: str) -> None:
        """End a daemon in order (SIGTERM)."""
        if name in self._daemons:
            self._daemons.pop(name).stop()

    def kill(self, name: str) -> None:
        """End a daemon as an out-of-memory killer would."""
        self._daemons.pop(name).kill()

    def pid(self, name: str) -> int:
        return self._daemons[name].pid

    def ended(self, name: str) -> bool:
        """Whether a daemon that we started ended by itself."""
        return self._daemons[name].ended()

    def socket(self, name: str) -> Path:
        return self.directory / "run" / f"{name}.sock"

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # ------------------------------------------------------------ looking and steering

    def ctl(self, *argv: str, check: bool = True) -> str:
        """``failoverctl`` as root in the controller; its stdout (stdout and stderr when ``check`` is off)."""
        command = [*python_argv("check_failover.admin.ctl", *argv), "--config", str(self.config)]
        done = subprocess.run(
            [*self.house.argv("controller"), *command], cwd=ROOT, env=environment(), capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"failoverctl {' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout if check else f"{done.returncode}: {done.stdout}{done.stderr}"

    def status(self, name: str = "ldap") -> dict[str, Any]:
        """The redirector's status of a service."""
        reply: dict[str, Any] = control.ask(self.socket("redirector"), {"verb": "status"}, timeout=10.0)
        found: dict[str, Any] = reply["services"][name]
        return found

    def sniffer(self, name: str = "ldap") -> dict[str, Any]:
        """The sniffer's status of a service."""
        found: dict[str, Any] = self.sniffers()[name]
        return found

    def sniffers(self) -> dict[str, dict[str, Any]]:
        """The sniffer's status of all services."""
        found: dict[str, dict[str, Any]] = control.ask(self.socket("sniffer"), {"verb": "status"}, timeout=10.0)
        return found["services"]

    def journal(self, *verbs: str) -> list[dict[str, Any]]:
        """The journal's entries with one of these verbs (all without), without a line that a full disk cut."""
        path, entries = self.directory / "state" / "journal.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return [entry for entry in entries if not verbs or entry["verb"] in verbs]

    def wait_target(self, target: str, deadline: float = 15.0, name: str = "ldap") -> dict[str, Any]:
        """The status once kernel and intent are at ``target``, and the journal, which comes last, says so."""

        def there() -> dict[str, Any] | None:
            status = self.status(name)
            flips = [e for e in self.journal() if e.get("service") == name and e.get("flipped")]
            written = f"-> {target}" in flips[-1]["line"] if flips else target == "primary"
            return status if status["target"] == status["kernel"] == target and written else None

        try:
            return poll(there, deadline, f"{name} on the {target}", every=0.05)
        except AssertionError as error:
            tail = "\n".join(f"{n}: {self.log(n)[-1500:]}" for n in ("sniffer", "redirector"))
            core = "" if self.core is None else self.core.tail()
            raise AssertionError(f"{error}\n{tail}\n{core}") from None

    def wait_healthy(self, *targets: str, deadline: float = 15.0, name: str = "ldap") -> None:
        """Until the sniffer's last probes of these servers passed."""
        poll(
            lambda: all(self.sniffer(name)[target]["ok"] for target in targets),
            deadline,
            f"{targets} pass their probes",
        )

    # ------------------------------------------------------------ faults

    def fault(self, kind: str, who: str = "primary") -> float:
        """Cause a fault (see ``faults.FAULTS``); returns its time, monotonic seconds."""
        at = time.monotonic()
        faults.FAULTS[kind](self.house, who, self.slapd[who])
        return at

    def heal(self, kind: str, who: str = "primary") -> None:
        faults.heal(self.house, who, self.slapd[who], kind)

    def poll(self, condition: Callable[[], Any], deadline: float, what: str) -> Any:
        return poll(condition, deadline, what, every=0.05)


def _nagios(site: Site, prefix: list[str]) -> Nagios:
    return Nagios(
        site.directory / "nagios", site.objects(), prefix, plugins=site.plugins(), user=site.core_user, freshness=5,
        interval_length=site.interval_length,
    )  # fmt: skip


def _icinga2(site: Site, prefix: list[str]) -> Icinga:
    return Icinga(site.directory / "icinga2", site.objects(), prefix, plugins=site.plugins(), user=site.core_user)


def _icinga2_zone(site: Site, _prefix: list[str]) -> Zone:
    plugins = site.plugins()
    return Zone(site.directory, site.house, site.objects(), icinga.site_objects(HOST, ONCALL), plugins)


CORES: dict[str, Callable[[Site, list[str]], Nagios | Icinga | Zone]] = {
    "nagios": _nagios,
    "icinga2": _icinga2,
    "icinga2 zone": _icinga2_zone,
}


def environment() -> dict[str, str]:
    """Of the programs under test: their bytecode may be kept, so that a start takes what it takes on a site."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(ROOT)}


def _group_of(user: str) -> str:
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def _shared(path: Path, user: str, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    shutil.chown(path, group=_group_of(user))
    path.chmod(mode)


def _readable_by(user: str) -> None:
    """Nagios runs plugins as its own user: fail at once if that user may not read them."""
    for path in (Path(sys.executable), ROOT / "check_failover" / "__init__.py"):
        done = subprocess.run(["/usr/sbin/runuser", "-u", user, "--", "/usr/bin/test", "-r", str(path)], check=False)
        assert done.returncode == 0, f"the user {user} cannot read {path}: run it by `python -m tests.lab.readable`"


__all__ = ["BASE", "CONTROLLER", "HOST", "ONCALL", "Site"]
