"""Stage 1: every detector at its time, and everything that must not make it suspicious. The clock is simulated."""

from __future__ import annotations

import heapq
import itertools
import random
import time

import pytest

from check_failover.model import Detector
from check_failover.sniffer.stage1.detectors import AGAIN
from check_failover.sniffer.stage1.flowtable import MAX_FLOWS, MAX_FRAMES
from check_failover.sniffer.stage1.packet import ACK, SYN, TCP, UDP, Packet
from tests.unit import packets as made
from tests.unit.packets import PRIMARY, STANDBY, WORD, Stage, Talk, datagram, datagram_back, learn, packed, repeatedly

REFUSED, SYN_UNANSWERED, UNANSWERED = Detector.REFUSED, Detector.UNANSWERED_SYN, Detector.UNANSWERED_REQUEST
REPEATED, ERRORS, SILENCE = Detector.RETRANSMISSION, Detector.ERROR_SHARE, Detector.SILENCE


def dns_stage() -> Stage:
    return Stage(made.service("dns", port=53, protocol="udp"))


def known_round_trip(stage: Stage, seconds: float, times: int = 40) -> None:
    """Teach the watch how long a handshake takes."""
    for number in range(times):
        talk = Talk(stage, 30000 + number).connect(seconds)
        stage.wait(0.01)
        talk.close()
        stage.wait(0.01)


def unreachable(stage: Stage, port: int, to: str = PRIMARY, client: str = "198.51.100.7", proto: int = TCP) -> None:
    """ICMP about a packet of that client."""
    service_port = stage.service.address.port
    stage.feed(Packet(stage.now, proto, packed(client), port, packed(to), service_port, 0, 0, 0, b"", 0, True))


def lossy(seed: int, before: float, behind: float) -> Stage:
    """Thirty clients for 12 s on lossy ways before the controller and behind it; TCP's repetitions after 200 ms."""
    chance = random.Random(seed)
    stage = Stage()
    learn(stage)
    request, reply = made.search(1), made.entry(1) + made.result(1)
    half = len(made.entry(1))
    order = itertools.count()
    events: list[tuple[float, int, str, Talk, float]] = []

    def later(seconds: float, what: str, talk: Talk, patience: float = 0.2) -> None:
        heapq.heappush(events, (stage.now + seconds, next(order), what, talk, patience))

    for number in range(30):
        later(number * 0.003, "ask", Talk(stage, 42000 + number, f"198.51.100.{number}").connect())
    end = stage.now + 12.0
    while events[0][0] < end:
        at, _, what, talk, patience = heapq.heappop(events)
        stage.wait(max(0.0, at - stage.now))
        if what in ("ask", "ask again"):
            seen = chance.random() >= before
            if what == "ask":
                talk.ask(request, seen=seen)
            elif seen:
                stage.feed(talk.up(ACK, talk.seq - len(request), request))
            if seen and chance.random() >= behind:
                later(0.002, "answer", talk)
            else:
                later(patience, "ask again", talk, 2 * patience)
        elif what == "answer":
            first, second = chance.random() >= behind, chance.random() >= behind
            talk.answer(reply[:half], seen=first)
            talk.answer(reply[half:], seen=second)
            later(*((0.03, "ask") if first and second else (0.2, "answer again")), talk)
        elif chance.random() >= behind:
            talk.answer_again(reply)
            later(0.03, "ask", talk)
        else:
            later(0.4, "answer again", talk)
    return stage


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
        assert stage.traffic.since(1000.0) == (1, 0)

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
        assert stage.traffic.since(1000.0)[0] == 1
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
        assert stage.traffic.since(0.0) == (0, 0)

    def test_an_answer_with_another_number_is_none(self) -> None:
        """4-tuple and ISN: a SYN-ACK for a connection of the past does not answer this one."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        stage.feed(talk.down(SYN | ACK, 5)._replace(ack=77))
        stage.wait(0.5)
        assert stage.traffic.since(1000.0) == (1, 0)

    def test_a_rescued_connection_stays_a_witness(self) -> None:
        """The other server got the SYN after 100 ms: that this one did not answer is still suspicious."""
        stage = Stage()
        for number in range(3):
            Talk(stage, 40000 + number).syn()
        stage.wait(0.1)
        waiting = list(stage.traffic.unanswered(stage.now))
        assert len(waiting) == 3
        for _, packet in waiting:
            stage.traffic.sent_on(packet)
        assert list(stage.traffic.unanswered(stage.now)) == []
        stage.wait(0.5)
        assert stage.detectors()[0] is SYN_UNANSWERED
        assert stage.traffic.since(1000.0) == (3, 0)

    def test_the_answer_of_the_other_server_is_no_sign_of_life(self) -> None:
        """A rescued connection lives on the standby; nothing of it says anything about the primary."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        stage.wait(0.1)
        [(_, packet)] = stage.traffic.unanswered(stage.now)
        stage.traffic.sent_on(packet)
        talk.accept()
        talk.serve(made.search(1), made.result(1))
        stage.wait(0.5)
        assert stage.detectors()[0] is SYN_UNANSWERED
        assert stage.traffic.mute_since(stage.now) > 0.5


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
        assert stage.traffic.first_packet(packed("198.51.100.7"), 40000) is not None

    def test_a_rst_that_the_client_gets_ends_it(self) -> None:
        """Suspicious at once, asked in vain, and nothing is left to wait for."""
        stage = Stage()
        talk = Talk(stage)
        talk.syn()
        talk.refused(None)
        stage.wait(20.0)
        assert stage.detectors() == [REFUSED]
        assert stage.traffic.since(1000.0) == (1, 0)
        assert list(stage.traffic.unanswered(stage.now)) == []

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
            stage.traffic.refuted(REFUSED, stage.now)
            talk = Talk(stage, 40000 + number)
            talk.syn()
            talk.refused()
            stage.wait(AGAIN)
        assert stage.detectors().count(REFUSED) == 5

    def test_many_refusals_are_one_suspicion(self) -> None:
        """Rate-limited: a hundred clients at once make one probe, not a hundred."""
        stage = Stage()
        for number in range(100):
            talk = Talk(stage, 40000 + number)
            talk.syn()
            talk.refused(PRIMARY)
        assert stage.detectors() == [REFUSED]


class TestRetransmission:
    """Loss and dead hosts, seen by open connections."""

    def flows(self, stage: Stage, count: int) -> list[Talk]:
        return [Talk(stage, 42000 + n, f"198.51.100.{n + 1}").connect() for n in range(count)]

    def test_half_of_the_active_flows_within_800_ms(self) -> None:
        """Blink's rule: three of six; two of six are not."""
        stage = Stage()
        flows = self.flows(stage, 6)
        for talk in flows:
            talk.serve(made.search(1), made.result(1))
        for talk in flows:
            talk.ask(made.search(2))
        stage.wait(0.01)
        for talk in flows[3:]:
            talk.acknowledge()
        size = len(made.search(2))
        for talk in flows[:2]:
            stage.wait(0.05)
            talk.again(size)
        assert REPEATED not in stage.detectors()
        stage.wait(0.05)
        flows[2].again(size)
        assert stage.detectors()[-1] is REPEATED

    @pytest.mark.parametrize("seed", range(2))
    def test_heavy_loss_behind_the_controller(self, seed: int) -> None:
        """Half of all packets between the controller and the server: the open connections tell."""
        assert REPEATED in lossy(seed, 0.0, 0.5).detectors()

    @pytest.mark.parametrize("seed", range(2))
    def test_heavy_loss_before_the_controller(self, seed: int) -> None:
        """Half of all packets of the clients never arrive: nothing of that is the server's."""
        assert lossy(seed, 0.5, 0.0).found == []

    def test_older_than_800_ms_is_not_counted(self) -> None:
        """The same three, too slowly, while the others are active."""
        stage = Stage()
        flows = self.flows(stage, 6)
        for talk in flows:
            talk.ask(b"x")
        size = 1
        for talk in flows:
            talk.ask(made.search(2))
        size = len(made.search(2))
        for talk in flows[:3]:
            for other in flows[3:]:
                other.acknowledge()
                other.ask(made.unbind(3))
                other.acknowledge()
            talk.again(size)
            stage.wait(0.81)
        assert REPEATED not in stage.detectors()

    def test_two_on_one_flow_while_the_server_is_mute(self) -> None:
        """A single client, a host that went dark."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.serve(made.search(1), made.result(1))
        stage.wait(1.0)
        talk.ask(made.search(2))
        size = len(made.search(2))
        stage.wait(0.2)
        talk.again(size)
        assert REPEATED not in stage.detectors()
        stage.wait(0.4)
        talk.again(size)
        assert stage.detectors()[-1] is REPEATED

    def test_two_on_one_flow_while_the_server_speaks_to_others(self) -> None:
        """One client's way is broken, between the controller and the server or beyond."""
        stage = Stage()
        other = Talk(stage, 50000).connect()
        talk = Talk(stage).connect()
        talk.ask(made.search(2))
        for number in range(5):
            stage.wait(0.1)
            talk.again(len(made.search(2)))
            other.serve(made.search(number), made.result(number))
        assert REPEATED not in stage.detectors()

    def test_bytes_that_the_server_has_are_no_sign(self) -> None:
        """The ACKs do not reach the client: its own broken link, however many connections it has."""
        stage = Stage()
        flows = [Talk(stage, 42000 + n).connect() for n in range(10)]
        for talk in flows:
            talk.ask(made.search(2))
            talk.acknowledge()
            talk.answer(made.result(2))
        for _ in range(5):
            stage.wait(0.2)
            for talk in flows:
                talk.again(len(made.search(2)))
        assert stage.found == []

    def test_bytes_that_were_lost_before_us_are_no_repetition(self) -> None:
        """The client's way to the controller is lossy: holes, filled later."""
        stage = Stage()
        flows = [Talk(stage, 42000 + n).connect() for n in range(4)]
        for _ in range(20):
            for talk in flows:
                talk.ask(made.bind(1), seen=False)
                talk.ask(made.bind(2))
                talk.again(len(made.bind(1) + made.bind(2)))
            stage.wait(0.1)
        assert REPEATED not in stage.detectors()

    def test_a_syn_is_no_data(self) -> None:
        """SYNs that are repeated belong to the detector of SYNs: a flood of them repeats half of the flows."""
        stage = Stage()
        other = Talk(stage, 50000).connect()
        flood = [Talk(stage, 42000 + n) for n in range(50)]
        for _ in range(4):
            for talk in flood:
                talk.syn()
            other.serve(made.search(1), made.result(1))
            stage.wait(0.1)
        assert stage.found == []


class TestUnansweredRequest:
    """A hang: TCP looks perfect, the ACKs keep coming."""

    def test_300_ms_until_100_replies_are_known(self) -> None:
        """With the ACKs of the server's kernel."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.serve(made.search(1), made.result(1), 2.0)
        stage.found.clear()
        begun = stage.now
        talk.ask(made.search(2))
        stage.wait(0.04)
        talk.acknowledge()
        stage.wait(1.0)
        first = stage.first(UNANSWERED)
        assert first.now - begun == pytest.approx(0.3)
        assert first.since == begun
        assert first.text == "1 of 1 requests without reply for 0.30 s"

    @pytest.mark.parametrize(("usual", "wait"), [(0.002, 0.1), (0.05, 0.2)])
    def test_four_times_p99_of_that_operation_afterwards(self, usual: float, wait: float) -> None:
        """At least 100 ms; a slow search does not make a bind slow."""
        stage = Stage()
        talk = Talk(stage).connect()
        for number in range(1, 129):
            talk.serve(made.search(number), made.result(number), 0.2)
            talk.serve(made.bind(number), made.result(number, tag=0x61), usual)
        begun = stage.now
        talk.ask(made.bind(500))
        stage.wait(1.0)
        assert stage.first(UNANSWERED).now - begun == pytest.approx(wait)
        talk.answer(made.result(500, tag=0x61))
        stage.wait(2.0)
        stage.found.clear()
        begun = stage.now
        talk.ask(made.search(501))
        stage.wait(2.0)
        assert stage.first(UNANSWERED).now - begun == pytest.approx(0.8)

    @pytest.mark.parametrize("slow", [1.0, 20.0])
    def test_one_client_with_slow_questions_does_not_make_it_deaf(self, slow: float) -> None:
        """Two of a hundred searches take seconds: that is p99 tells; ten in a row without a reply are no chance."""
        stage = Stage()
        busy, reports = learn(stage), Talk(stage, 39001).connect()
        for number in range(10):
            reports.ask(made.search(number + 1))
            repeatedly(stage, slow, slow / 40, lambda n: busy.serve(made.search(1000 + n), made.result(1000 + n)))
            reports.answer(made.result(number + 1))
        busy.serve(made.search(2000), made.result(2000))
        assert stage.traffic._detect.reply_times["search"].wait() > 3 * slow
        assert stage.found == []
        begun = stage.now
        repeatedly(stage, 0.3, 0.01, lambda n: Talk(stage, 42000 + n).connect().ask(made.search(1)))
        assert stage.first(UNANSWERED).now - begun < 0.25

    def test_ten_at_once_that_are_answered_one_by_one(self) -> None:
        """Slow questions of ten clients while the server is at work on them: each reply is a sign of life."""
        stage = Stage()
        busy = learn(stage)
        for number in range(128):
            busy.serve(made.search(1000 + number), made.result(1000 + number), 0.002 if number % 20 else 0.5)
        stage.found.clear()
        clients = [Talk(stage, 42000 + n).connect() for n in range(20)]
        for talk in clients:
            talk.ask(made.search(1))
        for talk in clients:
            stage.wait(0.05)
            talk.answer(made.result(1))
        assert stage.found == []

    def test_every_client_hangs(self) -> None:
        """All of them are in the count."""
        stage = Stage()
        learn(stage)
        flows = [Talk(stage, 42000 + n).connect() for n in range(12)]
        begun = stage.now
        for talk in flows:
            talk.ask(made.search(9))
        stage.wait(0.2)
        assert stage.first(UNANSWERED).text == "12 of 12 requests without reply for 0.10 s"
        assert stage.traffic.since(begun) == (12, 0)

    @pytest.mark.parametrize(
        ("service", "request_", "wait"),
        [
            (made.service("dns", port=53), made.framed(made.dns(1)), 0.3),
            (made.service("http", port=80), made.get(), 0.3),
            (made.service("tcp", port=25), b"EHLO example.org\r\n", 0.3),
            (made.service("ldap", port=636, tls="ldaps"), b"\x17\x03\x03\0\x05abcde", 2.0),
            (made.service("https", port=443), b"\x17\x03\x03\0\x05abcde", 2.0),
        ],
        ids=["dns over tcp", "http", "bytes", "ldaps", "https"],
    )
    def test_every_dialect(self, service: object, request_: bytes, wait: float) -> None:
        """Encrypted ones after two seconds, because nobody can see what was asked."""
        stage = Stage(service)  # type: ignore[arg-type]
        talk = Talk(stage).connect()
        begun = stage.now
        talk.ask(request_)
        stage.wait(0.001)
        talk.acknowledge()
        stage.wait(5.0)
        assert stage.first(UNANSWERED).now - begun == pytest.approx(wait)

    def test_dns_over_udp(self) -> None:
        """By transaction id and port."""
        stage = dns_stage()
        datagram(stage, 5353, made.dns(1))
        datagram(stage, 5353, made.dns(2))
        datagram(stage, 5354, made.dns(1))
        stage.wait(0.01)
        datagram_back(stage, 5353, made.dns(1, response=True))
        datagram_back(stage, 5354, made.dns(1, response=True))
        assert stage.traffic.since(1000.0) == (3, 2)
        assert [packet.payload for _, packet in stage.traffic.unanswered(stage.now)] == [made.dns(2)]
        datagram_back(stage, 5353, made.dns(2, response=True))
        stage.wait(30.0)
        assert stage.found == []
        datagram(stage, 5353, made.dns(3))
        stage.wait(0.5)
        assert stage.detectors() == [UNANSWERED]

    def test_both_questions_of_one_port_are_kept(self) -> None:
        """glibc asks for A and AAAA from one port: after a flip both must be sent on."""
        stage = dns_stage()
        datagram(stage, 5353, made.dns(1))
        datagram(stage, 5353, made.dns(2))
        assert [packet.payload for _, packet in stage.traffic.unanswered(stage.now)] == [made.dns(1), made.dns(2)]

    def test_rescued_datagrams_stay_witnesses(self) -> None:
        """Each was sent to the standby after 100 ms and answered there; the primary is dead all the same."""
        stage = dns_stage()

        def client(number: int) -> None:
            datagram(stage, 6000 + number, made.dns(number))
            stage.wait(0.1)
            for _, packet in list(stage.traffic.unanswered(stage.now)):
                stage.traffic.sent_on(packet)
            datagram_back(stage, 6000 + number, made.dns(number, response=True))

        repeatedly(stage, 2.0, 0.05, client)
        assert UNANSWERED in stage.detectors()
        assert stage.first(UNANSWERED).now - 1000.0 == pytest.approx(0.3)
        assert stage.traffic.mute_since(stage.now) > 1.9
        assert stage.traffic.since(1000.0)[1] == 0

    def test_bytes_on_the_connection_are_progress(self) -> None:
        """A search of many entries takes its time; it hangs when no byte comes any more."""
        stage = Stage()
        talk = learn(stage)
        talk.ask(made.search(500))
        for _ in range(40):
            stage.wait(0.09)
            talk.answer(made.entry(500))
        assert stage.found == []
        stage.wait(0.2)
        assert stage.detectors() == [UNANSWERED]

    @pytest.mark.parametrize(
        "request_",
        [
            made.unbind(500),
            made.abandon(500, 3),
            made.search(500, made.persistent_search()),
            made.search(500, made.sync_request(3)),
        ],
        ids=["unbind", "abandon", "persistent search", "syncrepl"],
    )
    def test_what_has_no_answer_is_not_waited_for(self, request_: bytes) -> None:
        """For hours."""
        stage = Stage()
        talk = learn(stage)
        talk.ask(request_)
        stage.wait(0.001)
        talk.acknowledge()
        stage.wait(40.0)
        assert stage.found == []

    def test_what_was_abandoned_is_not_waited_for(self) -> None:
        """A client that changed its mind."""
        stage = Stage()
        talk = learn(stage)
        talk.ask(made.search(500))
        stage.wait(0.05)
        talk.ask(made.abandon(501, 500))
        stage.wait(30.0)
        assert stage.found == []

    @pytest.mark.parametrize("how", ["closes", "resets"])
    def test_a_connection_that_dies_with_requests_open_is_suspicious_at_once(self, how: str) -> None:
        """The process is killed: its kernel closes or resets every connection."""
        stage = Stage()
        talk = learn(stage)
        begun = stage.now
        talk.ask(made.search(500))
        stage.wait(0.01)
        talk.server_closes() if how == "closes" else talk.server_resets()
        assert stage.detectors() == [UNANSWERED]
        assert stage.traffic.since(begun) == (1, 0)
        stage.wait(30.0)
        assert len(stage.found) == 1

    def test_an_idle_connection_that_the_server_closes_is_not(self) -> None:
        """Its idle timeout; and what a client closed itself, waiting for nothing."""
        stage = Stage()
        talk = learn(stage)
        stage.wait(30.0)
        talk.server_closes()
        talk.client_closes()
        other = Talk(stage, 50000).connect()
        other.ask(made.search(1))
        other.client_closes()
        stage.wait(0.01)
        other.server_closes()
        stage.wait(10.0)
        assert stage.found == []

    def test_a_tls_client_that_says_goodbye_is_not(self) -> None:
        """close_notify wants no bytes back."""
        stage = Stage(made.service("https", port=443))
        for number in range(20):
            talk = Talk(stage, 42000 + number).connect()
            talk.serve(b"\x16\x03\x01hello", b"\x16\x03\x03hello")
            talk.serve(b"\x17\x03\x03get", b"\x17\x03\x03answer")
            talk.ask(b"\x15\x03\x03close")
            talk.close()
            stage.wait(0.5)
        stage.wait(20.0)
        assert stage.found == []
        asked, answered = stage.traffic.since(1000.0)
        assert (asked, answered) == (40, 40)


class TestErrors:
    """A sick application behind a healthy TCP."""

    def dns(self, stage: Stage, codes: list[int]) -> None:
        for number, code in enumerate(codes):
            datagram(stage, 5000, made.dns(number))
            stage.wait(0.02)
            datagram_back(stage, 5000, made.dns(number, response=True, code=code))

    def test_the_first_error_is_looked_at(self) -> None:
        """At once, with what it was."""
        stage = dns_stage()
        self.dns(stage, [0] * 50 + [2])
        assert stage.detectors() == [ERRORS]
        assert stage.found[0].text == "1 of the last 51 replies are errors"
        assert stage.found[0].now == stage.now

    def test_a_fifth_of_the_last_100_is_a_suspicion(self) -> None:
        """Not 19 of them."""
        stage = dns_stage()
        self.dns(stage, [0] * 100 + [5] * 19)
        assert stage.detectors() == [ERRORS]
        self.dns(stage, [5])
        assert stage.detectors() == [ERRORS, ERRORS]

    @pytest.mark.parametrize(
        ("service", "request_", "reply"),
        [
            *((made.service(), made.search(7), made.result(7, code)) for code in (51, 52, 53, 80)),
            (made.service("http", port=80), made.get(), made.http(503)),
            (made.service("dns", port=53), made.framed(made.dns(1)), made.framed(made.dns(1, code=2, response=True))),
        ],
        ids=["busy", "unavailable", "unwillingToPerform", "other", "503", "SERVFAIL"],
    )
    def test_every_dialect(self, service: object, request_: bytes, reply: bytes) -> None:
        """And an error is no useful answer."""
        stage = Stage(service)  # type: ignore[arg-type]
        talk = Talk(stage).connect()
        talk.serve(request_, reply)
        assert stage.detectors() == [ERRORS]
        assert stage.traffic.since(1000.0) == (1, 0)

    def test_binds_that_succeed_do_not_excuse_searches_that_fail(self) -> None:
        """Of an error share only the operations that err count, from the first victim on."""
        stage = Stage()
        learn(stage)
        talk = Talk(stage).connect()
        for number in range(10, 30, 2):
            talk.serve(made.bind(number), made.result(number, tag=0x61))
            talk.serve(made.search(number + 1), made.result(number + 1, 80))
        suspicion = stage.first(ERRORS)
        assert suspicion.since == pytest.approx(suspicion.now - 0.002)
        assert stage.traffic.since(suspicion.since, UNANSWERED) == (19, 9)
        assert stage.traffic.since(suspicion.since, ERRORS) == (10, 0)
        talk.serve(made.search(90), made.result(90))
        assert stage.traffic.since(suspicion.since, ERRORS) == (11, 1)

    def test_honest_refusals_are_answers(self) -> None:
        """A wrong password, a missing entry, a missing name, a missing page."""
        stage = Stage()
        talk = Talk(stage).connect()
        for number, code in enumerate((49, 32, 50, 10, 3, 4, 11) * 20):
            talk.serve(made.search(number), made.result(number, code))
        assert stage.found == []
        stage = dns_stage()
        self.dns(stage, [3] * 100)
        assert stage.found == []


class TestSilence:
    """A fault before its first victim."""

    def test_one_look_after_60_s(self) -> None:
        """Behind busy traffic; and none after it."""
        stage = Stage()
        learn(stage)
        last = stage.now - 0.01
        stage.wait(7200.0)
        assert stage.detectors() == [SILENCE]
        assert stage.found[0].now - last == pytest.approx(60.0, abs=0.1)

    def test_an_idle_night(self) -> None:
        """Eight hours with nobody: one look, and the clock is left alone."""
        stage = Stage()
        learn(stage)
        rings = 0
        tick = stage.traffic.tick

        def counted(now: float) -> object:
            nonlocal rings
            rings += 1
            return tick(now)

        stage.traffic.tick = counted  # type: ignore[method-assign, assignment]
        stage.wait(8 * 3600.0)
        assert stage.detectors() == [SILENCE]
        assert rings <= 20

    def test_a_night_with_a_visitor_every_five_minutes(self) -> None:
        """That is its usual gap: nothing to look at, once it is known to be usual."""
        stage = Stage()

        def visit(number: int) -> None:
            talk = Talk(stage, 30000 + number).connect()
            talk.serve(made.search(1), made.result(1))
            talk.close()

        repeatedly(stage, 3 * 3600.0, 300.0, visit)
        stage.found.clear()
        repeatedly(stage, 8 * 3600.0, 300.0, visit)
        assert stage.found == []

    def test_a_night_of_keepalives(self) -> None:
        """Idle connections, Linux' empty keep-alives and those with one old byte, also of connections never seen."""
        for watched in (made.service(), made.service("tcp", port=25), made.service("ldap", tls=True)):
            stage = Stage(watched)
            talk = Talk(stage).connect()
            strange = Talk(stage, 50000, isn=7)

            def keep_alive(number: int, talk: Talk = talk, strange: Talk = strange, stage: Stage = stage) -> None:
                for each in (talk, strange):
                    stage.feed(each.up(ACK, each.seq - 1, b"\0" if number % 2 == 0 else b""))
                    stage.feed(each.down(ACK, each.ack))

            repeatedly(stage, 8 * 3600.0, 45.0, keep_alive)
            assert stage.found == []
            assert stage.traffic.since(0.0) == (0, 0)

    def test_no_traffic_ever_is_no_silence(self) -> None:
        """A service that nobody has used since the start."""
        stage = Stage()
        stage.wait(8 * 3600.0)
        assert stage.found == []
        assert stage.traffic.deadline() is None


class TestHonestTrouble:
    """What must not make it suspicious."""

    def test_one_slow_search_among_others_that_are_answered(self) -> None:
        """5 s, legal, while everybody else is served."""
        stage = Stage()
        busy = learn(stage)
        slow = Talk(stage, 50000).connect()
        slow.ask(made.search(900))
        stage.wait(0.001)
        slow.acknowledge()

        def others(number: int) -> None:
            busy.serve(made.search(1000 + number), made.result(1000 + number))

        repeatedly(stage, 5.0, 0.02, others)
        slow.answer(made.result(900))
        stage.wait(1.0)
        assert stage.found == []

    def test_a_hang_right_behind_a_slow_search_is_found(self) -> None:
        """The slow one excuses nobody who comes later."""
        stage = Stage()
        busy = learn(stage)
        slow = Talk(stage, 50000).connect()
        slow.ask(made.search(900))
        repeatedly(stage, 3.0, 0.02, lambda n: busy.serve(made.search(1000 + n), made.result(1000 + n)))
        assert stage.found == []
        begun = stage.now
        busy.ask(made.search(5000))
        stage.wait(0.5)
        assert stage.first(UNANSWERED).now - begun == pytest.approx(0.1)

    def test_searches_hang_while_binds_are_answered(self) -> None:
        """Half of the requests are answered, none of the searches: that is no slow query."""
        stage = Stage()
        learn(stage)
        begun = stage.now

        def client(number: int) -> None:
            talk = Talk(stage, 42000 + number).connect()
            talk.serve(made.bind(1), made.result(1, tag=0x61))
            talk.ask(made.search(2))

        repeatedly(stage, 1.0, 0.02, client)
        assert stage.first(UNANSWERED).now - begun < 0.15

    def test_port_scan(self) -> None:
        """The port answers, the scanner resets; the others answer with RST and are not ours."""
        stage = Stage()
        for number in range(200):
            talk = Talk(stage, 42000 + number, "203.0.113.9")
            talk.syn()
            stage.wait(0.0005)
            stage.feed(talk.down(SYN | ACK, talk.ack))
            talk.client_resets()
            for port in (22, 80, 443):
                away = talk.up(SYN, 5)._replace(dport=port)
                stage.feed(away)
                stage.feed(talk.down(0x14, 0)._replace(sport=port))
        stage.wait(30.0)
        assert stage.found == []
        assert stage.traffic.since(0.0) == (0, 0)

    def test_a_half_open_scan_without_a_reset(self) -> None:
        """The SYN-ACKs go unanswered: the scanner's business."""
        stage = Stage()
        for number in range(200):
            talk = Talk(stage, 42000 + number, "203.0.113.9")
            talk.syn()
            stage.feed(talk.down(SYN | ACK, talk.ack))
        stage.wait(30.0)
        assert stage.found == []

    @pytest.mark.parametrize("cookies", [True, False], ids=["answered with cookies", "dropped"])
    def test_syn_flood_with_forged_sources(self, cookies: bool) -> None:
        """The server answers its clients, and the flood's SYNs or not; the work stays bounded."""
        stage = Stage()
        busy = learn(stage, 100)
        begun = time.process_time()
        chance = random.Random(3)
        for number in range(10_000):
            source = f"203.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(256)}"
            talk = Talk(stage, chance.randrange(1024, 65536), source, chance.getrandbits(32))
            talk.syn()
            if cookies:
                stage.feed(talk.down(SYN | ACK, talk.ack))
            stage.wait(0.0002)
            if number % 100 == 0:
                busy.serve(made.search(number), made.result(number))
        stage.wait(0.01)
        assert stage.found == []
        assert time.process_time() - begun < 10

    def test_one_client_behind_a_broken_link(self) -> None:
        """It hears nothing: it repeats its SYNs and its data, and gives up, while others are served."""
        stage = Stage()
        busy = learn(stage)
        deaf = [Talk(stage, 50000 + n, "203.0.113.9") for n in range(5)]
        sent = [Talk(stage, 51000 + n, "203.0.113.9").connect() for n in range(5)]
        for talk in sent:
            talk.ask(made.search(1))
            stage.wait(0.001)
            talk.answer(made.result(1))

        def moment(number: int) -> None:
            if number % 10 == 0:
                for talk in deaf:
                    talk.syn()
                    stage.feed(talk.down(SYN | ACK, talk.ack))
                for talk in sent:
                    talk.again(len(made.search(1)))
                    talk.acknowledge()
                    talk.answer_again(made.result(1))
            if number % 3 == 0:
                busy.serve(made.search(1000 + number), made.result(1000 + number))

        repeatedly(stage, 15.0, 0.05, moment)
        assert stage.found == []

    def test_one_client_behind_a_broken_link_alone(self) -> None:
        """The same with nobody else there."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.ask(made.search(1))
        stage.wait(0.001)
        talk.answer(made.result(1))
        for _ in range(6):
            stage.wait(0.3)
            talk.again(len(made.search(1)))
            talk.acknowledge()
            talk.answer_again(made.result(1))
        assert stage.found == []

    def test_delayed_acks(self) -> None:
        """40 ms or 200 ms until an ACK, and answers that carry it."""
        stage = Stage()
        talk = Talk(stage).connect()
        for number in range(100):
            talk.ask(made.search(number))
            stage.wait(0.04 if number % 2 else 0.2)
            talk.answer(made.result(number))
            stage.wait(0.2)
            stage.feed(talk.up(ACK, talk.seq))
        assert stage.found == []

    def test_a_client_that_closes_its_half(self) -> None:
        """It asks, says that it has nothing more to say, and is answered."""
        stage = Stage()
        for number in range(50):
            talk = Talk(stage, 42000 + number).connect()
            talk.ask(made.search(1))
            talk.client_closes()
            stage.wait(0.002)
            talk.answer(made.result(1))
            talk.server_closes()
            stage.feed(talk.up(ACK, talk.seq))
            stage.wait(0.05)
        stage.wait(10.0)
        assert stage.found == []
        assert stage.traffic.since(1000.0) == (50, 50)

    def test_a_half_closed_client_that_is_not_answered_counts(self) -> None:
        """It still waits."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.ask(made.search(1))
        talk.client_closes()
        stage.wait(1.0)
        assert stage.detectors()[0] is UNANSWERED

    def test_clients_that_reconnect_in_waves(self) -> None:
        """A pool of 200 is restarted, again and again; the server takes a while longer for each wave."""
        stage = Stage()
        learn(stage)
        for wave in range(6):
            pool = [Talk(stage, 10000 + n, isn=wave * 1000 + n + 1) for n in range(200)]
            for talk in pool:
                talk.syn()
            stage.wait(0.03)
            for talk in pool:
                talk.accept()
                talk.ask(made.bind(1))
            stage.wait(0.06)
            for talk in pool:
                talk.answer(made.result(1, tag=0x61))
            stage.wait(0.5)
            for number, talk in enumerate(pool):
                if number % 2:
                    talk.client_resets()
                else:
                    talk.ask(made.unbind(2))
                    talk.close()
            stage.wait(1.0)
        assert stage.found == []

    def test_port_reuse(self) -> None:
        """A new connection from an old port, with what was open left behind."""
        stage = Stage()
        for number in range(30):
            talk = Talk(stage, 42000, isn=number * 70000 + 5).connect()
            talk.serve(made.search(1), made.result(1))
            talk.ask(made.search(2))
            stage.wait(0.05)
        talk.answer(made.result(2))
        stage.wait(10.0)
        assert stage.found == []
        assert stage.traffic.since(1000.0) == (31, 31)

    @pytest.mark.parametrize("seed", range(3))
    def test_five_percent_loss(self, seed: int) -> None:
        """In both directions, before and behind the controller, with thirty clients; TCP repairs it.

        A request that was lost waits 200 ms for its repetition, longer than 4 * p99 of a server that takes 2 ms.
        """
        assert lossy(seed, 0.05, 0.05).found == []

    @pytest.mark.parametrize("isn", [WORD - 1, WORD - 2, WORD - 100, (1 << 31) - 50])
    def test_sequence_numbers_wrap(self, isn: int) -> None:
        """Within the handshake, a request, a reply; and half-way, where signed arithmetic would break."""
        stage = Stage()
        talk = Talk(stage, isn=isn)
        talk.ack = isn
        talk.connect()
        for number in range(1, 20):
            talk.serve(made.search(number), made.entry(number) + made.result(number))
        stage.wait(5.0)
        assert stage.found == []
        assert stage.traffic.since(1000.0) == (19, 19)
        talk.ask(made.search(99))
        stage.wait(1.0)
        assert stage.detectors()[0] is UNANSWERED


class TestRefutation:
    """A slow but honest server costs a handful of probes."""

    @pytest.mark.parametrize("detector", [SYN_UNANSWERED, UNANSWERED])
    def test_the_threshold_doubles_and_decays(self, detector: Detector) -> None:
        """100 ms, 200 ms, 400 ms; and 100 ms again after some minutes."""
        stage = Stage()
        talk = learn(stage)

        def waited() -> float:
            begun = stage.now
            stage.found.clear()
            if detector is UNANSWERED:
                talk.ask(made.search(700))
            else:
                other = Talk(stage, 50000 + int(begun) % 9999, isn=int(begun))
                other.syn()
            stage.wait(2.0)
            first = stage.first(detector)
            if detector is UNANSWERED:
                talk.ask(made.abandon(701, 700))
            else:
                other.client_resets()
            stage.wait(5.0)
            return first.now - begun

        for expected in (0.1, 0.2, 0.4):
            assert waited() == pytest.approx(expected, rel=0.1)
            stage.traffic.refuted(detector, stage.now)
        repeatedly(stage, 900.0, 30.0, lambda n: talk.serve(made.search(800 + n), made.result(800 + n)))
        assert waited() == pytest.approx(0.1, rel=0.1)

    def test_other_detectors_keep_theirs(self) -> None:
        """A slow query does not make blind for a dead process or a dark host."""
        stage = Stage()
        learn(stage)
        for _ in range(5):
            stage.traffic.refuted(UNANSWERED, stage.now)
        begun = stage.now
        talk = Talk(stage)
        talk.syn()
        stage.wait(0.11)
        assert stage.first(SYN_UNANSWERED).now - begun == pytest.approx(0.1)
        talk.refused(PRIMARY)
        assert stage.detectors()[-1] is REFUSED

    def test_a_slow_server_costs_a_handful_of_probes(self) -> None:
        """Every search takes 2 s, each suspicion is refuted: not one probe for each of 300 requests."""
        stage = Stage()
        talk = Talk(stage).connect()
        probes = 0
        for number in range(300):
            talk.ask(made.search(number))
            stage.found.clear()
            stage.wait(2.0)
            for _ in stage.found:
                probes += 1
                stage.traffic.refuted(UNANSWERED, stage.now)
                break
            talk.answer(made.result(number))
        assert probes < 10

    def test_the_same_suspicion_is_not_repeated_at_once(self) -> None:
        """A pause between two of one detector, which grows with each refutation."""
        stage = Stage()
        Talk(stage).connect().ask(made.search(1))
        stage.wait(2.0)
        moments = [found.now for found in stage.found]
        assert min(b - a for a, b in itertools.pairwise(moments)) >= AGAIN


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
        assert stage.traffic.since(0.0) == (0, 0)
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
        assert stage.traffic.since(0.0) == (0, 0)
        assert list(stage.traffic.unanswered(stage.now)) == []
        assert stage.traffic.stats(stage.now).drops == 17

    def test_dropped_packets_take_the_witness_of_a_rescue_away(self) -> None:
        """Its answer may have been among them, too."""
        stage = Stage()
        Talk(stage).syn()
        stage.wait(0.1)
        [(_, packet)] = stage.traffic.unanswered(stage.now)
        stage.traffic.sent_on(packet)
        stage.traffic.lost(stage.now, 1)
        stage.wait(20.0)
        assert stage.found == []
        assert stage.traffic.since(0.0) == (0, 0)

    def test_after_dropped_packets_it_goes_on(self) -> None:
        """Connections are taken up where they are."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.ask(made.search(1), seen=False)
        stage.traffic.lost(stage.now, 1)
        talk.serve(made.search(2), made.result(2))
        assert stage.traffic.since(0.0) == (1, 1)
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
        waiting = [packet.sport for _, packet in stage.traffic.unanswered(stage.now)]
        assert waiting == [40001, 40002, 40003]
        stage.wait(2.85)
        assert [packet.sport for _, packet in stage.traffic.unanswered(stage.now)] == [40003]

    def test_replies_that_came_are_useful_and_errors_are_not(self) -> None:
        """The numbers for the veto."""
        stage = Stage()
        talk = Talk(stage).connect()
        talk.serve(made.search(1), made.result(1))
        begun = stage.now
        talk.serve(made.search(2), made.result(2))
        talk.serve(made.search(3), made.result(3, 52))
        talk.ask(made.search(4))
        assert stage.traffic.since(begun) == (3, 1)
        assert stage.traffic.since(0.0) == (4, 2)

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
        assert len(stage.traffic._flows) == MAX_FLOWS
        stage = Stage()
        for number in range(100):
            talk = Talk(stage, 30000 + number).connect()
            talk.serve(made.search(1), made.result(1))
            talk.ask(made.unbind(2))
            talk.close()
        stage.wait(1.0)
        assert (len(stage.traffic._flows), len(stage.traffic._detect._heap), len(stage.traffic._flows._frames)) == (
            0,
            0,
            0,
        )
        stage = Stage()
        for number in range(MAX_FRAMES + 100):
            Talk(stage, number + 1024).syn()
        assert len(stage.traffic._flows._frames) == MAX_FRAMES
        stage = dns_stage()
        for number in range(100):
            datagram(stage, 30000 + number, made.dns(number))
            datagram_back(stage, 30000 + number, made.dns(number, response=True))
        assert len(stage.traffic._flows) == 0
        for number in range(100):
            datagram(stage, 30000 + number, made.dns(number))
        repeatedly(stage, 60.0, 1.0, lambda _number: None)
        assert (len(stage.traffic._flows), len(stage.traffic._detect._heap)) == (0, 0)

    def test_ipv6(self) -> None:
        """The same for a service with an IPv6 address."""
        stage = Stage(made.service(address="2001:db8::10"))
        talk = Talk(stage, 40000, "2001:db8::7").connect()
        talk.serve(made.search(1), made.result(1))
        assert stage.traffic.since(1000.0) == (1, 1)
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
