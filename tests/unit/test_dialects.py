"""The dialects: what is a request, what answers it, and what a cut, split or coalesced segment may still tell."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_failover.sniffer.stage1.dialects import dialect_for
from check_failover.sniffer.stage1.dialects.dns import Dns
from check_failover.sniffer.stage1.dialects.generic import Generic
from check_failover.sniffer.stage1.dialects.http import Http
from check_failover.sniffer.stage1.dialects.ldap import Ldap
from check_failover.sniffer.stage1.dialects.messages import ALL, ANY, GIVEN_UP, UNREADABLE, Dialect, Reply
from check_failover.sniffer.stage1.dialects.stream import MAX_HEADER
from check_failover.sniffer.stage1.flows import Flow
from tests.unit import packets as made
from tests.unit.packets import segments

OK, SICK = False, True


def replies(dialect: Dialect, data: bytes, missing: int = 0) -> list[tuple[object, bool]]:
    """(key, error) of the final replies."""
    return [(reply.key, reply.error) for reply in dialect.reply(data, missing) if reply.final]


class TestLdap:
    """RFC 4511."""

    @pytest.mark.parametrize(
        ("tag", "operation"),
        [
            *((0x60, "bind"), (0x63, "search"), (0x66, "modify"), (0x68, "add"), (0x4A, "delete")),
            *((0x6C, "modify-dn"), (0x6E, "compare"), (0x77, "extended")),
        ],
    )
    def test_every_operation_with_a_reply_is_a_request(self, tag: int, operation: str) -> None:
        """By its messageID, and with its kind, because each has its usual time."""
        assert Ldap().request(made.ldap(300, tag, b"x" * 20), 0) == [(300, operation)]

    @pytest.mark.parametrize("code", range(0, 124))
    def test_only_a_sick_servers_codes_are_errors(self, code: int) -> None:
        """busy, unavailable, unwillingToPerform, other; a wrong password or a missing entry is an honest answer."""
        dialect = Ldap()
        dialect.request(made.search(2), 0)
        assert replies(dialect, made.result(2, code)) == [(2, code in {51, 52, 53, 80})]

    @pytest.mark.parametrize("tag", [0x61, 0x65, 0x67, 0x69, 0x6B, 0x6D, 0x6F, 0x78])
    def test_every_result_is_final(self, tag: int) -> None:
        """Of each operation."""
        assert replies(Ldap(), made.result(9, tag=tag)) == [(9, OK)]

    def test_entries_and_references_are_not_final(self) -> None:
        """A search of ten thousand entries is answered by its done."""
        dialect = Ldap()
        dialect.request(made.search(2), 0)
        many = b"".join(made.entry(2, 100) for _ in range(1000))
        assert replies(dialect, many) == []
        assert replies(dialect, made.ldap(2, 0x73, b"ldap://elsewhere/")) == []
        assert replies(dialect, made.ldap(2, 0x79, b"")) == []
        assert replies(dialect, made.result(2)) == [(2, OK)]

    def test_pipelining(self) -> None:
        """Requests and replies of one connection in any order, several in a segment."""
        dialect = Ldap()
        asked = dialect.request(b"".join(made.search(number) for number in (2, 3, 4, 500)), 0)
        assert asked == [(2, "search"), (3, "search"), (4, "search"), (500, "search")]
        answered = made.result(4) + made.entry(2) + made.result(500, 52) + made.result(2)
        assert replies(dialect, answered) == [(4, OK), (500, SICK), (2, OK)]

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 64, 1000])
    def test_split_segments(self, size: int) -> None:
        """However the bytes are cut into segments, the messages are the same."""
        dialect = Ldap()
        up = made.bind(1) + made.search(2) + made.search(3, made.persistent_search()) + made.search(4, words=60)
        asked = [request for part in segments(up, size) for request in dialect.request(part, 0)]
        assert asked == [(1, "bind"), (2, "search"), (4, "search")]
        down = made.result(1, tag=0x61) + made.entry(2, 700) + made.result(2, 80) + made.result(4)
        found = [reply for part in segments(down, size) for reply in replies(dialect, part)]
        assert found == [(1, OK), (2, SICK), (4, OK)]

    @pytest.mark.parametrize("form", [1, 2, 3, 4])
    def test_long_lengths(self, form: int) -> None:
        """Active Directory writes lengths of four bytes where one would do (X.690, 8.1.3.5)."""
        dialect = Ldap()
        assert dialect.request(made.ldap(7, 0x60, b"x" * 30, long_form=form), 0) == [(7, "bind")]
        assert replies(dialect, made.result(7, 51, 0x61, form)) == [(7, SICK)]

    def test_a_short_capture_loses_nothing_between(self) -> None:
        """Of a large entry only the beginning is captured; the next message is found behind it."""
        dialect = Ldap()
        dialect.request(made.search(2), 0)
        large = made.entry(2, 1300)
        assert replies(dialect, large[:400], len(large) - 400) == []
        assert dialect.reply(made.result(2), 0) == [Reply(2, True, False)]

    def test_what_was_not_captured_is_no_evidence(self) -> None:
        """A large entry and the done behind it in one segment: the done may have been there."""
        dialect = Ldap()
        dialect.request(made.search(2), 0)
        both = made.entry(2, 1300) + made.result(2)
        assert UNREADABLE in dialect.reply(both[:400], len(both) - 400)

    def test_bytes_from_the_middle_are_no_evidence(self) -> None:
        """A capture that begins within a large entry cannot know what the segment holds."""
        dialect = Ldap()
        assert dialect.reply(b"photo" * 200 + made.result(2), 0) == [UNREADABLE]
        assert dialect.reply(made.result(3), 0) == [Reply(3, True, False)]

    def test_unbind_is_no_request_and_ends_the_waiting(self) -> None:
        """It has no reply (4.3), and what is outstanding is abandoned by it."""
        assert Ldap().request(made.unbind(5), 0) == [(ALL, GIVEN_UP)]

    def test_abandon_is_no_request_and_ends_the_waiting_for_one(self) -> None:
        """It has no reply, nor has what it abandons (4.11)."""
        assert Ldap().request(made.abandon(6, 300), 0) == [(300, GIVEN_UP)]
        flow = Flow((b"", 1), Ldap())
        waiting = flow.ask(flow.dialect.request(made.search(2) + made.search(3), 0), 1.0)
        assert [request.key for request in waiting] == [2, 3]
        assert flow.ask(flow.dialect.request(made.abandon(4, 2), 0), 1.1) == []
        assert list(flow.open) == [3]
        assert not waiting[0].counts

    @pytest.mark.parametrize("control", [made.persistent_search(), made.sync_request(3)], ids=["psearch", "syncrepl"])
    def test_what_never_ends_is_not_waited_for(self, control: bytes) -> None:
        """Persistent search and refreshAndPersist, also in one segment with an honest search, which is waited for."""
        data = made.bind(1) + made.search(2, control) + made.search(3)
        assert Ldap().request(data, 0) == [(1, "bind"), (3, "search")]

    def test_refresh_only_is_waited_for(self) -> None:
        """Syncrepl's other mode ends with a done."""
        assert Ldap().request(made.search(2, made.sync_request(1)), 0) == [(2, "search")]

    @pytest.mark.parametrize("split", [20, 70, 100])
    def test_a_control_in_the_next_segment_counts(self, split: int) -> None:
        """The control stands at the end of the message, the filter before it may be long."""
        data = made.search(2, made.persistent_search(), words=30)
        dialect = Ldap()
        assert [*dialect.request(data[:split], 0), *dialect.request(data[split:], 0)] == []

    def test_a_search_longer_than_anyone_waits_for_is_a_search(self) -> None:
        """Its beginning decides, and what follows is found."""
        data = made.search(2, words=200)
        assert len(data) > MAX_HEADER
        dialect = Ldap()
        assert dialect.request(data + made.search(3), 0) == [(2, "search"), (3, "search")]
        assert [r for part in segments(data, 500) for r in dialect.request(part, 0)] == [(2, "search")]

    def test_behind_starttls_everything_is_bytes(self) -> None:
        """A successful StartTLS ends what can be read."""
        dialect = Ldap()
        assert dialect.request(made.extended(1, made.START_TLS), 0) == [(1, "extended")]
        assert replies(dialect, made.result(1, tag=0x78)) == [(1, OK)]
        assert dialect.encrypted
        assert dialect.request(b"\x16\x03\x01\x02\x00", 0) == [("bytes", "encrypted")]
        assert replies(dialect, b"\x16\x03\x03") == [(ALL, OK)]

    def test_a_refused_starttls_changes_nothing(self) -> None:
        """The connection goes on in the clear."""
        dialect = Ldap()
        dialect.request(made.extended(1, made.START_TLS), 0)
        assert replies(dialect, made.result(1, 52, tag=0x78)) == [(1, SICK)]
        assert not dialect.encrypted
        assert dialect.request(made.search(2), 0) == [(2, "search")]

    def test_tls_from_the_first_byte_is_noticed(self) -> None:
        """ldaps on a port where nobody said so."""
        dialect = Ldap()
        assert dialect.request(b"\x16\x03\x01\x02\x00\x01", 0) == [("bytes", "encrypted")]

    def test_a_length_that_nobody_means_does_not_make_deaf(self) -> None:
        """Four gigabytes are no message, and the next segment is read again."""
        dialect = Ldap()
        assert dialect.request(b"\x30\x84\xff\xff\xff\xff\x02\x01\x02\x63", 0) == []
        assert dialect.request(made.search(3), 0) == [(3, "search")]

    def test_after_a_gap_the_next_message_is_found(self) -> None:
        """Bytes were lost; what begins a segment with a message is in step again."""
        dialect = Ldap()
        assert dialect.request(made.search(2, words=50)[:60], 0) == []
        dialect.resync(from_client=True)
        assert dialect.request(made.search(3), 0) == [(3, "search")]


class TestDns:
    """RFC 1035."""

    @pytest.mark.parametrize("code", range(16))
    def test_only_servfail_and_refused_are_errors(self, code: int) -> None:
        """NXDOMAIN is an honest answer."""
        dialect = Dns(udp=True)
        assert dialect.request(made.dns(7), 0) == [(7, "query")]
        assert replies(dialect, made.dns(7, response=True, code=code)) == [(7, code in {2, 5})]

    def test_a_datagram_is_one_message(self) -> None:
        """What follows in it is nobody's."""
        dialect = Dns(udp=True)
        assert dialect.request(made.dns(7) + made.dns(8), 0) == [(7, "query")]
        assert dialect.request(b"short", 0) == []
        assert dialect.request(made.dns(9, response=True), 0) == []
        assert dialect.reply(made.dns(7), 0) == []

    @pytest.mark.parametrize("size", [1, 2, 5, 11, 40, 1000])
    def test_over_tcp_messages_have_a_length(self, size: int) -> None:
        """Pipelined, out of order, cut anywhere."""
        dialect = Dns(udp=False)
        up = b"".join(made.framed(made.dns(number)) for number in (1, 2, 3))
        asked = [request for part in segments(up, size) for request in dialect.request(part, 0)]
        assert asked == [(1, "query"), (2, "query"), (3, "query")]
        down = b"".join(made.framed(made.dns(n, response=True, code=c)) for n, c in ((3, 0), (1, 2), (2, 5)))
        found = [reply for part in segments(down, size) for reply in replies(dialect, part)]
        assert found == [(3, OK), (1, SICK), (2, SICK)]

    def test_over_tcp_a_short_capture_of_a_zone_is_passed_over(self) -> None:
        """A large answer, cut; the next one behind it is found."""
        dialect = Dns(udp=False)
        dialect.request(made.framed(made.dns(1)), 0)
        large = made.framed(made.dns(1, response=True) + b"x" * 1000)
        assert replies(dialect, large[:300], len(large) - 300) == [(1, OK)]
        assert replies(dialect, made.framed(made.dns(2, response=True))) == [(2, OK)]

    def test_over_tcp_what_cannot_be_read_is_no_evidence(self) -> None:
        """The capture began within a message."""
        assert Dns(udp=False).reply(b"\0\1garbage", 0) == [UNREADABLE]


class TestHttp:
    """RFC 9112."""

    def test_replies_come_in_the_order_of_the_requests(self) -> None:
        """Pipelined or not: the oldest is answered."""
        dialect = Http()
        assert dialect.request(made.get() + made.get("/b", "HEAD") + made.get("/c"), 0) == [
            *((1, "GET"), (2, "HEAD"), (3, "GET"))
        ]
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"  # of a HEAD: no body follows
        assert replies(dialect, made.http() + head + made.http(503)) == [(ANY, OK), (ANY, OK), (ANY, SICK)]

    def test_keep_alive(self) -> None:
        """Many requests on one connection, each answered once."""
        dialect = Http()
        for number in range(1, 50):
            assert dialect.request(made.get(), 0) == [(number, "GET")]
            assert replies(dialect, made.http(body="x" * number)) == [(ANY, OK)]

    @pytest.mark.parametrize("code", [200, 204, 206, 301, 304, 400, 401, 403, 404, 429, 500, 502, 503, 504])
    def test_5xx_is_an_error(self, code: int) -> None:
        """The server's fault, not the client's."""
        dialect = Http()
        dialect.request(made.get(), 0)
        assert replies(dialect, f"HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n".encode()) == [(ANY, code >= 500)]

    @pytest.mark.parametrize("size", [1, 2, 5, 17, 1000])
    def test_chunked(self, size: int) -> None:
        """Chunks, with extensions and a trailer, hold nothing that is taken for a reply."""
        dialect = Http()
        dialect.request(made.get() + made.get("/b"), 0)
        body = "19;x=y\r\nHTTP/1.1 500 no reply\r\n\r\n\r\n3\r\nabc\r\n0\r\nExpires: never\r\n\r\n"
        body = body.replace("19;", f"{len('HTTP/1.1 500 no reply') + 4:x};")
        data = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{body}".encode() + made.http(502)
        found = [reply for part in segments(data, size) for reply in replies(dialect, part)]
        assert found == [(ANY, OK), (ANY, SICK)]

    @pytest.mark.parametrize("size", [1, 3, 9, 12, 50])
    def test_split_segments(self, size: int) -> None:
        """Start lines in pieces, bodies that look like messages."""
        dialect = Http()
        up = made.get("/upload", "POST", body="GET /not HTTP/1.1\r\n\r\n") + made.get("/b")
        assert [r for part in segments(up, size) for r in dialect.request(part, 0)] == [(1, "POST"), (2, "GET")]
        down = made.http(body="HTTP/1.1 500 not\r\n\r\n") + made.http(503, body="")
        assert [r for part in segments(down, size) for r in replies(dialect, part)] == [(ANY, OK), (ANY, SICK)]

    def test_continue_is_not_yet_an_answer(self) -> None:
        """1xx is followed by the answer."""
        dialect = Http()
        dialect.request(made.get("/", "PUT", "Expect: 100-continue\r\n"), 0)
        assert replies(dialect, b"HTTP/1.1 100 Continue\r\n\r\n") == []
        assert replies(dialect, made.http(201)) == [(ANY, OK)]

    @pytest.mark.parametrize("code", [101, 200])
    def test_what_is_no_longer_http_is_bytes(self, code: int) -> None:
        """A websocket; a tunnel behind CONNECT."""
        dialect = Http()
        dialect.request(made.get("example.org:443", "CONNECT"), 0)
        assert replies(dialect, f"HTTP/1.1 {code} X\r\n\r\n".encode()) == [(ANY, OK)]
        assert dialect.request(b"anything", 0) == [("bytes", "encrypted")]
        assert replies(dialect, b"anything") == [(ALL, OK)]

    def test_a_head_that_was_not_captured_whole(self) -> None:
        """Long headers are cut; the status is known, the end of the body is not, and the next reply is found."""
        dialect = Http()
        for number in range(1, 5):
            assert dialect.request(made.get(headers="Cookie: " + "x" * 300)[:200], 300) == [(number, "GET")]
            reply = made.http(503, "body", "Set-Cookie: " + "x" * 300 + "\r\n")
            assert replies(dialect, reply[:200], len(reply) - 200) == [(ANY, SICK)]
            assert dialect.reply(b"more of the body, without a beginning", 900) == []

    def test_pipelined_behind_an_unknown_length_nothing_is_known(self) -> None:
        """The second reply may stand where nobody looks."""
        dialect = Http()
        dialect.request(made.get() + made.get() + made.get(), 0)
        reply = made.http(200, "body", "Set-Cookie: " + "x" * 300 + "\r\n")
        assert dialect.reply(reply[:200], len(reply) - 200) == [Reply(ANY, True, False), UNREADABLE]

    def test_after_a_gap_start_lines_are_found_again(self) -> None:
        """Within an upload, and within a reply; whatever was open is forgotten with the reply's bytes."""
        dialect = Http()
        dialect.request(made.get("/", "POST", "Content-Length: 5000\r\n"), 0)
        dialect.resync(from_client=True)
        assert dialect.request(made.get(), 0) == [(2, "GET")]
        assert replies(dialect, made.http(body="x" * 500)[:300]) == [(ANY, OK)]
        dialect.resync(from_client=False)
        assert dialect.request(made.get(), 0) == [(3, "GET")]
        assert replies(dialect, made.http(503)) == [(ANY, SICK)]

    def test_a_body_without_a_length_ends_with_the_connection(self) -> None:
        """HTTP/1.0: it is no reply to anything else."""
        dialect = Http()
        dialect.request(made.get(), 0)
        assert replies(dialect, b"HTTP/1.0 200 OK\r\n\r\nsome\r\nHTTP/1.1 500 text\r\n") == [(ANY, OK)]

    def test_a_request_that_was_not_seen_is_not_answered_twice(self) -> None:
        """The capture began behind it."""
        flow = Flow((b"", 1), Http())
        assert flow.answer(flow.dialect.reply(made.http(), 0)) == []
        asked = flow.ask(flow.dialect.request(made.get(), 0), 1.0)
        assert flow.answer(flow.dialect.reply(made.http(503), 0)) == [(asked[0], True)]

    def test_tls_is_noticed(self) -> None:
        """https where nobody said so."""
        assert Http().request(b"\x16\x03\x01\x02\x00\x01", 0) == [("bytes", "encrypted")]


class TestGeneric:
    """Any protocol: bytes in want bytes out."""

    @pytest.mark.parametrize(("encrypted", "operation"), [(False, "bytes"), (True, "encrypted")])
    def test_bytes_want_bytes(self, encrypted: bool, operation: str) -> None:
        """Nothing else is known."""
        flow = Flow((b"", 1), Generic(encrypted))
        asked = flow.ask(flow.dialect.request(b"hello", 0), 1.0)
        assert [(request.key, request.operation) for request in asked] == [("bytes", operation)]
        assert flow.ask(flow.dialect.request(b" world", 0), 1.1) == []
        assert flow.answer(flow.dialect.reply(b"yes", 0)) == [(asked[0], False)]
        assert asked[0].answered is True


@pytest.mark.parametrize(
    ("check", "options", "dialect", "expected"),
    [
        *(("ldap", {}, None, Ldap), ("dns", {}, None, Dns), ("http", {}, None, Http), ("tcp", {}, None, Generic)),
        *(("plugin", {}, None, Generic), ("plugin", {}, "ldap", Ldap), ("ldap", {"tls": "starttls"}, None, Ldap)),
        *(("ldap", {"tls": "ldaps"}, None, Generic), ("ldap", {"tls": "ldaps"}, "ldap", Ldap)),
        ("https", {}, None, Generic),
    ],
)
def test_the_dialect_follows_from_the_check(check: str, options: dict, dialect: str | None, expected: type) -> None:
    """Or is named in the config, which wins."""
    made_dialect = dialect_for(made.service(check, dialect=dialect, **options))()
    assert type(made_dialect) is expected
    assert made_dialect.encrypted is (expected is Generic and check in ("ldap", "https"))


CONVERSATION = {
    Ldap: (
        made.bind(1) + made.search(2, words=9) + made.search(3, made.sync_request(3)),
        made.entry(2) + made.result(2),
    ),
    Http: (made.get() + made.get("/", "POST", body="x" * 30), made.http() + made.http(503, "y" * 30)),
    lambda: Dns(udp=False): (made.framed(made.dns(1)) * 3, made.framed(made.dns(1, response=True)) * 3),
    lambda: Dns(udp=True): (made.dns(1), made.dns(1, response=True)),
}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(CONVERSATION)), st.randoms(use_true_random=False), st.integers(0, 400))
def test_no_bytes_raise(make: type, chance: random.Random, missing: int) -> None:
    """Changed, cut, repeated, in any order and with gaps: a dialect answers with what it understood."""
    dialect = make()
    flow = Flow((b"", 1), dialect)
    for _ in range(12):
        up = chance.random() < 0.5
        data = bytearray(CONVERSATION[make][0 if up else 1])
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        start = chance.randrange(len(data)) if chance.random() < 0.3 else 0
        part = bytes(data[start : start + chance.randrange(1, 200)])
        lost = missing if chance.random() < 0.3 else 0
        if chance.random() < 0.1:
            dialect.resync(from_client=up)
        if up:
            flow.ask(dialect.request(part, lost), 1.0)
        else:
            flow.answer(dialect.reply(part, lost))
