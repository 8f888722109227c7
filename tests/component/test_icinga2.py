"""The transport and what failoverctl prints for Icinga 2, with a real one."""

from __future__ import annotations

import http.server
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.admin.objects import icinga2
from check_failover.config import load
from check_failover.model import PassiveResult, State
from check_failover.transports import TransportError
from check_failover.transports.core_state import CoreQuestion, CoreState
from check_failover.transports.icinga2 import Icinga2
from check_failover.transports.outbox import Outbox
from tests.component.test_objects import ODD, config
from tests.lab import icinga
from tests.lab.icinga import ROOT, Icinga
from tests.lab.netns import poll
from tests.lab.registry import programs

pytestmark = pytest.mark.component
HOST, PAGER = "ldap.example.org", "+491701234567"
CONF = ROOT / "nagios-conf" / "icinga2"

OBJECTS = """
object Service "ldap primary" {
  host_name = "ldap.example.org"
  check_command = "passive"
  max_check_attempts = 1
  vars.failover_service = "ldap"
}
object Service "ssh" {
  host_name = "ldap.example.org"
  check_command = "passive"
}
object ApiUser "certified" {
  client_cn = "controller.example.org"
  permissions = [ "actions/process-check-result" ]
}
template Notification "failover-sms-service-notification" { command = "sms" }
object NotificationCommand "sms" { command = [ "/bin/true" ] }
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that the core's user may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o777)
        yield path


def address(number: int) -> str:
    """A loopback address of this run's own: Icinga's port is the same for all."""
    return f"127.{os.getpid() >> 8 & 127}.{os.getpid() & 255}.{number}"


@pytest.fixture(scope="module")
def core(place: Path) -> Iterator[Icinga]:
    with Icinga(place / "core", OBJECTS + icinga.site_objects(HOST, PAGER), bind=address(1)) as running:
        yield running


def options(core: Icinga, **changed: object) -> dict[str, object]:
    """[monitoring] for that node."""
    usual = {"url": core.url, "server_name": core.name, "ca_file": core.ca_file}
    return usual | {"username": icinga.USER, "password_file": core.password_file} | changed


def result(text: str = "CRITICAL: gone", service: str = "ldap primary", **more: object) -> PassiveResult:
    fields: dict[str, object] = {"state": State.CRITICAL, "at": time.time()} | more
    return PassiveResult(host=HOST, service=service, text=text, **fields)  # type: ignore[arg-type]


def test_a_result_arrives_whole(core: Icinga) -> None:
    """Text, further lines, performance data, time and where it comes from; it is hard at once."""
    sent = result(
        "CRITICAL: grün", details="seen\nprobed | twice", perfdata="probes=2 'a b'=3s;1;2", at=time.time() - 5
    )
    Icinga2(options(core)).send([sent])
    now = core.services()["ldap primary"]
    assert (now["current_state"], now["state_type"]) == ("2", "HARD")
    assert now["plugin_output"] == "CRITICAL: grün"
    assert now["long_plugin_output"] == "seen\nprobed | twice"
    assert now["performance_data"] == "probes=2 'a b'=3s;1;2"
    assert float(now["execution_start"]) == pytest.approx(sent.at, abs=0.001)
    assert now["check_source"]


def test_the_core_is_asked_for_its_settings(core: Icinga, tmp_path: Path) -> None:
    """Downtimes of the service and its host, handlers of the service and of all, with the API user as shipped."""
    service = load(config(tmp_path, ["/bin/true"])).services[0]
    question = CoreQuestion({"transport": "icinga2", **options(core)})

    def state() -> CoreState | None:
        return question.ask(replace(service, name="ldap", host=HOST), 5.0)

    free = CoreState(downtime=False, service_handler=True, handlers=True, age=0.0)
    assert state() == free
    for kind, target in (("Service", {"service": f"{HOST}!ldap primary"}), ("Host", {"host": HOST})):
        now = int(time.time())
        period = {"author": "boss", "comment": "disk", "start_time": now, "end_time": now + 600, "fixed": True}
        core.api("POST", "/v1/actions/schedule-downtime", {"type": kind, **target, **period})
        poll(lambda: state() == replace(free, downtime=True), 10.0, f"the {kind}'s downtime is known")
        core.api("POST", "/v1/actions/remove-downtime", {"type": kind, **target})
        poll(lambda: state() == free, 10.0, f"the end of the {kind}'s downtime is known")
    own, every = f"/v1/objects/services/{HOST}!ldap primary", "/v1/objects/icingaapplications/app"
    for path_of, name, off in (
        (own, "enable_event_handler", replace(free, service_handler=False)),
        (every, "enable_event_handlers", replace(free, handlers=False)),
    ):
        core.api("POST", path_of, {"attrs": {name: False}})
        assert state() == off
        core.api("POST", path_of, {"attrs": {name: True}})
    assert CoreQuestion({"transport": "icinga2", **options(core, username="nobody")}).ask(service, 5.0) is None


def test_time_does_not_go_back(core: Icinga) -> None:
    """After the clock was set back a result is as new as the one before."""
    transport = Icinga2(options(core))
    later = time.time() + 60
    transport.send([result("CRITICAL: first", at=later), result("CRITICAL: second", at=later - 3600)])
    now = core.services()["ldap primary"]
    assert now["plugin_output"] == "CRITICAL: second"
    assert float(now["execution_start"]) == pytest.approx(later, abs=0.001)


def test_a_client_certificate_in_place_of_a_password(core: Icinga, place: Path) -> None:
    """One that Icinga's own authority signed, for the API user with that name in it; another one is refused."""
    for name in ("controller.example.org", "other.example.org"):
        for path, content in icinga.certificates(name).items():
            (place / path).write_bytes(content)
    by = {"username": None, "password_file": None}

    def certified(name: str) -> Icinga2:
        return Icinga2(options(core, **by, certificate=place / f"{name}.crt", key_file=place / f"{name}.key"))

    certified("controller.example.org").send([result("CRITICAL: by certificate")])
    assert core.services()["ldap primary"]["plugin_output"] == "CRITICAL: by certificate"
    with pytest.raises(TransportError, match="check the API user"):
        certified("other.example.org").send([result()])


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"server_name": "other.example.org"}, "not accepted: Hostname mismatch.* not valid for 'other.example.org'"),
    ({"ca_file": "/etc/ssl/certs/ca-certificates.crt"}, "certificate not accepted: self-signed certificate in"),
    ({"ca_file": "/nowhere/ca.crt"}, "/nowhere/ca.crt: cannot use as CA certificates: No such file"),
    ({"username": "nobody"}, "Unauthorized.*check the API user"),
    ({"password_file": "/etc/hostname"}, "Unauthorized.*check the API user"),
    ({"password_file": "/nowhere/password"}, "/nowhere/password: cannot read the secret: No such file"),
    ({"url": "https://127.0.0.1:9"}, "https://127.0.0.1:9: connection refused"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[message[:24] for _, message in REFUSED])
def test_what_is_refused(
    core: Icinga, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], message: str
) -> None:
    """One line with the reason; what the environment says of certificates changes nothing."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(core.ca_file))
    with pytest.raises(TransportError, match=message) as caught:
        Icinga2(options(core, **changed)).send([result()])
    assert "\n" not in str(caught.value)


def test_the_permission_is_for_our_services_only(core: Icinga, caplog: pytest.LogCaptureFixture) -> None:
    """Another service, or one that is not there, is said once and holds up nothing."""
    transport = Icinga2(options(core))
    for _ in range(2):
        transport.send([result(service="ssh"), result(service="none"), result("CRITICAL: after them")])
    assert core.services()["ssh"]["has_been_checked"] == "0"
    assert core.services()["ldap primary"]["plugin_output"] == "CRITICAL: after them"
    assert [record.getMessage().count("no such service there") for record in caplog.records] == [1, 1]


def test_the_other_node_is_asked(core: Icinga) -> None:
    """With several nodes the first that takes it does, and is the first from then on."""
    transport = Icinga2(options(core, url=[f"https://{core.bind}:9", core.url]))
    transport.send([result("CRITICAL: by the second")])
    assert core.services()["ldap primary"]["plugin_output"] == "CRITICAL: by the second"


def test_kept_while_icinga_is_away(core: Icinga) -> None:
    """Stopped and started again: everything arrives, in order, the kept connection's end notwithstanding."""
    outbox = Outbox(Icinga2(options(core)))
    outbox.submit(result("CRITICAL: before"))
    poll(lambda: outbox.waiting() == 0, 10.0, "the first was taken")
    core.stop()
    for state, text in ((State.CRITICAL, "one"), (State.OK, "two"), (State.UNKNOWN, "three")):
        outbox.submit(result(text, state=state))
    poll(lambda: not outbox.reachable, 10.0, "the absence was noticed")
    core.start()
    poll(lambda: outbox.waiting() == 0, 20.0, "all were taken")
    outbox.close()
    assert core.services()["ldap primary"]["plugin_output"] == "three"


# ------------------------------------------------------------ objects


def test_icinga_takes_and_runs_it(place: Path) -> None:
    """Clean for ``icinga2 daemon -C``, every check type; the site's own plugin is run with every argument as it is."""
    out = place / "arguments"
    program = place / "check own"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >'{out}.new'\nmv '{out}.new' '{out}'\necho all well\n")
    program.chmod(0o755)
    loaded = load(config(place, [str(program), *ODD]))
    with Icinga(place / "all", icinga.site_objects(HOST, PAGER) + icinga2(loaded), bind=address(2)) as running:
        running.verify()
        reschedule = {"type": "Service", "filter": 'service.name == "plugin standby"', "force": True}
        running.api("POST", "/v1/actions/reschedule-check", reschedule)
        running.wait("plugin standby", 0, text="all well")
    wanted = [part.replace("{address}", "10.0.0.12").replace("{port}", "99") for part in ODD]
    assert out.read_text().split("\n")[:-1] == wanted


def test_links_and_drains(place: Path) -> None:
    """notes_url and action_url stand at each service; a downtime that drains has somebody who tells of it; an agent."""
    path = config(place, ["/bin/true"])
    links = 'notes_url = "https://wiki/{service}?host={host}"\naction_url = "https://graphs/{service}"\n'
    drain = '[service.policy]\ndowntime = "drain"\n'
    sync = '[service.sync]\nfrom = "/srv/data"\n'
    path.write_text(f"[monitoring]\n{links}" + path.read_text() + drain + sync)
    loaded = load(path)
    text = icinga2(loaded, endpoint="agent.example.org")
    assert text.count('notes_url = "https://wiki/ldap?host=ldap.example.org"') == 6
    synced = {"core.example.org": icinga.site_objects(HOST, PAGER) + text}
    said = Icinga(place / "links", "", zones=icinga.SINGLE + AGENT, synced=synced).verify()
    assert f"Instantiated {6 * len(loaded.services) + 1} Services" in said
    assert text.count('command_endpoint = "agent.example.org"') == 6 * len(loaded.services) + 1


AGENT = """
object Endpoint "agent.example.org" { }
object Zone "agent.example.org" {
  endpoints = [ "agent.example.org" ]
  parent = ZoneName
}
"""


def shipped(*names: str) -> str:
    return "".join((CONF / name).read_text() for name in names)


def test_services_by_host_variables(place: Path) -> None:
    """The apply rules make the same services as the objects; the example is clean too."""
    host = 'vars.failover["ldap"] = { check = "ldap", sync = true } // only with services.conf'
    example = shipped("example.conf")
    assert host in example
    example = example.replace(
        host, f'{host}\n  vars.failover["dns"] = {{ check = "dns" }}\n  vars.failover_downtime = "drain"'
    )
    text = shipped("commands.conf", "templates.conf", "services.conf", "downtime.conf", "api-user.conf") + example
    with Icinga(place / "applied", text, bind=address(3)) as running:
        running.verify()
        names = set(running.services())
        rows = running.api("GET", "/v1/objects/dependencies")
        told = running.api("GET", "/v1/objects/notifications")
    roles = ("traffic", "primary", "standby", "redirect", "fail-back", "drill")
    assert names == {f"{name} {role}" for name in ("ldap", "dns") for role in roles} | {"ldap sync", "failover sms"}
    tied = {(row["attrs"]["parent_service_name"], row["attrs"]["child_service_name"]) for row in rows}
    assert tied == {("ldap primary", "ldap traffic"), ("dns primary", "dns traffic")}
    downtime = [row["attrs"] for row in told if row["attrs"]["name"] == "failover-downtime"]
    assert sorted(row["service_name"] for row in downtime) == ["", "dns primary", "ldap primary"]


@pytest.fixture(scope="module")
def calls(place: Path) -> Iterator[tuple[Icinga, Callable[[], list[list[str]]]]]:
    """A node whose handlers only write down their arguments; and what they wrote down."""
    plugins, written = place / "plugins", place / "calls"
    (plugins / "eventhandlers").mkdir(parents=True)
    written.mkdir()
    written.chmod(0o777)
    for name in ("failover_event", "failover_sms"):
        path = plugins / "eventhandlers" / name
        path.write_text(
            f"#!{sys.executable}\nimport json, os, sys\npath = f'{written}/{{os.getpid()}}'\n"
            f"with open(path + '.new', 'w') as file:\n    json.dump(['{name}', *sys.argv[1:]], file)\n"
            "os.rename(path + '.new', path + '.json')\n"
        )
        path.chmod(0o755)
    extra = SITE_CHECK + icinga.site_objects(HOST, PAGER)
    objects = icinga2(load(config(place, ["/bin/true"]))) + extra
    with Icinga(place / "calls-core", objects, plugins=plugins, bind=address(4)) as running:
        yield running, lambda: [json.loads(path.read_text()) for path in sorted(written.glob("*.json"))]


SITE_CHECK = """
object Service "own" {
  host_name = "ldap.example.org"
  check_command = "passive"
  max_check_attempts = 1
  event_command = "failover_event_own_check"
  vars.failover_service = "ldap"
}
"""


def test_what_the_handlers_are_told(calls: tuple[Icinga, Callable[[], list[list[str]]]]) -> None:
    """Macros of event handlers and of the SMS command, as the handlers themselves understand them."""
    core, written = calls
    odd = "CRITICAL: `id` $HOME 'q' \"d\" | x"
    core.submit("ldap standby", 0, "OK: there")
    core.submit("ldap primary", 2, odd, performance_data="detector=0 probes=2")
    core.submit("own", 2, "CRITICAL: says a check of the site's own")
    core.submit("ldap fail-back", 1, "WARNING: ready")
    core.submit("ldap fail-back", 0, "go back")

    def named(name: str, *words: str) -> dict[str, str] | None:
        for call in written():
            if call[0] == name and all(word in call for word in words):
                plain = [word for word in call[1:] if word not in ("--own-check", "--fail-back")]
                return dict(zip(plain[::2], plain[1::2], strict=True))
        return None

    def told(name: str, *words: str) -> dict[str, str]:
        found = poll(lambda: named(name, *words), 10.0, f"{name} {words} in {written()}")
        assert found is not None
        return found

    primary = told("failover_event", "--perfdata")
    assert {k: primary[k] for k in ("--service", "--state", "--state-type", "--perfdata", "--host")} == {
        "--service": "ldap", "--state": "CRITICAL", "--state-type": "HARD", "--perfdata": "detector=0 probes=2",
        "--host": HOST,
    }  # fmt: skip
    assert primary["--output"] == odd
    assert (primary["--downtime"], primary["--host-downtime"], primary["--by"]) == ("0", "0", "icinga2")
    own = told("failover_event", "--own-check")
    assert own["--standby-state"] == "0"
    assert 0 <= time.time() - float(own["--standby-checked"]) < 60
    assert told("failover_event", "--fail-back", "OK")["--output"] == "go back"
    sms = told("failover_sms", "ldap primary")
    assert (sms["--number"], sms["--type"], sms["--state"]) == (PAGER, "PROBLEM", "CRITICAL")
    assert sms["--output"] == odd
    assert re.fullmatch(r"\d{10}(\.\d+)?-1", sms["--event"])


def test_fresh_news_is_not_called_stale(calls: tuple[Icinga, Callable[[], list[list[str]]]]) -> None:
    """When "NAME traffic" changes, Icinga does not look itself at "NAME primary", on which it depends."""
    core, _ = calls
    core.submit("ldap primary", 2, "CRITICAL: gone", ttl=180)

    def due() -> float:
        (row,) = core.api("GET", f"/v1/objects/services/{HOST}!ldap primary?attrs=next_check")
        return float(row["attrs"]["next_check"])

    before = due()
    for state in (0, 2):
        core.submit("ldap traffic", state, "changed")
        assert due() == before


def test_every_option_of_a_plugin_is_in_its_command() -> None:
    """CheckCommands as in the ITL: all options that ``--help`` names, under the variable COMMAND_OPTION."""
    text = shipped("commands.conf")
    for kind in (*programs(), "traffic", "redirect", "sync", "sms"):
        program = ["check_failover.handlers.check_sms"] if kind == "sms" else ["check_failover.checks.entry", kind]
        argv = [sys.executable, "-m", *program, "--help"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT).stdout
        wanted = set(re.findall(r"^  (?:-\w(?: \S+)?, )?--([a-z-]+)", shown, re.MULTILINE))
        block = text[text.index(f'object CheckCommand "failover_{kind}"') :].split("\n}\n")[0]
        given = dict(re.findall(r'^ +"--([a-z-]+)" = \{ (?:value|set_if) = "\$(\w+)\$"', block, re.MULTILINE))
        assert set(given) == wanted - {"help", "version", "verbose"}, kind
        assert given == {name: f"failover_{kind}_{name.replace('-', '_')}" for name in given}


def test_news_that_a_newer_icinga_calls_old(place: Path) -> None:
    """2.14 discards what is older than what it has (409); it is sent again as of its arrival, and so not lost."""
    asked: list[dict[str, object]] = []

    class Api(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            code = 409 if "execution_start" in asked[-1] else 200
            row = {"code": code, "status": "Newer check result already present." if code == 409 else "Successfully."}
            body = json.dumps({"results": [row]}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    files = icinga.certificates("core.example.org")
    for name, content in files.items():
        (place / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "core.example.org.crt", place / "core.example.org.key")
    server = http.server.HTTPServer(("127.0.0.1", 0), Api)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_address[1]}"
    (place / "password").write_text("x")
    settings = {"url": url, "server_name": "core.example.org", "ca_file": place / "ca.crt", "username": "u"}
    try:
        Icinga2({**settings, "password_file": place / "password"}).send([result()])
    finally:
        server.shutdown()
        server.server_close()
    assert ["execution_start" in body for body in asked] == [True, False]
