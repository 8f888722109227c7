"""A private Icinga 2: own configuration, certificates, API and logs under one directory; as the user ``nagios``.

    with Icinga(directory, objects, argv_prefix=house.argv("controller")) as icinga:
        icinga.submit("ldap primary", 2, "CRITICAL: gone")
        icinga.wait("ldap primary", state=2)

The same ways to look and steer as ``tests.lab.nagios``, so that a test may have either core. A node asks its own API
from inside its namespace. Zones, endpoints and further listeners are the caller's (``zones``), and so is what it syncs
to other nodes (``synced``: zone -> objects, as below zones.d); without them it is a single node. What differs from
Debian's /etc/icinga2: nothing but the places, and a log with the notices in it.
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import os
import pwd
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.daemon import Core

ICINGA = "/usr/sbin/icinga2"
PLUGINS = Path("/usr/lib/nagios/plugins")
ROOT = Path(__file__).resolve().parents[2]
PORT = 5665
USER, PASSWORD = "check_failover", "s3cret"
LAB = "lab"  # the tests' own API user, with every permission

CONFIG = """\
include <itl>
include <plugins>
const PluginDir = "{plugins}"
const NodeName = "{name}"
const ZoneName = "{name}"
{zones}
object CheckerComponent "checker" {{ }}
object NotificationComponent "notification" {{ }}
object FileLogger "log" {{
  severity = "notice"
  path = "{directory}/icinga2.log"
}}
object ApiListener "api" {{
  bind_host = "{bind}"
  bind_port = {port}
  accept_commands = {accept}
  accept_config = {accept}
}}
object ApiUser "{lab}" {{
  password = "{password}"
  permissions = [ "*" ]
}}
include "objects.conf"
"""
# [monitoring] of check_failover's config for one node
MONITORING = """\
transport = "icinga2"
url = "https://{bind}:{port}"
server_name = "{name}"
ca_file = "{directory}/data/certs/ca.crt"
username = "{user}"
password_file = "{directory}/api.password"
"""
SINGLE = "object Endpoint NodeName { }\nobject Zone ZoneName {\n  endpoints = [ NodeName ]\n}\n"


def monitoring(directory: Path, name: str = "core.example.org", bind: str = "127.0.0.1") -> str:
    """What check_failover's config says about a node that runs, or will run, in ``directory``."""
    return MONITORING.format(directory=directory, name=name, bind=bind, port=PORT, user=USER)


def site_objects(host: str, pager: str) -> str:
    """A site's own objects: our API user, a contact, a host, and its notification rules."""
    api_user = (ROOT / "nagios-conf/icinga2/api-user.conf").read_text().replace("CHANGE-ME", PASSWORD)
    return api_user + SITE_OBJECTS.replace("HOST", host).replace("PAGER", pager)


SITE_OBJECTS = """
object User "oncall" {
  pager = "PAGER"
}
object Host "HOST" {
  check_command = "dummy"
  vars.notification["sms"] = { users = [ "oncall" ] }
}
apply Notification "sms" to Service {
  import "failover-sms-service-notification"
  users = host.vars.notification.sms.users
  assign where host.vars.notification.sms
  ignore where service.vars.failover_role == "drill"
}
"""


class Icinga(Core):
    """One node. ``stop`` and ``start`` may alternate; states are retained over it as on a site."""

    out = "icinga2.out"
    limit, patience = 30.0, 15.0

    def __init__(
        self,
        directory: Path,
        objects: str,
        argv_prefix: Sequence[str] = (),
        *,
        name: str = "core.example.org",
        bind: str = "127.0.0.1",
        zones: str = SINGLE,
        accept: bool = False,
        plugins: Path = PLUGINS,
        user: str = "nagios",
        synced: Mapping[str, str] | None = None,
    ) -> None:
        self.directory, self.user, self.name, self.bind = directory, user, name, bind
        self._prefix = tuple(argv_prefix)
        self.config, self.log = directory / "icinga2.conf", directory / "icinga2.log"
        self.ca_file, self.password_file = directory / "data/certs/ca.crt", directory / "api.password"
        for path in ("data/certs", "cache", "log", "run", "spool"):
            (directory / path).mkdir(parents=True, exist_ok=True)
        for path, content in certificates(name).items():
            (directory / "data/certs" / path).write_bytes(content)
        self.password_file.write_text(f"{PASSWORD}\n")
        values = {"plugins": plugins, "name": name, "zones": zones, "directory": directory, "bind": bind, "port": PORT}
        values |= {"accept": str(accept).lower(), "lab": LAB, "password": PASSWORD}
        self.config.write_text(CONFIG.format(**values))
        for zone, text in (synced or {}).items():
            (directory / "zones.d" / zone).mkdir(parents=True, exist_ok=True)
            (directory / "zones.d" / zone / "objects.conf").write_text(text)
        self.change(objects)
        account = pwd.getpwnam(user)
        for path in (directory, *directory.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)

    @property
    def url(self) -> str:
        return f"https://{self.bind}:{PORT}"

    def change(self, objects: str) -> None:
        """Other objects, for the next start."""
        path = self.directory / "objects.conf"
        path.write_text(objects)
        shutil.chown(path, self.user)

    def argv(self, *argv: str) -> list[str]:
        places = {"DataDir": "data", "CacheDir": "cache", "LogDir": "log", "InitRunDir": "run", "SpoolDir": "spool"}
        places |= {"ConfigDir": "", "ZonesDir": "zones.d"}
        defines = {key: str(self.directory / path) for key, path in places.items()}
        defines |= {"PidPath": f"{self.directory}/run/pid", "RunAsUser": self.user, "RunAsGroup": self.user}
        options = [f"-DConfiguration.{key}={value}" for key, value in defines.items()]
        return [*self._prefix, ICINGA, "daemon", "-c", str(self.config), *options, *argv]

    def verify(self) -> str:
        """``icinga2 daemon -C``: its output when it found neither error nor warning."""
        done = subprocess.run(self.argv("-C"), capture_output=True, text=True, timeout=60, check=False)
        said = done.stdout + done.stderr
        bad = re.findall(r"^.* (?:warning|critical)/.*$", said, re.MULTILINE)
        assert done.returncode == 0, f"icinga2 daemon -C is not clean:\n{said[-4000:]}"
        assert bad == [], f"icinga2 daemon -C is not clean:\n{said[-4000:]}"
        return said

    def serves(self) -> bool:
        """Whether the API answers."""
        return bool(self.api("GET", "/v1/status/IcingaApplication", patient=True))

    def kill(self) -> None:
        """End it as an out-of-memory killer would, with the processes below it."""
        for pid in _below(self.pid):
            os.kill(pid, signal.SIGKILL)
        super().kill()

    # ------------------------------------------------------------ the API

    def api(self, method: str, path: str, body: Any = None, *, patient: bool = False) -> list[dict[str, Any]]:
        """``results`` of a request as the tests' own user; empty if Icinga does not answer and ``patient`` is set."""
        argv = [*self._prefix, sys.executable, "-m", "tests.lab.icinga", self.bind, method, path, json.dumps(body)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
        if done.returncode:
            assert patient, f"{method} {path}: {done.stderr[-1000:]}\n{self.tail()}"
            return []
        results: list[dict[str, Any]] = json.loads(done.stdout).get("results", [])
        return results

    def submit(self, service: str, state: int, text: str, host: str = "ldap.example.org", **fields: Any) -> None:
        """Process a check result as a person does in Icinga Web 2."""
        body = {
            "type": "Service",
            "service": f"{host}!{service}",
            "exit_status": state,
            "plugin_output": text,
            **fields,
        }
        done = self.api("POST", "/v1/actions/process-check-result", body)
        assert [row["code"] for row in done] == [200], done

    def check_now(self) -> None:
        """The host and the services that Icinga checks itself, as a person does with "Check now"."""
        for kind, only in (("Host", "true"), ("Service", 'service.check_command != "passive"')):
            done = self.api("POST", "/v1/actions/reschedule-check", {"type": kind, "filter": only, "force": True})
            assert done, kind

    def services(self) -> dict[str, dict[str, str]]:
        """Service name -> its state in the words of Nagios's status.dat."""
        attributes = ("name", "state", "state_type", "last_check_result", "check_attempt", "host_name")
        path = "/v1/objects/services?" + "&".join(f"attrs={name}" for name in attributes)
        return {row["attrs"]["name"]: _fields(row["attrs"]) for row in self.api("GET", path, patient=True)}


def _fields(attributes: dict[str, Any]) -> dict[str, str]:
    result = attributes["last_check_result"] or {}
    output, _, long_output = str(result.get("output", "")).partition("\n")
    return {
        "has_been_checked": str(int(bool(result))),
        "current_state": str(int(attributes["state"])),
        "state_type": "HARD" if attributes["state_type"] else "SOFT",
        "plugin_output": output,
        "long_plugin_output": long_output,
        "performance_data": " ".join(map(str, result.get("performance_data") or [])),
        "check_source": str(result.get("check_source", "")),
        "execution_start": str(result.get("execution_start", "")),
    }


@functools.cache
def _authority() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        shutil.chown(directory, "nagios")
        _pki(directory, "new-ca")
        return {name: (Path(directory) / "ca" / name).read_bytes() for name in ("ca.crt", "ca.key")}


@functools.cache
def certificates(name: str) -> dict[str, bytes]:
    """``ca.crt``, ``NAME.crt`` and ``NAME.key`` as ``icinga2 pki`` makes them; one authority for all of a test run."""
    with tempfile.TemporaryDirectory() as directory:
        authority = Path(directory) / "ca"
        authority.mkdir()
        for path, content in _authority().items():
            (authority / path).write_bytes(content)
        for path in (Path(directory), authority, *authority.iterdir()):
            shutil.chown(path, "nagios")
        files = {kind: f"{directory}/{name}.{kind}" for kind in ("crt", "key", "csr")}
        _pki(directory, "new-cert", "--cn", name, "--key", files["key"], "--csr", files["csr"])
        _pki(directory, "sign-csr", "--csr", files["csr"], "--cert", files["crt"])
        made = {Path(files[kind]).name: Path(files[kind]).read_bytes() for kind in ("crt", "key")}
        return {**made, "ca.crt": _authority()["ca.crt"]}


def _pki(directory: str, *argv: str) -> None:
    options = [
        f"-DConfiguration.DataDir={directory}",
        "-DConfiguration.RunAsUser=nagios",
        "-DConfiguration.RunAsGroup=nagios",
    ]
    done = subprocess.run([ICINGA, "pki", *argv, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"icinga2 pki {' '.join(argv)}: {done.stdout}{done.stderr}"


def _below(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [each for child in children for each in (*_below(child), child)]


def _main(address: str, method: str, path: str, body: str) -> None:
    """One request from inside a namespace; Icinga's answer on stdout."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, PORT, timeout=20, context=anybody)
    login = base64.b64encode(f"{LAB}:{PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Accept": "application/json"}
    connection.request(method, urllib.parse.quote(path, safe="/?&=!%:"), None if body == "null" else body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status >= 300:
        sys.exit(f"{answer.status} {text}")
    print(text)


if __name__ == "__main__":
    _main(*sys.argv[1:])
