"""Stage 1: requests without a reply, and replies that are errors. The clock is simulated."""

from __future__ import annotations

import pytest

from tests.unit import packets as made
from tests.unit.packets import Stage, Talk, datagram, datagram_back, learn, repeatedly
from tests.unit.traffic import ERRORS, UNANSWERED, dns_stage


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
        assert stage.traffic.detect.reply_times["search"].wait() > 3 * slow
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
        assert stage.traffic.detect.since(begun) == (12, 0)

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
        assert stage.traffic.detect.since(1000.0) == (3, 2)
        assert [packet.payload for _, packet in stage.traffic.flows.unanswered(stage.now)] == [made.dns(2)]
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
        assert [packet.payload for _, packet in stage.traffic.flows.unanswered(stage.now)] == [made.dns(1), made.dns(2)]

    def test_rescued_datagrams_stay_witnesses(self) -> None:
        """Each was sent to the standby after 100 ms and answered there; the primary is dead all the same."""
        stage = dns_stage()

        def client(number: int) -> None:
            datagram(stage, 6000 + number, made.dns(number))
            stage.wait(0.1)
            for _, packet in list(stage.traffic.flows.unanswered(stage.now)):
                stage.traffic.flows.sent_to_standby(packet)
            datagram_back(stage, 6000 + number, made.dns(number, response=True))

        repeatedly(stage, 2.0, 0.05, client)
        assert UNANSWERED in stage.detectors()
        assert stage.first(UNANSWERED).now - 1000.0 == pytest.approx(0.3)
        assert stage.now - stage.traffic.detect.server_seen > 1.9
        assert stage.traffic.detect.since(1000.0)[1] == 0

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
        assert stage.traffic.detect.since(begun) == (1, 0)
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
        asked, answered = stage.traffic.detect.since(1000.0)
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
        assert stage.traffic.detect.since(1000.0) == (1, 0)

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
        assert stage.traffic.detect.since(suspicion.since, UNANSWERED) == (19, 9)
        assert stage.traffic.detect.since(suspicion.since, ERRORS) == (10, 0)
        talk.serve(made.search(90), made.result(90))
        assert stage.traffic.detect.since(suspicion.since, ERRORS) == (11, 1)

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
