"""Stage 1: what it is told (flips, lost packets, rescues), what it tells, and the bounds of its memory."""

from __future__ import annotations

import time

import pytest

from check_failover.sniffer.stage1.flowtable import MAX_FLOWS, MAX_FRAMES
from check_failover.sniffer.stage1.packet import SYN, UDP
from tests.unit import packets as made
from tests.unit.packets import Stage, Talk, datagram, datagram_back, learn, packed, repeatedly
from tests.unit.traffic import REFUSED, UNANSWERED, dns_stage


class TestWhatOthersTell:
    """Flips, drops, rescues; and what is asked of the watch."""

    def test_after_a_flip_nothing_old_is_held_against_the_new_target(self) -> None:
        """Open requests, unanswered SYNs and stranded connections were another server's."""
        stage = Stage()
        learn(stage)
        stranded = [Talk(stage, 42000 + n).connect() for n in range(5)]
        for talk in stranded:
            talk.ask(made.search(1))
        Talk(stage, 43000).syn()
        stage.wait(0.3)
        stage.found.clear()
        stage.traffic.flipped(stage.now)
        assert stage.traffic.detect.since(0.0) == (0, 0)
        for talk in stranded:
            talk.ask(made.search(2))
            talk.server_resets()  # the controller's own, for stranded connections
        stage.wait(20.0)
        assert stage.found == []

    def test_after_a_flip_retransmissions_begin_anew(self) -> None:
        """One before and one after are not two."""
        stage = Stage()
        talk = Talk(stage).connect()
        stage.wait(1.0)
        talk.ask(made.search(1))
        talk.again(len(made.search(1)))
        stage.traffic.flipped(stage.now)
        stage.wait(0.1)
        talk = Talk(stage, isn=77).connect()
        talk.ask(made.search(1))
        stage.wait(0.2)
        talk.again(len(made.search(1)))
        assert stage.found == []

    def test_after_a_flip_new_connections_are_watched(self) -> None:
        """From the same clients and ports."""
        stage = Stage()
        Talk(stage).connect().ask(made.search(1))
        stage.traffic.flipped(stage.now)
        talk = Talk(stage, isn=77).connect()
        talk.ask(made.search(1))
        stage.wait(1.0)
        assert stage.detectors()[0] is UNANSWERED

    def test_dropped_packets_take_the_evidence_away(self) -> None:
        """The replies may have been among them: nothing open counts, neither for nor against."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.ask(made.search(1))
        Talk(stage, 41000).syn()
        stage.wait(0.05)
        stage.traffic.lost(stage.now, 17)
        stage.wait(20.0)
        assert stage.found == []
        assert stage.traffic.detect.since(0.0) == (0, 0)
        assert list(stage.traffic.flows.unanswered(stage.now)) == []
        assert stage.traffic.stats(stage.now).drops == 17

    def test_dropped_packets_take_the_witness_of_a_rescue_away(self) -> None:
        """Its answer may have been among them, too."""
        stage = Stage()
        Talk(stage).syn()
        stage.wait(0.1)
        [(_, packet)] = stage.traffic.flows.unanswered(stage.now)
        stage.traffic.flows.sent_to_standby(packet)
        stage.traffic.lost(stage.now, 1)
        stage.wait(20.0)
        assert stage.found == []
        assert stage.traffic.detect.since(0.0) == (0, 0)

    def test_after_dropped_packets_it_goes_on(self) -> None:
        """Connections are taken up where they are."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.ask(made.search(1), seen=False)
        stage.traffic.lost(stage.now, 1)
        talk.serve(made.search(2), made.result(2))
        assert stage.traffic.detect.since(0.0) == (1, 1)
        talk.ask(made.search(3))
        stage.wait(1.0)
        assert stage.detectors()[0] is UNANSWERED

    def test_first_packets_are_kept_for_three_seconds(self) -> None:
        """Oldest first, without what was answered, and none with data in the SYN (Fast Open)."""
        stage = Stage()
        for port in (40001, 40002, 40003):
            Talk(stage, port).syn()
            stage.wait(0.1)
        fast_open = Talk(stage, 40004)
        stage.feed(fast_open.up(SYN, 1000, b"GET /"), b"frame")
        answered = Talk(stage, 40005)
        answered.syn()
        answered.accept()
        waiting = [packet.sport for _, packet in stage.traffic.flows.unanswered(stage.now)]
        assert waiting == [40001, 40002, 40003]
        stage.wait(2.85)
        assert [packet.sport for _, packet in stage.traffic.flows.unanswered(stage.now)] == [40003]

    def test_replies_that_came_are_useful_and_errors_are_not(self) -> None:
        """The numbers for the veto."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.serve(made.search(1), made.result(1))
        begun = stage.now
        talk.serve(made.search(2), made.result(2))
        talk.serve(made.search(3), made.result(3, 52))
        talk.ask(made.search(4))
        assert stage.traffic.detect.since(begun) == (3, 1)
        assert stage.traffic.detect.since(0.0) == (4, 2)

    def test_statistics(self) -> None:
        """For the traffic check."""
        stage = Stage()
        talk = learn(stage)
        talk.ask(made.search(500))
        stage.wait(0.5)
        stats = stage.traffic.stats(stage.now)
        assert (stats.requests, stats.replies, stats.unanswered) == (257, 256, 1)
        assert stats.oldest_unanswered == 0.5
        assert stats.p99 == pytest.approx(0.002)
        assert stage.traffic.usual() == pytest.approx(0.002)

    def test_thousands_of_hanging_requests_cost_no_more_than_their_number(self) -> None:
        """A hang at 1000 requests/s for 6 s: the clock's work stays small."""
        stage = Stage()
        learn(stage)
        flows = [Talk(stage, 20000 + n).connect() for n in range(1000)]
        begun = time.process_time()
        for number in range(6_000):
            flows[number % 1000].ask(made.search(number + 1000))
            stage.wait(0.001)
        assert UNANSWERED in stage.detectors()
        assert time.process_time() - begun < 6

    def test_the_memory_is_bounded(self) -> None:
        """More clients than flows are kept; closed connections leave nothing."""
        stage = Stage()
        for number in range(MAX_FLOWS + 100):
            talk = Talk(stage, number % 60000 + 1024, f"10.1.{number // 60000}.1")
            talk.syn()
            talk.accept()
        assert len(stage.traffic.flows) == MAX_FLOWS
        stage = Stage()
        for number in range(100):
            talk = Talk(stage, 30000 + number).connect()
            talk.serve(made.search(1), made.result(1))
            talk.ask(made.unbind(2))
            talk.close()
        stage.wait(1.0)
        assert (len(stage.traffic.flows), len(stage.traffic.detect._heap), len(stage.traffic.flows.frames)) == (
            0,
            0,
            0,
        )
        stage = Stage()
        for number in range(MAX_FRAMES + 100):
            Talk(stage, number + 1024).syn()
        assert len(stage.traffic.flows.frames) == MAX_FRAMES
        stage = dns_stage()
        for number in range(100):
            datagram(stage, 30000 + number, made.dns(number))
            datagram_back(stage, 30000 + number, made.dns(number, response=True))
        assert len(stage.traffic.flows) == 0
        for number in range(100):
            datagram(stage, 30000 + number, made.dns(number))
        repeatedly(stage, 60.0, 1.0, lambda _number: None)
        assert (len(stage.traffic.flows), len(stage.traffic.detect._heap)) == (0, 0)

    def test_ipv6(self) -> None:
        """The same for a service with an IPv6 address."""
        stage = Stage(made.service(address="2001:db8::10"))
        talk = Talk(stage, 40000, "2001:db8::7").connect()
        talk.serve(made.search(1), made.result(1))
        assert stage.traffic.detect.since(1000.0) == (1, 1)
        victim = Talk(stage, 41000, "2001:db8::8")
        victim.syn()
        victim.refused("2001:db8::11")
        assert stage.detectors() == [REFUSED]

    def test_packets_of_others_are_ignored(self) -> None:
        """Another address, port or protocol."""
        stage = Stage()
        talk = Talk(stage)
        for packet in (
            talk.up(SYN, 1)._replace(dport=390),
            talk.up(SYN, 1)._replace(dst=packed("192.0.2.11")),
            talk.up(SYN, 1)._replace(proto=UDP),
            talk.down(0x14, 1)._replace(src=packed("192.0.2.99")),
        ):
            stage.feed(packet)
        stage.wait(3600.0)
        assert stage.found == []
