"""Stage 1 under attack: what one client sends hides no fault from it, and makes none of a healthy server.

The clock is simulated. ``stray`` is a segment that stage 1 sees and the server never gets (its TTL ends behind us).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from check_failover.decide import Reason
from check_failover.model import Target
from check_failover.sniffer.stage1.packet import RST
from check_failover.sniffer.stage1.voices import MAX_CLIENTS, Scales, client
from tests.unit import packets as made
from tests.unit.packets import Stage, Talk, datagram, datagram_back, learn, repeatedly
from tests.unit.test_monitor import Scene, decision, hangs
from tests.unit.traffic import ERRORS, UNANSWERED, dns_stage

ATTACKER = "203.0.113.9"
KIND = (UNANSWERED, "search", True)


class Office(Scene):
    """Five clients that ask ten times a second in all, and an attacker. The servers' kernels acknowledge."""

    def __init__(self, strays: float = 0.0, attacker: str = ATTACKER, sessions: int = 0) -> None:
        super().__init__()
        learn(self)
        self.clients = [Talk(self, 42000, f"198.51.100.{n + 10}").connect() for n in range(5)]
        self.number = itertools.count(1)
        self.hanging = False
        self.attacker, self.every, self.due = attacker, 1 / (strays or 1), self.now if strays else float("inf")
        self.sessions = [Talk(self, 61000 + n, attacker).connect() for n in range(sessions)]

    def stray(self) -> None:
        number = next(self.number)
        if self.sessions:
            talk = self.sessions[number % len(self.sessions)]
        else:
            talk = Talk(self, 20000 + number, self.attacker, isn=number * 7919)
        talk.ask(made.search(number))

    def go_on(self, seconds: float, act: Callable[[Talk, int], None] | None = None) -> None:
        def moment(_number: int) -> None:
            while self.due <= self.now:
                self.stray()
                self.due += self.every
            number = next(self.number)
            talk = self.clients[number % 5]
            if act is not None:
                act(talk, number)
            elif self.hanging:
                talk.ask(made.search(number))
                talk.acknowledge()
            else:
                talk.serve(made.search(number), made.result(number))

        repeatedly(self, seconds, 0.1, moment)

    def hang_now(self) -> float:
        self.hanging = True
        self.servers[Target.PRIMARY] = hangs
        return self.now


@pytest.mark.parametrize("sessions", [0, 1, 20], ids=["no connection", "one", "twenty"])
def test_strays_do_not_switch_the_detection_off(sessions: int) -> None:
    """Two a second for five minutes; then the server hangs: known at once, and no answer from before is a veto."""
    office = Office(2.0, sessions=sessions)
    office.go_on(300.0)
    assert office.orders() == []
    begun = office.hang_now()
    office.go_on(3.0)
    assert next(at for at in office.probed(Target.PRIMARY) if at > begun) - begun < 1.2
    assert decision(office.orders()[0]) is Reason.FLIP


def test_strays_from_the_address_of_all_clients() -> None:
    """An office behind one address, with the attacker inside: the server never acknowledged the strays."""
    office = Office(2.0, "198.51.100.10", sessions=3)
    office.clients = [Talk(office, 43000 + n, "198.51.100.10").connect() for n in range(5)]
    office.go_on(300.0)
    begun = office.hang_now()
    office.go_on(3.0)
    assert next(at for at in office.probed(Target.PRIMARY) if at > begun) - begun < 1.2
    assert decision(office.orders()[0]) is Reason.FLIP


def test_strays_cost_few_probes() -> None:
    """Their own threshold grows."""
    office = Office(2.0, sessions=3)
    office.probes.clear()
    office.go_on(300.0)
    assert len(office.probed(Target.PRIMARY)) <= 30


@pytest.mark.parametrize(
    ("attacker", "sessions"), [(ATTACKER, 0), (ATTACKER, 5), ("198.51.100.10", 0), ("198.51.100.10", 5)]
)
def test_strays_do_not_void_the_veto(attacker: str, sessions: int) -> None:
    """60 a second, while the server answers all clients but not our probes."""
    office = Office(60.0, attacker, sessions)
    office.go_on(5.0)
    office.servers[Target.PRIMARY] = hangs
    office.go_on(10.0)
    assert {decision(facts) for facts in office.orders()} <= {Reason.TRAFFIC_ANSWERED}


def test_a_client_that_never_ends_its_requests_is_one_voice() -> None:
    """The server has them and waits for the rest: in the counts that client weighs as much as any other."""
    office = Office()
    half = Talk(office, 61000, ATTACKER).connect()

    def act(talk: Talk, number: int) -> None:
        talk.serve(made.search(number), made.result(number))
        for more in range(6):
            half.ask(made.search(10 * number + 100_000 + more))
        half.acknowledge()

    begun = office.now
    office.go_on(3.0, act)
    asked, answered = office.traffic.detect.since(begun)
    assert answered >= 0.8 * asked


def test_a_rst_to_a_connection_that_never_was_is_no_failure() -> None:
    """A segment out of nothing; the server's kernel knows no such connection and says so."""
    stage = Stage()
    learn(stage)
    for number in range(100):
        talk = Talk(stage, 20000 + number, ATTACKER)
        talk.ask(made.search(1))
        stage.wait(0.001)
        stage.feed(talk.down(RST, talk.ack))
    assert stage.found == []


def test_forged_datagrams_do_not_void_the_veto() -> None:
    """From ever new addresses that no answer went to, while the server answers the others."""
    stage = dns_stage()
    for number in range(300):
        datagram(stage, 5353, made.dns(number))
        for more in range(6):
            datagram(stage, 5353, made.dns(more), f"203.0.{number % 256}.{more + 10 * (number // 256)}")
        stage.wait(0.005)
        datagram_back(stage, 5353, made.dns(number, response=True))
    stage.wait(0.001)
    asked, answered = stage.traffic.detect.since(1000.1)
    assert asked == answered > 270


def test_several_connections_are_looked_at_whatever_was_refuted() -> None:
    """The service was slow for a long time, for everybody; then it hangs: looked at within five seconds."""
    office = Office()
    for talk in office.clients:
        for _ in range(8):
            talk.ask(made.search(next(office.number)))
            talk.acknowledge()
            office.traffic.tick(office.now)
            office.wait(0.3)
            office.traffic.detect.refuted(UNANSWERED, office.now)
            talk.answer(made.result(next(office.number) - 1))
    office.probes.clear()
    begun = office.hang_now()
    office.go_on(8.0)
    assert office.probed(Target.PRIMARY)[0] - begun < 6.0


def test_one_anonymous_client_hides_no_error() -> None:
    """30 s of binds without a password (53), refuted each time; then every search of everybody fails."""
    office = Office()
    bad = Talk(office, 61000, ATTACKER).connect()

    def provoke(talk: Talk, number: int) -> None:
        talk.serve(made.search(number), made.result(number))
        for more in range(3):
            bad.serve(made.bind(3 * number + more), made.result(3 * number + more, 53, tag=0x61), 0.001)

    office.go_on(30.0, provoke)
    assert office.orders() == []
    office.servers[Target.PRIMARY] = hangs
    begun = office.now

    def fail(talk: Talk, number: int) -> None:
        talk.serve(made.search(number), made.result(number, 80))
        bad.serve(made.bind(3 * number), made.result(3 * number, 53, tag=0x61), 0.001)

    office.go_on(6.0, fail)
    at = [suspicion.now for suspicion in office.found if suspicion.detector is ERRORS and suspicion.now > begun]
    assert at[0] - begun < 1.0
    facts = office.orders()[0]
    assert (facts.detector, decision(facts)) == (ERRORS, Reason.FLIP)


@pytest.mark.parametrize("quiet", [0.5, 3.0, 10.0])
def test_the_only_client_is_heard_again_soon(quiet: float) -> None:
    """An application server's address is all that the service sees; one of its errors was refuted a moment before."""
    scene = Scene()
    learn(scene)
    talk = Talk(scene, 42000, "198.51.100.10").connect()
    number = itertools.count(1)

    def ask(code: int) -> Callable[[int], None]:
        def once(_: int) -> None:
            one = next(number)
            talk.serve(made.search(one), made.result(one, code))

        return once

    repeatedly(scene, 20.0, 0.1, ask(0))
    repeatedly(scene, 0.2, 0.2, ask(53))
    assert scene.detectors()[-1:] == [ERRORS]
    repeatedly(scene, quiet, 0.1, ask(0))
    assert scene.orders() == []
    scene.servers[Target.PRIMARY] = hangs
    begun = scene.now
    repeatedly(scene, 5.0, 0.1, ask(53))
    at = [suspicion.now for suspicion in scene.found if suspicion.detector is ERRORS and suspicion.now > begun]
    assert at
    assert at[0] - begun < 4.0


def test_provoked_errors_cost_few_probes() -> None:
    """Once refuted, that client's 53 is no evidence while the others' binds succeed; its 51 still is."""
    office = Office()
    bad = Talk(office, 61000, ATTACKER).connect()
    code = 53

    def provoke(talk: Talk, number: int) -> None:
        talk.serve(made.bind(number), made.result(number, tag=0x61))
        bad.serve(made.bind(number), made.result(number, code, tag=0x61), 0.001)

    office.probes.clear()
    office.go_on(60.0, provoke)
    assert len(office.probed(Target.PRIMARY)) <= 3
    office.found.clear()
    code = 51
    office.go_on(10.0, provoke)
    assert ERRORS in office.detectors()


def test_a_client_that_reads_no_replies_hides_no_hang() -> None:
    """Its replies take 51 s, and that is p99; a few requests without any byte are enough."""
    office = Office()
    closed = [Talk(office, 61000 + n, ATTACKER).connect() for n in range(20)]
    for number, talk in enumerate(closed):
        talk.ask(made.search(number + 1))
        talk.acknowledge()
    office.go_on(25.0)
    for number, talk in enumerate(closed):
        talk.answer(made.result(number + 1))
    for _ in range(40):
        office.clients[0].serve(made.search(9), made.result(9))
    assert office.traffic.detect.reply_times["search"].wait() > 60.0
    begun = office.hang_now()
    office.go_on(3.0)
    assert office.probed(Target.PRIMARY)[-1] > begun
    assert next(at for at in office.probed(Target.PRIMARY) if at > begun) - begun < 1.0


def test_a_kernel_that_empties_its_buffers_is_no_sign_of_life() -> None:
    """The process hangs; a client that reads slowly still gets bytes of an old reply."""
    office = Office()
    slow = Talk(office, 61000, ATTACKER).connect()
    slow.ask(made.search(1))
    slow.acknowledge()
    for _ in range(40):
        office.clients[0].serve(made.search(9), made.result(9))
    for _ in range(20):  # slow ones: p99 is no help
        office.clients[1].serve(made.search(8), made.result(8), 2.0)
    begun = office.hang_now()

    def act(talk: Talk, number: int) -> None:
        talk.ask(made.search(number))
        talk.acknowledge()
        slow.answer(made.entry(1))

    office.go_on(2.0, act)
    assert next(at for at in office.probed(Target.PRIMARY) if at > begun) - begun < 1.0


def test_a_factor_is_the_clients_own_and_the_second_largest_everybodys() -> None:
    """One client's refuted suspicions change nothing for the others; two clients' do, up to eight times."""
    scales = Scales()
    for _ in range(10):
        scales.double(KIND, b"a", 0.0)
    assert (scales.now(KIND, b"a", 0.0), scales.now(KIND, b"c", 0.0)) == (64.0, 1.0)
    scales.double(KIND, b"b", 0.0)
    assert (scales.now(KIND, b"b", 0.0), scales.now(KIND, b"c", 0.0)) == (2.0, 2.0)
    for _ in range(10):
        scales.double(KIND, b"b", 0.0)
    assert scales.now(KIND, b"c", 0.0) == 8.0
    assert scales.now((UNANSWERED, "bind", True), b"c", 0.0) == 1.0
    assert scales.now(KIND, b"c", 100_000.0) == 1.0


def test_the_factors_are_bounded() -> None:
    """The oldest client's is forgotten."""
    scales = Scales()
    for number in range(MAX_CLIENTS + 10):
        scales.double(KIND, b"%d" % number, 0.0)
    assert len(scales._scales[KIND]) == MAX_CLIENTS


def test_a_host_has_all_of_its_64() -> None:
    """An IPv6 client is its /64."""
    assert client(made.packed("2001:db8::7")) == client(made.packed("2001:db8::ffff:1"))
    assert client(made.packed("192.0.2.7")) != client(made.packed("192.0.2.8"))


def test_loss_on_the_way_to_the_server_counts_as_before() -> None:
    """Half of the segments of all clients never arrive, and half of the replies: it is not one client's doing."""
    stage = Stage()
    learn(stage)
    talks = [Talk(stage, 42000 + n).connect() for n in range(20)]
    begun = stage.now
    for number, talk in enumerate(talks):
        talk.ask(made.search(1))
        stage.wait(0.002)
        if number % 4 == 0:
            talk.answer(made.result(1))
        elif number % 4 == 1:
            talk.acknowledge()
    stage.wait(0.2)
    talks[0].acknowledge()
    assert stage.traffic.detect.since(begun) == (20, 5)
