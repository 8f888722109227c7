"""The main job, on real parts: from a dead primary to served clients and an SMS, and back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from check_failover import control
from tests.lab.echo import Echo
from tests.lab.load import Load
from tests.lab.netns import CONTROLLER, CONTROLLER6, PRIMARY, SERVICE_ADDRESS, SERVICE_ADDRESS6, STANDBY, python_argv
from tests.lab.site import BASE, HOST, ONCALL, ROOT, SERVERS, SIX, Site
from tests.system.story import served_and_told

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]


@pytest.mark.parametrize("fault", ["crash", "hang", "blackhole", "apperror"])
def test_from_fault_to_served_clients(make_site: MakeSite, make_load: MakeLoad, fault: str, redirect: str) -> None:
    """Each fault ends in one flip, served clients, states that tell the story, and one SMS for each thing to tell."""
    site = make_site(redirect=redirect)
    load = make_load(site)
    assert site.sniffer()["primary"]["ok"] is None, "the primary was probed although it answered"
    counted = site.status()["activity"]
    assert min(counted["asked"], counted["answered"]) > 60, (
        "check_failover_traffic sees the clients, without the sniffer"
    )
    flip = served_and_told(site, load, fault)
    assert flip["by"] == "nagios"
    shown = site.ctl("history", "--show", flip["id"])
    assert "probe of the primary: failed" in shown
    site.poll(lambda: ONCALL in site.ctl("history", "--report", flip["id"]), 10.0, "the report says who was told")
    pcap = next(line.split()[-1] for line in shown.splitlines() if "tshark -r" in line)
    packets = site.house.run("controller", "/usr/bin/tcpdump", "-nn", "-r", pcap)
    assert packets.count("\n") > 100


def test_nobody_probes_a_primary_that_answers(make_site: MakeSite, make_load: MakeLoad) -> None:
    """Not one packet of the controller's own reaches the primary in a minute in which clients get their answers."""
    site = make_site(kannel=False)
    site.house.run("primary", "/usr/sbin/nft", "-f", "-", input=COUNTER)
    load = make_load(site)
    site.poll(lambda: len(load.requests()) > 3900, 120.0, "a minute of traffic")
    counted = site.house.run("primary", "/usr/sbin/nft", "list counter inet watch own")
    assert "packets 0 " in counted


COUNTER = f"""
table inet watch {{
    counter own {{ }}
    chain in {{
        type filter hook input priority 0;
        ip saddr {CONTROLLER} meta l4proto {{ tcp, udp }} counter name own
    }}
}}
"""


def test_no_healthy_server_and_then_one(make_site: MakeSite, make_load: MakeLoad, redirect: str) -> None:
    """With the standby dead as well nothing moves, the reason is told; as soon as it is back, it serves."""
    site = make_site(redirect=redirect)
    assert site.core is not None
    make_load(site)
    site.fault("crash", "standby")
    control.ask(site.socket("sniffer"), {"verb": "probe", "service": "ldap", "target": "standby"})  # or within 30 s
    site.poll(lambda: site.sniffer()["standby"]["ok"] is False, 40.0, "the standby fails its probe")
    site.fault("crash")
    site.core.wait("ldap redirect", 2, text="no-healthy-server")
    assert site.status()["target"] == "primary"
    assert "no healthy server" in site.core.wait("ldap primary", 2)["plugin_output"]
    site.heal("crash", "standby")
    site.wait_target("standby")


def test_the_core_is_away(make_site: MakeSite, make_load: MakeLoad) -> None:
    """With Nagios stopped the sniffer asks the redirector itself; what happened is told when Nagios is back."""
    site = make_site()
    assert site.core is not None
    make_load(site)
    site.core.stop()
    site.fault("crash")
    site.wait_target("standby")
    flips = site.poll(lambda: site.journal("fail-over"), 5.0, "it is in the journal")
    assert "sniffer" in flips[-1]["by"]
    site.core.start()
    site.core.wait("ldap primary", 2)
    site.core.wait("ldap redirect", 1)
    assert len([entry for entry in site.journal("fail-over") if entry["flipped"]]) == 1


def test_the_core_was_killed(make_site: MakeSite, make_load: MakeLoad) -> None:
    """A FIFO that nobody reads is no core either."""
    site = make_site(kannel=False)
    assert site.core is not None
    make_load(site)
    site.core.kill()
    site.fault("crash")
    site.wait_target("standby")


def test_over_ipv6(make_site: MakeSite, tmp_path: Path) -> None:
    """The same over IPv6, source NAT included: a dark host, and nobody's new connection fails."""
    site = make_site(kannel=False, **SIX, service=f'source_nat = "{CONTROLLER6}"')
    clients = Load(site.house, tmp_path / "load", base=BASE, attribute="description", address=SERVICE_ADDRESS6)
    with clients as load:
        site.wait_healthy("standby")
        site.poll(lambda: len(load.requests()) > 60, 15.0, "sixty requests answered")
        site.fault("blackhole")
        at = time.monotonic()  # what is asked from here on cannot have met the primary
        site.wait_target("standby")
        site.poll(lambda: load.answered_by("standby", at), 10.0, "an answer from the standby")
        after = time.monotonic()
        site.poll(lambda: len(load.requests(after)) > 60, 15.0, "sixty requests after the flip")
        assert [r for r in load.requests(at) if r.kind == "short" and r.server is None] == []
        assert {r.server for r in load.requests(after)} == {"standby"}


ECHO = f"""
[[service]]
name = "echo"
host = "{HOST}"
protocol = "tcp"
address = "{SERVICE_ADDRESS}"
port = 7001
primary = "{PRIMARY}"
standby = "{STANDBY}"
[service.check]
type = "tcp"
send = 'who\\n'
expect = "primary"
"""


def test_each_service_on_its_own(make_site: MakeSite, make_load: MakeLoad) -> None:
    """A second service behind the same address: its open connection, its redirect and its journal stay untouched."""
    site = make_site(kannel=False, extra=ECHO)
    for who, address in SERVERS.items():
        Echo(site.house, who, "tcp", address, 7001, site.directory / f"echo-{who}.log").start()
    make_load(site)
    talk = site.house.start(
        "client", *python_argv("tests.lab.echo", "talk", SERVICE_ADDRESS, "7001"), log=site.directory / "talk", cwd=ROOT
    )
    said = site.directory / "talk"
    site.poll(lambda: said.read_text().count("\n") > 5, 10.0, "the second service answers")
    site.fault("crash")
    site.wait_target("standby")
    flipped = said.read_text().count("\n")
    site.poll(lambda: said.read_text().count("\n") > flipped + 20, 10.0, "it goes on answering")
    assert talk.poll() is None, "its open connection broke"
    assert {line.split()[0] for line in said.read_text().splitlines()} == {"primary"}
    status = site.status("echo")
    assert status["target"] == status["kernel"] == "primary"
    assert {entry["service"] for entry in site.journal()} == {"ldap"}


@pytest.mark.parametrize(("how", "redirect"), [("stop", "nftables"), ("kill", "nftables"), ("kill", "ipfilter")])
def test_restart_never_flips(make_site: MakeSite, make_load: MakeLoad, how: str, redirect: str) -> None:
    """Redirector, sniffer and Nagios end and start again while the standby serves: it goes on, nobody notices."""
    site = make_site(redirect=redirect, kannel=False)
    assert site.core is not None
    load = make_load(site)
    site.fault("crash")
    site.wait_target("standby")
    site.heal("crash")
    since = time.monotonic()
    for name in ("redirector", "sniffer"):
        (site.stop if how == "stop" else site.kill)(name)
        site.start(name)
    (site.core.stop if how == "stop" else site.core.kill)()
    site.core.start()
    site.core.wait("ldap redirect", 1, text="on the standby")
    site.core.wait("ldap fail-back", 1, text="ready to fail back")
    assert site.status()["target"] == site.status()["kernel"] == "standby"
    site.poll(lambda: len(load.requests(since)) > 60, 15.0, "sixty requests")
    assert [r for r in load.requests(since) if r.server != "standby"] == []
    assert len([entry for entry in site.journal("fail-over", "fail-back") if entry["flipped"]]) == 1


def test_hold_and_release(make_site: MakeSite, make_load: MakeLoad, redirect: str) -> None:
    """A hold is a refusal with its reason; once released the core's standing order is carried out."""
    site = make_site(redirect=redirect)
    assert site.core is not None
    make_load(site)
    assert "held by" in site.ctl("hold", "ldap", "--reason", "disk swap")
    site.fault("crash")
    site.core.wait("ldap redirect", 2, text="hold")
    assert site.journal("fail-over")[-1]["reason"] == "hold"
    assert site.status()["target"] == "primary"
    site.ctl("release", "ldap")
    site.wait_target("standby")


def test_fail_back_is_refused_until_it_is_safe(make_site: MakeSite, make_load: MakeLoad, redirect: str) -> None:
    """Refused with the reason while the primary fails; done by hand when it passes; nothing moves by itself."""
    site = make_site(redirect=redirect)
    assert site.core is not None
    load = make_load(site)
    site.fault("crash")
    site.wait_target("standby")
    said = site.ctl("fail-back", "ldap", check=False)
    assert said.startswith("1: "), said
    assert "primary-failed" in said
    site.heal("crash")
    site.core.wait("ldap fail-back", 1, 20.0, text="ready to fail back")
    assert site.status()["target"] == "standby"
    since = time.monotonic()
    assert "standby -> primary" in site.ctl("fail-back", "ldap")
    site.wait_target("primary")
    site.core.wait("ldap redirect", 0)
    site.core.wait("ldap fail-back", 0)
    site.poll(lambda: load.answered_by("primary", since), 10.0, "an answer from the primary")
    assert site.journal("fail-back")[-1]["by"] == "root"
    history = site.ctl("history")
    assert "fail-over" in site.ctl("history", "--json")
    assert "primary -> standby" in history
    assert "standby -> primary" in history
    shown = site.ctl("history", "--show", site.journal("fail-back")[-1]["id"])
    assert "by: root" in shown


def test_fail_back_from_the_web_interface(make_site: MakeSite, make_load: MakeLoad) -> None:
    """OK submitted for "ldap fail-back" in Nagios's own web interface orders it, once; its page is a click away."""
    from tests.lab.web import Cgis

    site = make_site(kannel=False)
    assert site.core is not None
    make_load(site)
    reports = python_argv("check_failover.admin.ctl", "reports", "--follow", "--config", str(site.config))
    as_nobody_special = ("/usr/sbin/runuser", "-u", site.core_user, "--", *reports)
    site.house.start("controller", *as_nobody_special, log=site.directory / "reports.log", cwd=ROOT)
    with Cgis(site.directory / "web", site.core, port=8981, argv_prefix=site.house.argv("controller")) as web:
        site.fault("crash")
        site.wait_target("standby")
        site.core.wait("ldap redirect", 1, text="on the standby")
        page = web.fetch(f"cgi-bin/status.cgi?host={HOST}")
        assert "ldap primary" in page
        assert "on the standby" in page
        assert "href='/check_failover/ldap.html'" in page
        name = f"{site.journal('fail-over')[-1]['id']}.html"
        assert f"report: /check_failover/{name}" in web.fetch(
            f"cgi-bin/extinfo.cgi?type=2&host={HOST}&service=ldap+redirect"
        )
        site.poll(lambda: (site.directory / "reports" / name).exists(), 10.0, "the page of the fail-over")
        assert f'href="{name}"' in web.fetch("../check_failover/ldap.html")
        assert "ldap: primary -&gt; standby" in web.fetch(f"../check_failover/{name}")
        site.heal("crash")
        site.core.wait("ldap fail-back", 1, 20.0, text="ready to fail back")
        web.command(SUBMIT)
        site.wait_target("primary")
        site.core.wait("ldap fail-back", 0, text="nothing to fail back")
    backs = site.journal("fail-back")
    assert [entry["flipped"] for entry in backs] == [True]
    assert backs[0]["by"] == "nagios"


SUBMIT = {
    "cmd_typ": "30",  # CMD_PROCESS_SERVICE_CHECK_RESULT
    "cmd_mod": "2",
    "host": HOST,
    "service": "ldap fail-back",
    "plugin_state": "0",
    "plugin_output": "go back, says the night shift",
    "performance_data": "",
    "btnSubmit": "Commit",
}


def test_the_gateway_is_down(make_site: MakeSite, make_load: MakeLoad) -> None:
    """A gateway that is down delays nothing and loses nothing: the texts arrive later, each once."""
    site = make_site()
    assert site.kannel is not None
    make_load(site)
    site.kannel.stop()
    site.fault("crash")
    site.wait_target("standby")
    waiting = site.directory / "state" / "spool" / "queue"
    site.poll(lambda: len(list(waiting.glob("*.json"))) == 2, 15.0, "two texts in the spool")
    site.kannel.start()
    texts = site.kannel.wait_received(2, 40.0)
    site.poll(lambda: not list(waiting.glob("*.json")), 10.0, "the spool is empty")
    assert len(site.kannel.received()) == len(texts) == 2


def test_a_hundred_handlers(make_site: MakeSite, make_load: MakeLoad, redirect: str) -> None:
    """The event handler started a hundred times at once is one flip."""
    import subprocess

    site = make_site(redirect=redirect, nagios=False, kannel=False)
    make_load(site)
    site.stop("sniffer")  # it would order by itself
    site.fault("hang")
    handler = [str(site.plugins() / "eventhandlers" / "failover_event"), "--service", "ldap", "--state", "CRITICAL"]
    handler += ["--state-type", "HARD", "--socket", str(site.socket("redirector")), "--perfdata"]
    handler += ["detector=0 probes=2 probes_failed=2 asked=9 answered=0 standby_ok=1 blind=0 sync_running=0"]
    before = _lists(site)
    running = [subprocess.Popen(handler, stdout=subprocess.PIPE, text=True) for _ in range(100)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 100
    assert sum("done: " in text for text in said) == 1
    assert sum("already" in text for text in said) == 99
    assert len(site.journal("fail-over")) == 1
    assert _lists(site) - before < 100, "what is done already needs no look at the kernel; every few seconds it has one"


def _lists(site: Site) -> int:
    """How often ipnat was asked for its rules and sessions; 0 for nftables."""
    return sum(entry["call"] == "-lvR" for entry in site.ipnat.history) if site.ipnat else 0


def test_stale_is_unknown_and_moves_nothing(make_site: MakeSite) -> None:
    """Without news from the sniffer "primary" turns UNKNOWN; the event handler runs and orders nothing."""
    stale = "freshness_threshold     180"
    site = make_site(kannel=False, objects=lambda text: text.replace(stale, "freshness_threshold     5"))
    assert site.core is not None
    assert stale not in (site.core.directory / "objects.cfg").read_text()
    site.core.wait("ldap primary", 0)
    site.kill("sniffer")
    site.core.wait("ldap primary", 3, 60.0, text="no news from failover-sniffer")
    site.poll(lambda: site.core and site.core.lines("EVENT HANDLER: .*ldap primary;UNKNOWN"), 15.0, "the handler ran")
    assert site.status()["target"] == "primary"
    assert site.journal() == []


def test_critical_without_facts_is_looked_at_first(make_site: MakeSite, make_load: MakeLoad, redirect: str) -> None:
    """A CRITICAL that anybody submits for "primary" moves nothing while the primary passes its probe."""
    site = make_site(redirect=redirect, kannel=False)
    assert site.core is not None
    make_load(site)
    site.core.command(f"PROCESS_SERVICE_CHECK_RESULT;{HOST};ldap primary;2;CRITICAL: says a broken script")
    site.core.wait("ldap redirect", 2, text="not-confirmed")
    assert site.status()["target"] == "primary"
    assert site.journal("fail-over")[-1]["facts"]["probes_failed"] == 0
