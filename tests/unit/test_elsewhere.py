"""Connections that use the other server: conntrack lists them, and stage 1 takes none of them as evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_failover import control, listening, rights
from check_failover.config import load
from check_failover.model import Endpoint, Target
from check_failover.peer import Peer
from check_failover.redirector.elsewhere import Elsewhere
from check_failover.sniffer.loop import Loop
from check_failover.sniffer.stage1.flows import FlowKey
from check_failover.sniffer.stage1.flowtable import MAX_FLOWS, UDP_ELSEWHERE
from tests.lab.netns import poll
from tests.unit import packets as made
from tests.unit.packets import Stage, Talk, datagram, datagram_back, packed
from tests.unit.test_loop import CONFIG
from tests.unit.traffic import REFUSED, SILENCE, UNANSWERED, dns_stage

CLIENT = packed("198.51.100.7")


def listed(stage: Stage, *ports: int, complete: bool = True) -> None:
    """Conntrack's list arrives, of connections from one client's ports."""
    stage.traffic.list_elsewhere([(CLIENT, port) for port in ports], stage.now, complete=complete)
    stage.wait(0.001)


def old(stage: Stage, port: int) -> Talk:
    """A connection that began before the capture."""
    return Talk(stage, port)


# ---------------------------------------------------------------- flows


def test_a_listed_flow_is_no_evidence() -> None:
    """Neither its requests nor its answers count; a flow that is not listed is the target's."""
    stage = Stage()
    listed(stage, 40000)
    other, ours = old(stage, 40000), old(stage, 41000)
    for number in range(1, 6):
        other.serve(made.search(number), made.result(number))
    assert stage.traffic.detect.since(0.0) == (0, 0)
    ours.serve(made.search(1), made.result(1))
    assert stage.traffic.detect.since(0.0) == (1, 1)
    other.ask(made.search(9))
    stage.wait(5.0)
    assert stage.found == []
    assert stage.traffic.detect.since(0.0) == (1, 1)


def test_answers_counted_before_the_list_came_are_taken_back() -> None:
    """The capture begins a moment before the list arrives."""
    stage = Stage()
    other = old(stage, 40000)
    other.serve(made.search(1), made.result(1))
    other.ask(made.search(2))
    assert stage.traffic.detect.since(0.0) == (2, 1)
    listed(stage, 40000)
    assert stage.traffic.detect.since(0.0) == (0, 0)
    stage.wait(5.0)
    assert stage.found == []


def test_a_list_without_news_takes_nothing_back() -> None:
    """The evidence of the target's own flows stays."""
    stage = Stage()
    listed(stage, 40000)
    ours = Talk(stage, 41000).connect()
    ours.serve(made.search(1), made.result(1))
    before = stage.traffic.detect.since(0.0)
    listed(stage, 40000)
    assert stage.traffic.detect.since(0.0) == before == (1, 1)


@pytest.mark.parametrize("how", ["sampled out", "evicted"])
def test_a_flow_that_the_table_forgot_stays_elsewhere(how: str) -> None:
    """A drain begins while the table does not have the flow: the list still does, when the flow is captured again."""
    stage = Stage()
    talk = Talk(stage, 40000).connect()
    if how == "sampled out":
        stage.traffic.flows.narrowed(lambda _port: False)
    else:
        for number in range(MAX_FLOWS):
            Talk(stage, number % 60000 + 1024, f"10.1.{number // 60000}.1").syn()
    stage.traffic.flipped(stage.now)
    listed(stage, 40000)
    stage.traffic.flows.narrowed(lambda _port: True)
    talk.serve(made.search(1), made.result(1))
    assert stage.traffic.detect.since(0.0) == (0, 0)


def test_a_listed_flow_survives_the_sampling() -> None:
    """What is known of a flow elsewhere does not depend on whether its port is captured now."""
    stage = Stage()
    listed(stage, 40000)
    stage.traffic.flows.narrowed(lambda _port: False)
    stage.traffic.lost(stage.now, 3)
    stage.traffic.flows.narrowed(lambda _port: True)
    old(stage, 40000).serve(made.search(1), made.result(1))
    assert stage.traffic.detect.since(0.0) == (0, 0)


def test_the_list_shrinks() -> None:
    """A flow that conntrack no longer has elsewhere is the target's when it speaks again; then nothing is asked."""
    stage = Stage()
    listed(stage, 40000, 40001)
    assert stage.traffic.flows.knows_elsewhere()
    listed(stage, 40001)
    old(stage, 40000).serve(made.search(1), made.result(1))
    assert stage.traffic.detect.since(0.0) == (1, 1)
    listed(stage)
    assert not stage.traffic.flows.knows_elsewhere()


def test_a_port_that_is_used_again_is_the_targets() -> None:
    """The new connection began after the question: the list is about the former one."""
    stage = Stage()
    listed(stage, 40000)
    asked = stage.now
    stage.wait(0.01)
    talk = Talk(stage, 40000).connect()
    stage.traffic.list_elsewhere([(CLIENT, 40000)], asked, complete=True)
    talk.ask(made.search(1))
    stage.wait(1.0)
    assert UNANSWERED in stage.detectors()


def test_a_new_connection_that_conntrack_has_elsewhere_is_no_evidence() -> None:
    """It began before the question: conntrack knows better than its SYN."""
    stage = Stage()
    talk = Talk(stage, 40000).connect()
    listed(stage, 40000)
    talk.serve(made.search(1), made.result(1))
    assert stage.traffic.detect.since(0.0) == (0, 0)


def test_a_rescued_connection_stays_with_the_standby() -> None:
    """A list that was asked for before conntrack had its entry does not give it back to the primary."""
    stage = Stage()
    talk = Talk(stage, 40000)
    talk.syn()
    stage.wait(0.1)
    [(_, packet)] = stage.traffic.flows.unanswered(stage.now)
    stage.traffic.flows.sent_to_standby(packet)
    listed(stage)
    talk.accept()
    talk.serve(made.search(1), made.result(1))
    assert stage.traffic.detect.since(stage.now - 0.05)[1] == 0
    stage.wait(10.0)
    listed(stage)
    assert not stage.traffic.flows.knows_elsewhere()


def test_an_incomplete_list_leaves_old_flows_unknown() -> None:
    """No flow counts whose beginning was not captured; new connections do, and so does a refusal."""
    stage = Stage()
    before = old(stage, 40000)
    before.serve(made.search(1), made.result(1))
    listed(stage, complete=False)
    assert stage.traffic.flows.knows_elsewhere()
    before.serve(made.search(2), made.result(2))
    old(stage, 40001).ask(made.search(1))
    stage.wait(2.0)
    assert (stage.traffic.detect.since(0.0), stage.found) == ((0, 0), [])
    Talk(stage, 40002).connect().serve(made.search(1), made.result(1))
    assert stage.traffic.detect.since(0.0) == (1, 1)
    victim = Talk(stage, 40003)
    victim.syn()
    victim.refused()
    assert REFUSED in stage.detectors()
    listed(stage)
    before.serve(made.search(3), made.result(3))
    assert stage.traffic.detect.since(0.0)[1] == 2


def test_a_listed_datagram_client_is_no_evidence() -> None:
    """Until conntrack forgets its port."""
    stage = dns_stage()
    listed(stage, 5353)
    datagram(stage, 5353, made.dns(1))
    datagram_back(stage, 5353, made.dns(1, response=True))
    assert stage.traffic.detect.since(0.0) == (0, 0)
    stage.wait(UDP_ELSEWHERE + 1.0)
    datagram(stage, 5353, made.dns(2))
    datagram_back(stage, 5353, made.dns(2, response=True))
    assert stage.traffic.detect.since(0.0) == (1, 1)
    listed(stage, complete=False)
    datagram(stage, 5354, made.dns(3))
    assert stage.traffic.detect.since(0.0) == (0, 0)


def test_the_other_servers_traffic_does_not_hide_the_targets_silence() -> None:
    """Demand at the other server is none at this one."""
    stage = Stage()
    Talk(stage, 41000).connect().serve(made.search(1), made.result(1))
    listed(stage, 40000)
    other = old(stage, 40000)
    for number in range(1, 100):
        other.serve(made.search(number), made.result(number))
        stage.wait(1.0)
    assert SILENCE in stage.detectors()


# ---------------------------------------------------------------- pages


def pages(listing: Elsewhere) -> Iterator[control.Message]:
    after = ""
    while True:
        page = listing.page("ldap", after)
        assert len(json.dumps({"ok": True, **page})) < control.MAX_LINE
        yield page
        after = page["after"]
        if not after:
            return


def endpoints(number: int) -> list[Endpoint]:
    return [Endpoint(f"2001:db8:1111:2222:3333:4444:{n >> 16:x}:5555", n & 0xFFFF) for n in range(number)]


@pytest.mark.parametrize(("clients", "wanted"), [(0, 1), (999, 1), (1000, 1), (1001, 2), (2500, 3)])
def test_each_client_is_on_one_page(clients: int, wanted: int) -> None:
    """And the kernel is asked once."""
    asked: list[str] = []

    def find(name: str) -> tuple[Target, list[Endpoint]]:
        asked.append(name)
        return Target.PRIMARY, endpoints(clients)

    found = list(pages(Elsewhere(find)))
    assert len(found) == wanted
    assert sorted(one for page in found for one in page["clients"]) == sorted(map(str, endpoints(clients)))
    assert {(page["target"], page["more"]) for page in found} == {("primary", False)}
    assert asked == ["ldap"]


def test_the_list_has_an_end() -> None:
    """The last page says that there are more."""
    many = endpoints(control.MAX_ELSEWHERE + 5)
    found = list(pages(Elsewhere(lambda _name: (Target.STANDBY, many))))
    assert sum(len(page["clients"]) for page in found) == control.MAX_ELSEWHERE
    assert len(found) == control.MAX_ELSEWHERE // control.ELSEWHERE_PAGE
    assert found[-1]["more"]


def test_a_page_that_nobody_remembers_is_made_anew() -> None:
    """After a restart the page begins behind the named client."""
    listing = Elsewhere(lambda _name: (Target.PRIMARY, [Endpoint("192.0.2.1", port) for port in (1001, 1002, 1003)]))
    assert listing.page("ldap", "192.0.2.1:1001")["clients"] == ["192.0.2.1:1002", "192.0.2.1:1003"]


# ---------------------------------------------------------------- the sniffer asks


class Redirector:
    """Answers with these pages, and greets with this target."""

    def __init__(self, path: Path, target: Target, *answers: control.Message) -> None:
        self.asked: list[control.Message] = []
        self._answers = list(answers)
        hello = {"targets": {"ldap": str(target)}}
        verbs = rights.OF_REDIRECTOR
        self.server = listening.Server(path, verbs, self._handle, lambda _v, _p: None, lambda: hello)
        self.server.start()

    def _handle(self, message: control.Message, _peer: Peer) -> control.Message:
        if message["verb"] == "elsewhere":
            self.asked.append(message)
            return self._answers.pop(0)
        return {}


def page(*clients: str, after: str = "", more: bool = False, target: str = "primary") -> control.Message:
    return {"target": target, "clients": list(clients), "after": after, "more": more}


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(tmp_path))
    made_loop = Loop(load(path))
    yield made_loop
    made_loop.stop()
    made_loop.close()


def known(loop: Loop) -> dict[FlowKey, object]:
    loop.call(lambda: None)
    loop._drain_wake()
    return dict(loop.monitors["ldap"].traffic.flows._elsewhere)


def test_the_sniffer_asks_at_its_start_and_after_a_drain(loop: Loop, tmp_path: Path) -> None:
    """All pages, and again when the redirector drains; a flip without a drain leaves nothing to ask for."""
    first, second = page("198.51.100.7:4000", after="198.51.100.7:4000"), page("[2001:db8::7]:4001")
    third = page("198.51.100.8:4002", target="standby")
    redirector = Redirector(tmp_path / "redirector.sock", Target.PRIMARY, first, second, third)
    loop.link.start()
    listed_first = {(CLIENT, 4000), (packed("2001:db8::7"), 4001)}
    poll(lambda: known(loop).keys() == listed_first, 5.0, "both pages")
    assert [one["after"] for one in redirector.asked] == ["", "198.51.100.7:4000"]
    redirector.server.publish({"event": "flip", "service": "ldap", "target": "standby", "drain": True})
    poll(lambda: known(loop).keys() == {(packed("198.51.100.8"), 4002)}, 5.0, "the list after the drain")
    redirector.server.publish({"event": "flip", "service": "ldap", "target": "primary", "drain": False})
    poll(lambda: known(loop) == {}, 5.0, "the flip")
    assert len(redirector.asked) == 3
    redirector.server.close()


def test_the_sniffer_asks_again_while_connections_are_elsewhere(loop: Loop, tmp_path: Path) -> None:
    """Until none is left, and not more often than it compares counters."""
    one, none = page("198.51.100.7:4000"), page()
    redirector = Redirector(tmp_path / "redirector.sock", Target.PRIMARY, one, one, none)
    loop.link.start()
    poll(lambda: len(known(loop)) == 1, 5.0, "one is elsewhere")
    now = time.monotonic() + 100.0
    for moment in (0.0, 1.0, 2.0):
        loop._count(now + moment)
    poll(lambda: len(redirector.asked) == 2, 5.0, "asked again")
    loop._count(now + 10.0)
    poll(lambda: known(loop) == {}, 5.0, "none is left")
    loop._count(now + 20.0)
    assert len(redirector.asked) == 3
    redirector.server.close()


@pytest.mark.parametrize(
    "answer",
    [{}, page("nonsense"), {**page(), "clients": 7}, {**page(), "clients": [None]}, page(target="both")],
)
def test_a_list_that_makes_no_sense_changes_nothing(loop: Loop, tmp_path: Path, answer: control.Message) -> None:
    """It is logged, and the next one is taken."""
    redirector = Redirector(tmp_path / "redirector.sock", Target.PRIMARY, answer, page("198.51.100.7:4000"))
    loop.link.start()
    poll(lambda: len(redirector.asked) == 1, 5.0, "the first one")
    loop.link.ask_elsewhere("ldap")
    poll(lambda: known(loop).keys() == {(CLIENT, 4000)}, 5.0, "the second one")
    redirector.server.close()


def test_a_list_about_another_target_is_left_out(loop: Loop, tmp_path: Path) -> None:
    """The redirect moved while it was on its way."""
    late, fresh = page("198.51.100.9:4009", target="standby"), page("198.51.100.7:4000")
    redirector = Redirector(tmp_path / "redirector.sock", Target.PRIMARY, late, fresh)
    loop.link.start()
    poll(lambda: len(redirector.asked) == 1, 5.0, "the late one")
    loop.link.ask_elsewhere("ldap")
    poll(lambda: known(loop).keys() == {(CLIENT, 4000)}, 5.0, "the fresh one")
    redirector.server.close()
