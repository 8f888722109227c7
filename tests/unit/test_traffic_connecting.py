"""Stage 1: connections that are not answered or refused. The clock is simulated."""

from __future__ import annotations

import time

import pytest

from check_failover.sniffer.stage1.detectors import MIN_INTERVAL
from check_failover.sniffer.stage1.flowtable import MAX_FLOWS
from check_failover.sniffer.stage1.packet import ACK, SYN, UDP
from tests.unit import packets as made
from tests.unit.packets import PRIMARY, STANDBY, Stage, Talk, datagram, packed
from tests.unit.traffic import REFUSED, SILENCE, SYN_UNANSWERED, dns_stage, known_round_trip, unreachable


class TestUnansweredSyn:
    """A dead host, a full backlog."""

    @pytest.mark.parametrize(("seconds", "wait"), [(0.001, 0.1), (0.1, 0.1), (0.3, 0.3), (1.0, 0.5)])
    def test_it_is_suspicious_after_the_clamped_time_of_rfc_6298(self, seconds: float, wait: float) -> None:
        """SRTT + 4 RTTVAR, within 100 and 500 ms."""
        stage = Stage()
        known_round_trip(stage, seconds)
        stage.found.clear()
        begun = stage.now
        Talk(stage).syn()
        stage.wait(2.0)
        first = stage.first(SYN_UNANSWERED)
        assert first.now - begun == pytest.approx(wait, abs=0.01)
        assert first.since == begun

    def test_nothing_known_is_between_100_and_500_ms(self) -> None:
        """The very first client finds the server dark."""
        stage = Stage()
        Talk(stage).syn()
        stage.wait(2.0)
        assert 0.1 <= stage.first(SYN_UNANSWERED).now - 1000.0 <= 0.5
        assert stage.traffic.detect.since(1000.0) == (1, 0)

    def test_any_packet_from_the_server_since_is_a_sign_of_life(self) -> None:
        """An ACK to somebody else: one lost SYN."""
        stage = Stage()
        other = Talk(stage, 50000).connect()
        talk = Talk(stage)
        talk.syn()
        stage.wait(0.05)
        other.ask(made.search(1))
        other.answer(made.result(1))
        stage.wait(10.0)
        assert stage.found == []

    def test_it_goes_on_as_long_as_there_is_demand(self) -> None:
        """Suspicious again and again while clients wait, and no more when they have given up."""
        stage = Stage()
        Talk(stage).syn()
        stage.wait(60.0)
        assert len(stage.found) > 5
        moments = [found.now for found in stage.found if found.detector is SYN_UNANSWERED]
        assert 1025 < moments[-1] < 1045
        stage.wait(3600.0)
        assert stage.detectors() == [SYN_UNANSWERED] * len(moments) + [SILENCE]

    def test_a_repeated_syn_is_the_same_demand(self) -> None:
        """It is counted once, its round trip is not believed (Karn's rule), and it is no retransmission of data."""
        stage = Stage()
        known_round_trip(stage, 0.001)
        talk = Talk(stage)
        talk.syn()
        stage.wait(0.09)
        begun = stage.now
        talk.syn()
        assert stage.traffic.detect.since(1000.0)[0] == 1
        talk.accept()
        stage.found.clear()
        stage.wait(5.0)
        Talk(stage, 41000).syn()
        stage.wait(0.2)
        assert stage.first(SYN_UNANSWERED).now - begun == pytest.approx(5.1, abs=0.001)

    def test_a_client_that_goes_on_was_answered(self) -> None:
        """Its SYN-ACK was not captured, but it sends data: the connection stands."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        talk.ack += 1
        talk.ask(made.unbind(1))
        stage.wait(10.0)
        assert stage.found == []
        assert stage.traffic.detect.since(0.0) == (0, 0)

    def test_an_answer_with_another_number_is_none(self) -> None:
        """4-tuple and ISN: a SYN-ACK for a connection of the past does not answer this one."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        stage.feed(talk.down(SYN | ACK, 5)._replace(ack=77))
        stage.wait(0.5)
        assert stage.traffic.detect.since(1000.0) == (1, 0)

    def test_a_rescued_connection_stays_a_witness(self) -> None:
        """The other server got the SYN after 100 ms: that this one did not answer is still suspicious."""
        stage = Stage()
        for number in range(3):
            Talk(stage, 40000 + number).syn()
        stage.wait(0.1)
        waiting = list(stage.traffic.flows.unanswered(stage.now))
        assert len(waiting) == 3
        for _, packet in waiting:
            stage.traffic.flows.sent_to_standby(packet)
        assert list(stage.traffic.flows.unanswered(stage.now)) == []
        stage.wait(0.5)
        assert stage.detectors()[0] is SYN_UNANSWERED
        assert stage.traffic.detect.since(1000.0) == (3, 0)

    def test_the_answer_of_the_other_server_is_no_sign_of_life(self) -> None:
        """A rescued connection lives on the standby; nothing of it says anything about the primary."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        stage.wait(0.1)
        [(_, packet)] = stage.traffic.flows.unanswered(stage.now)
        stage.traffic.flows.sent_to_standby(packet)
        talk.accept()
        talk.serve(made.search(1), made.result(1))
        stage.wait(0.5)
        assert stage.detectors()[0] is SYN_UNANSWERED
        assert stage.now - stage.traffic.detect.server_seen > 0.5


class TestRefused:
    """A dead process."""

    def test_a_withheld_rst_is_suspicious_at_once(self) -> None:
        """It comes from the server, the client never gets it, and its first packet stays there to be rescued."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        stage.wait(0.0004)
        talk.refused(PRIMARY)
        assert stage.detectors() == [REFUSED]
        assert stage.found[0].now == stage.now
        assert stage.found[0].since == 1000.0
        assert stage.traffic.flows.first_packet(packed("198.51.100.7"), 40000) is not None

    def test_a_rst_that_the_client_gets_ends_it(self) -> None:
        """Suspicious at once, asked in vain, and nothing is left to wait for."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        talk.refused(None)
        stage.wait(20.0)
        assert stage.detectors() == [REFUSED]
        assert stage.traffic.detect.since(1000.0) == (1, 0)
        assert list(stage.traffic.flows.unanswered(stage.now)) == []

    def test_behind_source_nat_the_number_tells_whose_it_is(self) -> None:
        """The RST goes to the controller's address; the ISN is the client's."""
        stage = Stage(made.service(source_nat="10.0.0.1"))
        talk = Talk(stage)
        talk.syn()
        talk.refused(PRIMARY, to="10.0.0.1")
        assert stage.detectors() == [REFUSED]

    def test_behind_source_nat_forged_refusals_are_cheap(self) -> None:
        """A hundred a second, each looked for among all connections, kept the loop busy and the capture blind."""
        stage = Stage(made.service(source_nat="10.0.0.1"))
        for number in range(MAX_FLOWS):
            Talk(stage, number + 1024, isn=2 * number).syn()
        forged = Talk(stage, 9, "10.0.0.1")
        begun = time.process_time()
        for number in range(1000):
            forged.seq = 2 * number
            forged.refused()
        assert time.process_time() - begun < 1
        assert stage.found == []

    def test_the_refusal_of_our_own_probe_is_nobodys(self) -> None:
        """The standby refuses the sniffer's probe while a client waits for the primary: no refusal."""
        for nat in (None, "10.0.0.1"):
            stage = Stage(made.service(source_nat=nat))
            Talk(stage).syn()
            probe = Talk(stage, 47000, isn=123456)
            probe.seq = probe.isn + 1
            probe.refused(STANDBY, to="10.0.0.1")
            assert stage.found == []

    def test_a_rst_with_another_number_refuses_nothing(self) -> None:
        """Forged, or of a connection of the past."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        talk.seq = 5
        talk.refused(PRIMARY)
        assert stage.found == []

    def test_icmp_unreachable_is_suspicious_at_once(self) -> None:
        """About a packet of a client that waits, TCP or UDP."""
        stage = Stage()
        Talk(stage).syn()
        unreachable(stage, 40000)
        assert stage.detectors() == [REFUSED]
        stage = dns_stage()
        datagram(stage, 5353, made.dns(1))
        unreachable(stage, 5353, proto=UDP)
        assert stage.detectors() == [REFUSED]

    def test_icmp_about_what_nobody_asked_is_forged(self) -> None:
        """No flow, nothing open, another service, a client's own port unreachable."""
        stage = Stage()
        unreachable(stage, 40000)
        Talk(stage).connect()
        unreachable(stage, 40000)
        Talk(stage, 41000).syn()
        unreachable(stage, 41000, to="10.0.0.99")
        unreachable(stage, 41000, proto=UDP)
        assert stage.found == []

    def test_refusals_are_never_slowed_down(self) -> None:
        """They have no threshold that could double: only the pause between two."""
        stage = Stage()
        for number in range(5):
            stage.traffic.detect.refuted(REFUSED, stage.now)
            talk = Talk(stage, 40000 + number)
            talk.syn()
            talk.refused()
            stage.wait(MIN_INTERVAL)
        assert stage.detectors().count(REFUSED) == 5

    def test_many_refusals_are_one_suspicion(self) -> None:
        """Rate-limited: a hundred clients at once make one probe, not a hundred."""
        stage = Stage()
        for number in range(100):
            talk = Talk(stage, 40000 + number)
            talk.syn()
            talk.refused(PRIMARY)
        assert stage.detectors() == [REFUSED]
