"""Stage 1: repeated data, and silence. The clock is simulated."""

from __future__ import annotations

import pytest

from check_failover.sniffer.stage1.packet import ACK
from tests.unit import packets as made
from tests.unit.packets import Stage, Talk, learn, repeatedly
from tests.unit.traffic import REPEATED, SILENCE, lossy


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
            assert stage.traffic.detect.since(0.0) == (0, 0)

    def test_no_traffic_ever_is_no_silence(self) -> None:
        """A service that nobody has used since the start."""
        stage = Stage()
        stage.wait(8 * 3600.0)
        assert stage.found == []
        assert stage.traffic.deadline() is None
