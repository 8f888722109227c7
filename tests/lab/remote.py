"""A core on another machine: a real Nagios in its own namespace, reached by NSCA-ng or NRDP, asking by NRPE or ssh.

    with RemoteCore(site, place, results="nsca", way="nrpe") as core:      # site: Site(nagios=False, **settings(...))
        core.nagios.wait("ldap primary", 2)

What its daemons read is what ``failoverctl remote-config`` prints; only places differ from a site's.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from tests.lab.apache import certificate
from tests.lab.daemon import Housed
from tests.lab.nagios import BASE_OBJECTS, PLUGINS, Nagios
from tests.lab.netns import python_argv
from tests.lab.nrdp import TOKEN
from tests.lab.site import ROOT, SITE_OBJECTS, Site, environment

CONTROLLER, CORE = "198.51.100.1", "198.51.100.2"
PASSWORD = "long and random"
NRDP_PORT = 8443
CUT = "add table inet cut\nadd chain inet cut in { type filter hook input priority 0; policy drop; }\n"

SEND_NSCA = f'identity = "check_failover"\npassword = "{PASSWORD}"\nserver = "{CORE}"\ntimeout = 2\n'
NRPE = f"""\
server_address={CONTROLLER}
allowed_hosts={CORE}
nrpe_user=nagios
nrpe_group=nagios
dont_blame_nrpe=0
command_timeout=60
"""
SSHD = f"""\
ListenAddress {CONTROLLER}
HostKey {{place}}/host
PidFile none
UsePAM no
StrictModes no
UseDNS no
PasswordAuthentication no
AuthorizedKeysFile {{place}}/authorized
"""
SSH = f"""\
Host {CONTROLLER}
  User nagios
  IdentityFile {{place}}/core/id
  IdentitiesOnly yes
  UserKnownHostsFile {{place}}/known
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
  ServerAliveInterval 5
  ServerAliveCountMax 2
"""
SHARED = "  ControlMaster auto\n  ControlPath {place}/core/%C\n  ControlPersist 600\n"
# nagios may log in there: a shell, and no locked password
ACCOUNT = """\
sed '/^nagios:/s,[^:]*$,/bin/sh,' /etc/passwd >"$1/passwd"
sed '/^nagios:/s,^nagios:[^:]*,nagios:*,' /etc/shadow >"$1/shadow"
mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/shadow" /etc/shadow || exit 1
exec /usr/sbin/sshd -D -e -f "$1/sshd_config"
"""


def settings(place: Path, results: str, deadline: float = 5.0) -> dict[str, str]:
    """``[monitoring]`` for the site, whose core comes later; ``place`` is this module's directory."""
    if results == "nsca":
        (place / "send_nsca.cfg").write_text(SEND_NSCA)
        way = f'transport = "nsca"\nsend_nsca = ["/usr/sbin/send_nsca", "-c", "{place}/send_nsca.cfg"]\n'
    else:
        way = f'transport = "nrdp"\nurl = "https://{CORE}:{NRDP_PORT}/nrdp/"\ntimeout = 2\n'
        way += f'token_file = "{place}/nrdp.token"\nca_file = "{place}/ca.pem"\n'
        (place / "nrdp.token").write_text(TOKEN)
        certificate(place, "nrdp", f"IP:{CORE}")
    return {"monitoring": f"{way}core_deadline = {deadline}"}


class RemoteCore:
    """See the module. ``shared``: ssh keeps one connection for all that follows."""

    def __init__(self, site: Site, place: Path, *, results: str, way: str, shared: bool = True) -> None:
        self.site, self.place, self.results, self.way, self._shared = site, place, results, way, shared
        self._stack = contextlib.ExitStack()
        self._daemons: dict[str, Housed] = {}
        self.nagios: Nagios

    def __enter__(self) -> RemoteCore:
        try:
            self.site.house.add("core", "mg0", f"{CONTROLLER}/24", f"{CORE}/24")
            {"nrpe": self._nrpe, "ssh": self._ssh}[self.way]()
            self._nagios()
            {"nsca": self._nsca, "nrdp": self._nrdp}[self.results]()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._daemons):
            self.stop(name)
        self._stack.close()

    def cut(self) -> None:
        """The way between the two goes dark, in both directions."""
        self.site.house.run("core", "/usr/sbin/nft", "-f", "-", input=CUT)

    def mend(self) -> None:
        self.site.house.run("core", "/usr/sbin/nft", "delete", "table", "inet", "cut")

    def stop(self, name: str) -> None:
        """End ``nsca``, ``nrdp``, ``nrpe`` or ``ssh``."""
        self._daemons.pop(name).stop()

    def states(self, service: str) -> list[int]:
        """The states of a service's passive results in the order in which this core took them, repeats left out."""
        lines = self.nagios.lines(f"EXTERNAL COMMAND: PROCESS_SERVICE_CHECK_RESULT;[^;]*;{service};")
        states = [int(line.split(";")[3]) for line in lines]
        return [state for before, state in zip([-1, *states], states, strict=False) if state != before]

    # ------------------------------------------------------------ parts

    def _start(self, name: str, who: str, port: int, *argv: str) -> None:
        """Start a daemon on the controller or the core's machine and wait until its port is open."""
        house, address = self.site.house, {"controller": CONTROLLER, "core": CORE}[who]
        knock = ("/usr/bin/bash", "-c", f"exec 3<>/dev/tcp/{address}/{port} && echo there")
        serves = lambda: "there" in house.run(who, *knock, check=False)  # noqa: E731
        log = self.place / f"{name}.log"
        self._daemons[name] = Housed(house, who, argv, log, serves, cwd=ROOT, env=environment())
        self._daemons[name].start()

    def _printed(self, on: str, way: str) -> str:
        text = self.site.ctl(
            "remote-config", "--way", way, "--on", on, "--controller", CONTROLLER, "--plugins", str(self._plugins())
        )
        text = text.replace("/etc/check_failover/nrpe", str(self.place / "nrpe"))
        return text.replace("/etc/check_failover/ssh_config", str(self.place / "ssh_config"))

    def _plugins(self) -> Path:
        place = self.site.directory / "plugins"
        return place if place.exists() else self.site.plugins()

    def _nagios(self) -> None:
        prefix, place = self.site.house.argv("core"), self.place / "plugins"
        place.mkdir()
        for name in ("check_nrpe", "check_dummy"):
            (place / name).symlink_to(PLUGINS / name)
        objects = BASE_OBJECTS + SITE_OBJECTS + self._printed("core", self.way)
        self.nagios = Nagios(self.place / "nagios", objects, prefix, plugins=place)
        self.nagios.verify()
        self._stack.enter_context(self.nagios)

    def _nsca(self) -> None:
        text = self._printed("core", "nsca").replace("LONG AND RANDOM", PASSWORD)
        config = self.place / "nsca-ng.cfg"
        config.write_text(f'command_file = "{self.nagios.command_file}"\nlisten = "{CORE}"\nuser = "nagios"\n{text}\n')
        self._start("nsca", "core", 5668, "/usr/sbin/nsca-ng", "-F", "-S", "-c", str(config))

    def _nrdp(self) -> None:
        argv = python_argv("tests.lab.nrdp", str(self.place), CORE, str(NRDP_PORT), str(self.nagios.command_file))
        self._start("nrdp", "core", NRDP_PORT, *argv)

    def _nrpe(self) -> None:
        certificates = self.place / "nrpe"
        certificates.mkdir()
        for name, address in (("controller", CONTROLLER), ("core", CORE)):
            certificate(certificates, name, f"IP:{address}")
            shutil.chown(certificates / f"{name}.key", "nagios")
        config = self.place / "nrpe.cfg"
        config.write_text(f"{NRPE}pid_file={self.place}/nrpe.pid\n{self._printed('controller', 'nrpe')}\n")
        self._start("nrpe", "controller", 5666, "/usr/sbin/nrpe", "-c", str(config), "-f")

    def _ssh(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        account, own = pwd.getpwnam("nagios"), self.place / "core"
        own.mkdir()
        for path in (self.place / "host", own / "id"):
            argv = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
            subprocess.run(argv, check=True, timeout=30)
        for path in (own, own / "id"):
            os.chown(path, account.pw_uid, account.pw_gid)
        line = self._printed("controller", "ssh").rstrip("\n") + (own / "id.pub").read_text()
        (self.place / "authorized").write_text(line)
        (self.place / "known").write_text(f"{CONTROLLER} {(self.place / 'host.pub').read_text()}")
        (self.place / "sshd_config").write_text(SSHD.format(place=self.place))
        (self.place / "ssh_config").write_text((SSH + SHARED * self._shared).format(place=self.place))
        argv = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", ACCOUNT, "sh", str(self.place))
        self._start("ssh", "controller", 22, *argv)
