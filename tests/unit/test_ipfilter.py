"""The words of ipnat: what was recorded is read back word for word, and what we write is in its grammar."""

from __future__ import annotations

import importlib.util
import re
import socket
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_failover.config import Config, Controller
from check_failover.model import CheckSpec, Endpoint, Service, Target
from check_failover.places import PLACES
from check_failover.rawip import bare_ack
from check_failover.redirector import RedirectError
from check_failover.redirector.ipfilter.rules import (
    TAG_LENGTH,
    Other,
    Rdr,
    parse,
    rdr,
    same_line,
    serving,
    source_map,
    tag_of,
    valid_interface,
)
from check_failover.redirector.ipfilter.sessions import Meter, Session, listing
from check_failover.redirector.ipfilter.settings import Settings
from tests.fixtures.ipfilter.standin import HERE, numeric, recorded

LISTS = ("list-l", "list-lh", "list-lv", "list-lvh", "list-ld", "list-rules", "list-after-purge", "empty-l")
MULTI = (HERE / "multi.nat").read_text().splitlines()
WEB = Service(
    name="web",
    host="www",
    protocol="tcp",
    address=Endpoint("192.0.2.10", 80),
    primary=Endpoint("10.0.0.1", 8080),
    standby=Endpoint("10.0.0.2", 8080),
    check=CheckSpec("tcp"),
)


def _kernel() -> ModuleType:
    """The stand-in's grammar, written from ipnat_y.y and apart from the module under test."""
    spec = importlib.util.spec_from_file_location("ipfilter_kernel", HERE / "kernel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernel = _kernel()

# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("line", MULTI)
def test_each_rule_is_printed_as_it_was_read(line: str) -> None:
    """Every line of the rules file with all kinds of rules comes back unchanged; ``rdr`` lines are understood."""
    rule = parse(line)
    assert str(rule) == line
    assert isinstance(rule, Rdr) == line.startswith("rdr ")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("as_recorded", [True, False], ids=["names", "numbers"])
def test_each_recorded_list_is_read(name: str, as_recorded: bool) -> None:
    """All rules in their order and all redirected sessions, whatever the options of the list were."""
    text = (HERE / f"{name}.out").read_text()
    text = text if as_recorded else numeric(text)
    found = listing(text)
    rules = [re.sub(r"^\d+ ", "", line) for line in text.splitlines() if re.match(r"(\d+ )?(rdr|map|bimap|rew)", line)]
    assert [str(rule) for rule in found.rules] == rules
    assert len(found.rules) == {"empty-l": 0, "list-after-purge": 10}.get(name, 11)
    assert len(found.sessions) == len(re.findall("^RDR ", text, re.MULTILINE))
    assert [type(rule) for rule in found.rules] == [Rdr if "rdr " in line else Other for line in rules]


@pytest.mark.parametrize("name", LISTS)
def test_older_lists_have_no_protocol(name: str) -> None:
    """Without the trailing protocol of rules and sessions the same servers, addresses and clients are read."""
    new = numeric((HERE / f"{name}.out").read_text())
    old = re.sub(r"(?m)^(RDR .*\]|(?:\d+ )?rdr .* -> \S+ port \d+) (?:tcp/udp|tcp|udp)", r"\1", new)
    assert (old == new) == (name == "empty-l")
    a, b = listing(new), listing(old)
    assert [replace(one, protocol=None) for one in a.sessions] == list(b.sessions)
    assert all(same_line(one, other) for one, other in zip(a.rules, b.rules, strict=True))
    assert [rule.server for rule in a.rules if isinstance(rule, Rdr)] == [
        rule.server for rule in b.rules if isinstance(rule, Rdr)
    ]


def test_what_a_verbose_list_counts() -> None:
    """Packets from the client and from the server, of the session above them and of no other."""
    sessions = listing((HERE / "list-lv.out").read_text()).sessions
    assert sessions[0] == Session(
        Endpoint("2001:db8:1::1", 8080), Endpoint("2001:db8::10", 80), Endpoint("2001:db8::7", 12571), "tcp", 5, 4
    )
    assert [(one.protocol, one.asked, one.answered) for one in sessions[1:]] == [
        ("udp", 2, 2),
        ("tcp", 4, 4),
        ("tcp", 4, 4),
    ]


def test_hits_and_marks_of_sessions() -> None:
    """Hits stand before each rule and are no part of it; a session whose rule is gone is marked, and read."""
    assert listing((HERE / "list-lh.out").read_text()).rules == listing((HERE / "list-l.out").read_text()).rules
    text = "List of active sessions:\nRDR CLONE ORPHAN 10.0.0.1  80   <- -> 192.0.2.10   80    [192.0.2.7 5] tcp\n"
    assert [one.client for one in listing(text).sessions] == [Endpoint("192.0.2.7", 5)]


@pytest.mark.parametrize(
    "line",
    [
        "# a comment",
        "",
        "encap in on em0 from any to any -> src 0/0 dst 10.0.0.1/32;",
        "rdr em0 192.0.2.10/32 port 80 -> ",
        "no rdr em0 192.0.2.10/32 port 80 tcp;",
        "\trdr em0 192.0.2.10/32 port 80 -> 10.0.0.1 port 80 tcp",
        "a rule of IPFilter 7 tag cfo.web",
    ],
)
def test_unknown_lines_are_kept(line: str) -> None:
    """What is not understood keeps its text and takes no traffic in our eyes."""
    rule = parse(line)
    assert isinstance(rule, Other)
    assert str(rule) == line
    assert serving([rule], "em0", WEB.address, "tcp") is None


@given(st.text(alphabet="rdrmap ->/.0123456789:tcpudporx,\t=<>!em", max_size=90) | st.text(max_size=60))
def test_reading_never_fails_and_changes_nothing(line: str) -> None:
    """Any line at all comes back as it was."""
    assert str(parse(line)) == line


@given(st.sampled_from(MULTI + numeric((HERE / "list-l.out").read_text()).splitlines()), st.data())
def test_a_damaged_line_is_still_kept(line: str, data: st.DataObject) -> None:
    """A recorded line with a piece cut out or doubled comes back as it is, damage included."""
    a = data.draw(st.integers(0, len(line)))
    b = data.draw(st.integers(0, len(line)))
    damaged = line[:a] + line[b:]
    assert str(parse(damaged)) == damaged


# ---------------------------------------------------------------- which rule applies


def test_the_longest_mask_and_then_the_oldest_rule_serves() -> None:
    """As the kernel looks rules up: a wider net comes later however old it is; of two equal ones the first."""
    wide = parse("rdr em0 192.0.2.0/24 port 80 -> 10.0.9.9 port 80 tcp")
    first = parse("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1/32 port 8080 tcp tag cfo.web")
    second = parse("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.2/32 port 8080 tcp tag cfo.web")
    assert serving([wide, first, second], "em0", WEB.address, "tcp") is first
    assert serving([second, wide, first], "em0", WEB.address, "tcp") is second
    assert serving([wide], "em0", WEB.address, "tcp") is wide


@pytest.mark.parametrize(
    ("line", "takes"),
    [
        ("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1 port 8080 tcp", True),
        ("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1 port 8080 tcp/udp purge", True),
        ("rdr em0 192.0.2.10/32 port 70-90 -> 10.0.0.1 port 8080 tcp", True),
        ("rdr em0,* from any to 192.0.2.10/32 port = 80 -> 10.0.0.1/32 port 8080 tcp", True),
        ("rdr em0 0/0 port 80 -> 10.0.0.1 port 3128 tcp", True),
        ("rdr em0 192.0.2.10/32 port 0 -> 10.0.0.1 port 0 tcp", True),
        ("rdr em1 192.0.2.10/32 port 80 -> 10.0.0.1 port 8080 tcp", False),
        ("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1 port 8080 udp", False),
        ("rdr em0 192.0.2.10/32 port 81 -> 10.0.0.1 port 8080 tcp", False),
        ("rdr em0 192.0.2.11/32 port 80 -> 10.0.0.1 port 8080 tcp", False),
        ("rdr em0 from 198.51.100.0/24 to 192.0.2.10/32 port = 80 -> 10.0.0.1/32 port 8443 tcp", False),
        ("rdr em0 inet6 2001:db8::10/128 port 80 -> 2001:db8::1 port 8080 tcp", False),
    ],
)
def test_whose_traffic_a_rule_takes(line: str, takes: bool) -> None:
    """Interface, address, port, protocol and source all have a say; an exception for some clients is the site's."""
    rule = parse(line)
    assert isinstance(rule, Rdr)
    assert rule.covers("em0", WEB.address, "tcp") is takes


def test_spelling_makes_no_other_rule() -> None:
    """``/32`` behind the server, ``port = `` and ``any`` for ``0/0`` are the same; another tag or server is not."""
    a = parse("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1 port 8080 tcp tag cfo.web")
    assert same_line(a, parse("rdr em0 192.0.2.10/32 port = 80 -> 10.0.0.1/32 port 8080 tcp tag cfo.web"))
    assert not same_line(a, parse("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1 port 8080 tcp"))
    assert not same_line(a, parse("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.2 port 8080 tcp tag cfo.web"))
    assert not same_line(a, parse("rdr em0 192.0.2.10/32 port 80 -> 10.0.0.1 port 8080 udp tag cfo.web"))
    ours = source_map(replace(WEB, source_nat="10.0.0.254"), WEB.primary, "em1", "cfo.web")
    assert same_line(ours, Other(str(ours).replace("any", "0/0")))
    assert same_line(ours, Other(str(ours).replace("any", "::/0")))
    assert not same_line(ours, Other(str(ours).replace("10.0.0.1/", "10.0.0.3/")))
    six = "map em1 inet6 from any to 2001:db8::1/128 port = 80 -> {}/128 portmap tcp 20000:60000"
    assert same_line(Other(six.format("::ffff:a00:1")), Other(six.format("::ffff:10.0.0.1")))
    assert not same_line(Other(six.format("::ffff:a00:1")), Other(six.format("::ffff:10.0.0.2")))
    assert not same_line(a, ours)


# ---------------------------------------------------------------- writing

ports = st.integers(1, 65535)
interfaces = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,14}", fullmatch=True).filter(valid_interface)


@st.composite
def services(draw: st.DrawFn) -> Service:
    """Every shape that a config can have: TCP and UDP, IPv4 and IPv6, other ports, with and without source NAT."""
    addresses = st.ip_addresses(v=draw(st.sampled_from([4, 6])))
    a, b, c, d = (address.compressed for address in draw(st.lists(addresses, min_size=4, max_size=4, unique=True)))
    return Service(
        name=draw(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,14}", fullmatch=True)),
        host="h",
        protocol=draw(st.sampled_from(["tcp", "udp"])),
        address=Endpoint(a, draw(ports)),
        primary=Endpoint(b, draw(ports)),
        standby=Endpoint(c, draw(ports)),
        check=CheckSpec("tcp"),
        source_nat=d,
    )


@given(services(), st.sampled_from(Target), interfaces, st.booleans())
def test_our_redirects_are_in_the_grammar(service: Service, target: Target, interface: str, modern: bool) -> None:
    """ipnat takes the rule, prints it as one that we know again, and takes that print back."""
    rule = rdr(service, target, interface, tag_of(service.name) if modern else None)
    printed = kernel.canonical(str(rule), 5 if modern else 4)
    again = parse(printed)
    assert isinstance(again, Rdr)
    assert same_line(rule, again)
    assert (again.server, again.tag) == (service.server(target), rule.tag)
    assert again.covers(interface, service.address, service.protocol)
    assert kernel.canonical(str(again), 5 if modern else 4) == printed
    assert parse(str(rule)) == rule


@given(services(), st.sampled_from(Target), interfaces, st.booleans())
def test_our_source_maps_are_in_the_grammar(service: Service, target: Target, interface: str, modern: bool) -> None:
    """The same for the rule that has servers answer by way of the controller."""
    rule = source_map(service, service.server(target), interface, tag_of(service.name) if modern else None)
    printed = kernel.canonical(str(rule), 5)
    assert same_line(rule, parse(printed))
    assert kernel.canonical(printed, 5) == printed


@given(services())
def test_a_flip_changes_the_server_alone(service: Service) -> None:
    """Old and new rule differ, so both can be there, and only in what stands behind the arrow."""
    old, new = (str(rdr(service, target, "em0", tag_of(service.name))) for target in Target)
    assert old != new
    assert old.split(" -> ")[0] == new.split(" -> ")[0]


@given(st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,14}", fullmatch=True), min_size=2, max_size=2, unique=True))
def test_tags_are_short_and_nobody_elses(names: list[str]) -> None:
    """They fit, and two services never share one."""
    a, b = (tag_of(name) for name in names)
    assert a != b
    assert max(len(a), len(b)) <= TAG_LENGTH
    assert re.fullmatch(r"cfo\.[\w.-]+", a)


@pytest.mark.parametrize("name", ["em0", "epair0a", "vlan-10", "em0.100", "block", "robin"])
def test_names_that_ipnat_takes(name: str) -> None:
    """Ordinary interfaces, VLANs, and words that are only half of a keyword."""
    assert valid_interface(name)


@pytest.mark.parametrize(
    "name", ["", "0em", "em0 ", "em0;", "any", "map-block", "round-robin", "inet6", "a" * 16, "é0"]
)
def test_names_that_ipnat_would_misread(name: str) -> None:
    """Keywords, blanks and what else the lexer would cut."""
    assert not valid_interface(name)


# ---------------------------------------------------------------- counting


def _session(port: int, asked: int, answered: int) -> Session:
    return Session(WEB.primary, WEB.address, Endpoint("192.0.2.7", port), "tcp", asked, answered)


def test_the_sum_never_falls() -> None:
    """Sessions that grow, end, and come back on the same port are each counted once."""
    meter = Meter()
    meter.look([_session(1, 3, 2), _session(2, 1, 0)])
    meter.look([_session(1, 5, 4), _session(2, 1, 0)])
    assert (meter.asked, meter.answered) == (6, 4)
    meter.look([_session(2, 2, 0)])
    assert (meter.asked, meter.answered) == (7, 4)
    meter.look([_session(2, 1, 1)])
    assert (meter.asked, meter.answered) == (8, 5)


@given(st.lists(st.dictionaries(st.integers(1, 4), st.tuples(st.integers(0, 9), st.integers(0, 9))), max_size=6))
def test_what_is_counted_is_bounded_by_what_was_seen(looks: list[dict[int, tuple[int, int]]]) -> None:
    """The sum grows from look to look, never by more than what the table holds."""
    meter, before = Meter(), (0, 0)
    for look in looks:
        meter.look(_session(port, *counts) for port, counts in look.items())
        assert before[0] <= meter.asked <= before[0] + sum(asked for asked, _ in look.values())
        assert before[1] <= meter.answered <= before[1] + sum(answered for _, answered in look.values())
        before = (meter.asked, meter.answered)


def test_whose_session_it_is() -> None:
    """By service address and protocol, where the list has one."""
    session = _session(1, 1, 1)
    assert session.of(WEB)
    assert replace(session, protocol=None).of(WEB)
    assert not replace(session, protocol="udp").of(WEB)
    assert not session.of(replace(WEB, address=Endpoint("192.0.2.10", 81)))


# ---------------------------------------------------------------- poking


@settings(max_examples=30)
@given(services(), services())
def test_a_poke_is_a_correct_segment(one: Service, other: Service) -> None:
    """Ports, the bare ACK, and a checksum over the pseudo-header that comes out as zero (RFC 1071)."""
    client = replace(one.primary, port=other.address.port)
    raw = bare_ack(one.address, client)
    source, destination, _, _, offset, flags = struct.unpack("!HHIIBB", raw[:14])
    assert (source, destination, offset >> 4, flags) == (one.address.port, client.port, 5, 0x10)
    pseudo = one.address.packed + client.packed + struct.pack("!II", len(raw), socket.IPPROTO_TCP) + raw
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    assert total % 0xFFFF == 0


# ---------------------------------------------------------------- settings


def _config(services: tuple[Service, ...] = (WEB,), interfaces: tuple[str, ...] = ("em0",), **table: object) -> Config:
    controller = Controller(redirect="ipfilter", client_interfaces=interfaces, ipfilter=table)
    return Config(Path("config.toml"), controller, services, {}, None)


@pytest.mark.parametrize(
    ("platform", "ipnat", "rules", "modern"),
    [
        ("freebsd14", "/sbin/ipnat", "/etc/ipnat.rules", True),
        ("netbsd10", "/usr/sbin/ipnat", "/etc/ipnat.conf", True),
        ("sunos5", "/usr/sbin/ipnat", "/etc/ipf/ipnat.conf", False),
    ],
)
def test_each_platform_has_its_places(platform: str, ipnat: str, rules: str, modern: bool) -> None:
    """Without a word in the config; what the config says goes before it."""
    found = Settings.of(_config(), platform)
    assert (found.ipnat, found.rules, found.modern) == (ipnat, Path(rules), modern)
    said = Settings.of(_config(ipnat="/x/ipnat", rules="/x/rules", version=4, timeout=9), platform)
    assert (said.ipnat, said.rules, said.modern, said.timeout) == ("/x/ipnat", Path("/x/rules"), False, 9.0)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (_config(interfaces=()), "$.controller.client_interface: ipfilter's rules need it"),
        (_config(interfaces=("em0", "em0@x")), "$.controller.client_interface: ipnat does not take 'em0@x'"),
        (_config(server_interface="any"), "$.controller.ipfilter.server_interface: ipnat does not take 'any'"),
        (
            _config((replace(WEB, source_nat="10.0.0.254"),)),
            "$.controller.ipfilter.server_interface: web has source_nat",
        ),
    ],
    ids=["no interface", "bad interface", "keyword", "no server interface"],
)
def test_what_a_config_lacks_is_named(config: Config, text: str) -> None:
    """At the start, with the path to the key, not at the first flip."""
    with pytest.raises(RedirectError) as caught:
        Settings.of(config)
    assert text in str(caught.value)


def test_the_recordings_are_what_the_stand_in_says() -> None:
    """The simulated kernel prints a recorded rule as the real one did, and says no in its words."""
    printed = [str(rule) for rule in listing(numeric((HERE / "list-rules.out").read_text())).rules]
    for number in (0, 1, 3, 7):  # the forms that the simulated kernel knows
        assert kernel.canonical(MULTI[number], 5) == printed[number]
    assert recorded("rm-missing")[2] == kernel.MISSING
    assert recorded("add-dup")[2].splitlines()[0] + "\n" == kernel.EXISTS


# ---------------------------------------------------------------- what is shipped for FreeBSD

ROOT = HERE.parents[2]
RC_SUBR = "chdir chroot cpuset env env_file fib flags group limits login_class nice oomprotect prepend program user"


@pytest.mark.parametrize("name", ["failover_redirector", "failover_sniffer"])
def test_the_start_scripts(name: str) -> None:
    """The shell reads them, they may be run, and no variable of theirs is one that rc.subr takes for its own."""
    path = ROOT / "nagios-conf/freebsd" / name
    subprocess.run(["/bin/sh", "-n", path], check=True)
    assert path.stat().st_mode & 0o111 == 0o111
    used = set(re.findall(rf"{name}_([a-z_]+)", path.read_text()))
    assert {"enable", "path"} <= used
    assert f'required_files="{PLACES["freebsd"]["config"]}"' in path.read_text()
    assert used.isdisjoint(RC_SUBR.split())


def test_the_rules_in_the_manual_are_rules() -> None:
    """Each rdr line of the FreeBSD page is one that ipnat takes, and the ones that we would write ourselves."""
    text = (ROOT / "nagios-conf/freebsd/README.md").read_text()
    rules = re.findall(r"rdr em0 [0-9][^'\n]+", text)
    ldap = replace(
        WEB,
        name="ldap",
        address=Endpoint("192.0.2.10", 389),
        primary=Endpoint("10.0.0.11", 389),
        standby=Endpoint("10.0.0.12", 389),
    )
    assert rules == [str(rdr(ldap, target, "em0", tag_of("ldap"))) for target in Target]
    assert all(kernel.canonical(rule, 5) for rule in rules)
