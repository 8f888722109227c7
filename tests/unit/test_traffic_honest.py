"""Stage 1: honest trouble that must not make it suspicious, and what a refuted suspicion costs."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from check_failover.model import Detector
from check_failover.sniffer.stage1.detectors import MIN_INTERVAL
from check_failover.sniffer.stage1.packet import ACK, SYN
from tests.unit import packets as made
from tests.unit.packets import PRIMARY, WORD, Stage, Talk, learn, repeatedly
from tests.unit.traffic import REFUSED, SYN_UNANSWERED, UNANSWERED, lossy


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
        assert stage.traffic.detect.since(0.0) == (0, 0)

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
        assert stage.traffic.detect.since(1000.0) == (50, 50)

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
        assert stage.traffic.detect.since(1000.0) == (31, 31)

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
        assert stage.traffic.detect.since(1000.0) == (19, 19)
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
            stage.traffic.detect.refuted(detector, stage.now)
        repeatedly(stage, 900.0, 30.0, lambda n: talk.serve(made.search(800 + n), made.result(800 + n)))
        assert waited() == pytest.approx(0.1, rel=0.1)

    def test_other_detectors_keep_theirs(self) -> None:
        """A slow query does not make blind for a dead process or a dark host."""
        stage = Stage()
        learn(stage)
        for _ in range(5):
            stage.traffic.detect.refuted(UNANSWERED, stage.now)
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
                stage.traffic.detect.refuted(UNANSWERED, stage.now)
                break
            talk.answer(made.result(number))
        assert probes < 10

    def test_the_same_suspicion_is_not_repeated_at_once(self) -> None:
        """A pause between two of one detector, which grows with each refutation."""
        stage = Stage()
        Talk(stage).connect().ask(made.search(1))
        stage.wait(2.0)
        moments = [found.now for found in stage.found]
        assert min(b - a for a, b in itertools.pairwise(moments)) >= MIN_INTERVAL
