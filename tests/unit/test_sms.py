"""Texts: what fits, what a notification becomes, and a spool that loses nothing and tells nothing twice."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.handlers import sms
from check_failover.sms import GatewayError
from check_failover.sms.flush import SendPlan, SmsSender
from check_failover.sms.receipts import Receipts
from check_failover.sms.spool import AWAITED, FAILED, QUEUE, SENT, Spool, SpoolError, Text, key_of
from check_failover.sms.text import fit, is_gsm, parts, plain, units
from tests.lab.netns import poll

OPTIONS = sms.OPTIONS | {
    "number": "+49170 123-456",
    "type": "PROBLEM",
    "host": "ldap.example.org",
    "service": "ldap primary",
    "state": "CRITICAL",
    "output": "no useful reply to 12 of 12 requests",
    "date": "21:02:33",
}


@pytest.mark.parametrize(
    ("text", "gsm", "length", "count"),
    [
        ("a" * 160, True, 160, 1),
        ("a" * 161, True, 161, 2),
        ("a" * 307, True, 307, 3),
        ("€" * 80, True, 160, 1),
        ("€" * 81, True, 162, 2),
        ("主" * 70, False, 70, 1),
        ("主" * 71, False, 71, 2),
        ("🔥" * 35, False, 70, 1),
        ("🔥" * 36, False, 72, 2),
        ("é à ü ñ Δ", True, 9, 1),
        ("ê", False, 1, 1),
        ("", True, 0, 1),
    ],
)
def test_what_fits(text: str, gsm: bool, length: int, count: int) -> None:
    """160 septets or 70 UTF-16 units in one message, 153 or 67 in a part; braces and the euro sign take two septets."""
    assert (is_gsm(text), units(text), parts(text)) == (gsm, length, count)


@pytest.mark.parametrize(
    "text", ["x" * 500, "主" * 500, "[" * 500, "🔥" * 150, "a" * 190 + "主" * 20], ids=lambda t: f"{t[0]}-{len(t)}"
)
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_shorten_fills_its_parts(text: str, limit: int) -> None:
    """What is cut fits, ends in dots and wastes nothing: one more character would not fit."""
    short = fit("", text, limit=limit)
    assert short.endswith("...")
    assert parts(short) <= limit < parts(text[: len(short) - 3 + 1] + "...")


def test_the_tail_survives_a_cut() -> None:
    """The time of a long notification is not what is cut off."""
    text = fit("PROBLEM: ", "x" * 300, " (21:02:33)")
    assert text.startswith("PROBLEM: x")
    assert text.endswith("x... (21:02:33)")
    assert parts(text) == 1


@pytest.mark.parametrize("name", ["x" * 200, "主" * 90], ids=["gsm", "ucs-2"])
def test_the_time_survives_the_longest_names(name: str) -> None:
    """Host and service names that fill a message by themselves lose their end, the time nothing."""
    (text,) = sms.compose(OPTIONS | {"host": name, "service": f"{name} primary"}, now=1000.0)
    assert text.text.startswith(f"PROBLEM {name[:20]}")
    assert text.text.endswith("... (21:02:33)")
    assert parts(text.text) == 1


def test_plain() -> None:
    """One line, in the phone's alphabet where there is an equivalent."""
    assert plain("“a” –\n b\x07…\tc’s") == '"a" - b ...c\'s' or plain("“a” –\n b\x07…\tc’s") == '"a" - b ... c\'s'


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "PROBLEM ldap primary CRITICAL on ldap.example.org: no useful reply to 12 of 12 requests (21:02:33)"),
        ({"service": "", "state": "DOWN", "output": ""}, "PROBLEM ldap.example.org DOWN (21:02:33)"),
        (
            {"type": "ACKNOWLEDGEMENT", "author": "joe", "comment": "on my way", "date": ""},
            "ACKNOWLEDGEMENT ldap primary CRITICAL on ldap.example.org: joe: on my way; "
            "no useful reply to 12 of 12 requests",
        ),
        ({"text": "hello\nworld"}, "hello world"),
    ],
)
def test_what_a_notification_becomes(change: dict[str, str], expected: str) -> None:
    """The words a person reads on the phone."""
    (text,) = sms.compose(OPTIONS | change, now=1000.0)
    assert (text.number, text.text) == ("+49170123456", expected)


@pytest.mark.parametrize("number", ["", "pagenagios@localhost", "12", "+49 170 x", " , "])
def test_what_is_no_number(number: str) -> None:
    """A contact without a phone is an error of its own, not a text to nowhere."""
    with pytest.raises(sms.UsageError):
        sms.compose(OPTIONS | {"number": number}, now=1000.0)


def test_an_event_is_one_text_for_each_phone() -> None:
    """Handlers of one event make the same key, however their output differs; phones and repetitions make others."""

    def key(**change: str) -> str:
        return sms.compose(OPTIONS | {"event": "17-1"} | change, now=time.time())[0].key

    assert key() == key(output="other words") == key(date="later")
    assert len({key(), key(number="+491"), key(event="17-2"), key(state="OK"), key(type="RECOVERY")}) == 5
    assert len({sms.compose(OPTIONS | {"text": "x"}, 1.0)[0].key for _ in range(5)}) == 5


class Phone:
    """A gateway that keeps what it takes; ``down`` and ``refuse`` say what it does with the next."""

    def __init__(self, *, receipts: bool = False) -> None:
        self.got, self.down, self.refuse, self.asked = list[tuple[str, str]](), False, "", 0
        self.receipts, self.urls = receipts, list[str]()

    def answers(self) -> str:
        return "rings"

    def send(self, text: str, number: str, receipt_url: str) -> None:
        self.asked += 1
        self.urls.append(receipt_url)
        if self.down:
            raise GatewayError("connection refused")
        if number == self.refuse:
            raise GatewayError("no such number", permanent=True)
        self.got.append((number, text))


def text(number: str = "+491", words: str = "x", at: float | None = None, window: float = 60.0) -> Text:
    """A text with an event of its own words."""
    return Text(key_of(number, words), number, words, time.time() if at is None else at, window)


def test_the_spool_keeps_and_sends(tmp_path: Path) -> None:
    """A text waits as one file that the group may read, leaves once, and is remembered."""
    spool, phone = Spool(tmp_path / "spool"), Phone()
    assert spool.put(text())
    (waiting,) = (tmp_path / "spool" / QUEUE).iterdir()
    assert waiting.stat().st_mode & 0o777 == 0o660
    assert not spool.put(text())
    assert SmsSender(spool, "phone", phone).run(stay=0) == 0
    assert not spool.put(text())
    assert phone.got == [("+491", "x")]
    assert (spool.count(QUEUE), spool.count(SENT)) == (0, 1)
    assert json.loads((tmp_path / "spool" / "log.jsonl").read_text())["gateway"] == "phone"


def test_the_same_event_much_later_is_another(tmp_path: Path) -> None:
    """What was told counts for its window only."""
    spool, phone = Spool(tmp_path), Phone()
    spool.put(text())
    SmsSender(spool, "phone", phone).run(stay=0)
    assert spool.put(text(at=time.time() + 61))
    assert SmsSender(spool, "phone", phone).run(stay=0) == 0
    assert len(phone.got) == 2


def test_a_second_handler_that_came_between(tmp_path: Path) -> None:
    """Queued by a handler that looked before the first text was sent: the sender drops it."""
    spool, phone = Spool(tmp_path), Phone()
    one = text()
    spool.put(one)
    spool.settle(replace(one, sent_at=1.0), SENT)
    (tmp_path / QUEUE / f"{one.key}.json").write_bytes(one.dump())
    assert SmsSender(spool, "phone", phone).run(stay=0) == 0
    assert (phone.got, spool.count(QUEUE)) == ([], 0)


def test_handlers_at_once(tmp_path: Path) -> None:
    """Fifty handlers for one event: one text; for fifty events: fifty."""
    spool, phone = Spool(tmp_path), Phone()
    took: list[bool] = []
    threads = [threading.Thread(target=lambda: took.append(spool.put(text()))) for _ in range(50)]
    threads += [threading.Thread(target=lambda n=n: spool.put(text(words=f"event {n}"))) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert took.count(True) == 1
    assert SmsSender(spool, "phone", phone).run(stay=0) == 0
    assert len(phone.got) == len(set(phone.got)) == 51


def test_a_gateway_that_is_down(tmp_path: Path) -> None:
    """It is asked once, not once per text; all stays; the attempt and its problem are noted; order is kept later."""
    spool, phone = Spool(tmp_path), Phone()
    for n in range(3):
        spool.put(text(words=f"{n}", at=1000.0 + n))
    phone.down = True
    assert SmsSender(spool, "phone", phone).run(stay=0) == 3
    assert phone.asked == 1
    assert [(t.attempts, t.problem) for t in spool.pending()] == [(1, "connection refused"), (0, ""), (0, "")]
    phone.down = False
    assert SmsSender(spool, "phone", phone).run(stay=0) == 0
    assert sorted(phone.got) == [("+491", "0"), ("+491", "1"), ("+491", "2")]


def test_a_sender_waits_for_the_gateway(tmp_path: Path) -> None:
    """It stays and sends as soon as the gateway is back."""
    spool, phone = Spool(tmp_path), Phone()
    spool.put(text())
    phone.down = True
    timer = threading.Timer(0.3, lambda: setattr(phone, "down", False))
    timer.start()
    assert SmsSender(spool, "phone", phone).run(stay=10) == 0
    timer.join()
    assert phone.got == [("+491", "x")]


def test_a_number_that_is_none_holds_nobody_up(tmp_path: Path) -> None:
    """What the gateway will never take is put aside for a person."""
    spool, phone = Spool(tmp_path), Phone()
    phone.refuse = "+490"
    spool.put(text("+490", at=1000.0))
    spool.put(text("+491"))
    assert SmsSender(spool, "phone", phone).run(stay=0) == 0
    assert phone.got == [("+491", "x")]
    assert spool.count(FAILED) == 1


def test_one_sender_at_a_time(tmp_path: Path) -> None:
    """A second sender ends at once, without waiting."""
    spool, phone = Spool(tmp_path), Phone()
    spool.put(text())
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert SmsSender(spool, "phone", phone).run(stay=10) == 0
    assert phone.got == []
    assert spool.count(QUEUE) == 1


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    """Half a file, or a file of somebody else's, stops nothing."""
    spool, phone = Spool(tmp_path), Phone()
    spool.put(text())
    for name, data in (("a", b"{"), ("b", b"[]"), ("c", b'{"key": "c"}'), ("d", b"\xff\n")):
        (tmp_path / QUEUE / f"{name}.json").write_bytes(data)
    assert SmsSender(spool, "phone", phone).run(stay=0) == 0
    assert phone.got == [("+491", "x")]
    assert spool.count(FAILED) == 4


def test_a_spool_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where the directory should be: one line, no traceback."""
    (tmp_path / "spool").write_text("")
    with pytest.raises(SpoolError, match="spool"):
        Spool(tmp_path / "spool").put(text())


def test_the_second_gateway_stands_in(tmp_path: Path) -> None:
    """Not before the first one's time is over; at once for a number that the first one refuses."""
    spool, first, second = Spool(tmp_path), Phone(), Phone()
    sender = SmsSender(spool, "first", first, SendPlan(second=("second", second), patience=100.0))
    first.down, first.refuse = True, "+490"
    spool.put(text(words="young"))
    spool.put(text(words="old", at=time.time() - 101))
    assert sender.run(stay=0) == 1
    assert second.got == [("+491", "old")]
    assert first.asked == 1
    first.down = False
    spool.put(text("+490", "refused"))
    assert sender.run(stay=0) == 0
    assert first.got == [("+491", "young")]
    assert second.got == [("+491", "old"), ("+490", "refused")]
    assert (spool.count(SENT), spool.count(FAILED)) == (3, 0)


def test_what_both_gateways_refuse_is_for_a_person(tmp_path: Path) -> None:
    """It is put aside; a second gateway that is down keeps it waiting instead."""
    spool, first, second = Spool(tmp_path), Phone(), Phone()
    sender = SmsSender(spool, "first", first, SendPlan(second=("second", second)))
    first.refuse = second.refuse = "+490"
    second.down = True
    spool.put(text("+490"))
    assert sender.run(stay=0) == 1
    second.down = False
    assert sender.run(stay=0) == 0
    assert (spool.count(FAILED), first.got, second.got) == (1, [], [])


def test_a_text_waits_for_the_second_gateway_no_longer_than_it_must(tmp_path: Path) -> None:
    """The pause between two questions does not add to the first gateway's time."""
    spool, first, second = Spool(tmp_path), Phone(), Phone()
    first.down = True
    spool.put(text())
    began = time.monotonic()
    assert SmsSender(spool, "first", first, SendPlan(second=("second", second), patience=1.5)).run(stay=30) == 0
    assert second.got == [("+491", "x")]
    assert time.monotonic() - began >= 1.4


@pytest.fixture
def receipts() -> Receipts:
    """A listener's address on a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return Receipts(f"http://127.0.0.1:{sock.getsockname()[1]}")


def tell(url: str, kind: int) -> int:
    """What a gateway does with a receipt; returns the HTTP status."""
    try:
        with urllib.request.urlopen(url.replace("%d", str(kind)), timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def in_background(sender: SmsSender, stay: float) -> threading.Thread:
    thread = threading.Thread(target=sender.run, args=(stay,))
    thread.start()
    return thread


def test_a_receipt_ends_the_waiting(tmp_path: Path, receipts: Receipts) -> None:
    """ "On its way" does not; a word that is not the text's own does nothing."""
    spool, phone, second = Spool(tmp_path), Phone(receipts=True), Phone()
    spool.put(text())
    thread = in_background(SmsSender(spool, "p", phone, SendPlan(receipts=receipts, second=("second", second))), 60)
    poll(lambda: spool.count(AWAITED), 10, "the text left")
    assert not spool.put(text()), "the same event again, while its receipt is awaited"
    assert tell(phone.urls[0], 8) == 200
    address = phone.urls[0].rsplit("/", 2)[0]
    assert tell(f"{address}/{'0' * 32}/1", 1) == 200
    assert tell(f"{address}/nonsense", 1) == 404
    assert thread.is_alive()
    assert spool.count(AWAITED) == 1
    tell(phone.urls[0], 1)
    thread.join(20)
    (kept,) = spool.pending(SENT)
    assert (kept.receipt, phone.asked, second.got) == ("delivered", 1, [])
    assert '"receipt": "delivered"' in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("kind", [0, 2, 16], ids=["silence", "undeliverable", "rejected"])
def test_no_delivery_is_the_second_gateways_business(tmp_path: Path, receipts: Receipts, kind: int) -> None:
    """A denied delivery at once, a missing receipt after its time; each once."""
    spool, phone, second = Spool(tmp_path), Phone(receipts=True), Phone()
    spool.put(text())
    patience = 60.0 if kind else 1.0
    plan = SendPlan(second=("second", second), patience=patience, receipts=receipts)
    thread = in_background(SmsSender(spool, "p", phone, plan), 90)
    if kind:
        poll(lambda: spool.count(AWAITED), 10, "the text left")
        tell(phone.urls[0], kind)
    thread.join(30)
    assert (phone.got, second.got) == ([("+491", "x")], [("+491", "x")])
    (kept,) = spool.pending(SENT)
    assert (kept.gateway, kept.unconfirmed) == ("second", True)


@pytest.mark.parametrize(("kind", "folder"), [(2, FAILED), (0, SENT)], ids=["denied", "silence"])
def test_without_a_second_gateway(tmp_path: Path, receipts: Receipts, kind: int, folder: str) -> None:
    """A denied delivery is for a person; silence proves nothing, and is noted."""
    spool, phone = Spool(tmp_path), Phone(receipts=True)
    spool.put(text())
    thread = in_background(
        SmsSender(spool, "p", phone, SendPlan(patience=60.0 if kind else 0.5, receipts=receipts)), 90
    )
    if kind:
        poll(lambda: spool.count(AWAITED), 10, "the text left")
        tell(phone.urls[0], kind)
    thread.join(30)
    assert len(phone.got) == 1
    (kept,) = spool.pending(folder)
    assert kept.receipt == ("undeliverable" if kind else "no receipt in 0 s")


def test_a_text_awaits_its_receipt_over_a_restart(tmp_path: Path, receipts: Receipts) -> None:
    """Whoever sends next listens for it; it is not sent again."""
    spool, phone = Spool(tmp_path), Phone(receipts=True)
    spool.put(text())
    plan = SendPlan(patience=60.0, receipts=receipts)
    assert SmsSender(spool, "p", phone, plan).run(stay=0) == 0
    assert spool.count(AWAITED) == 1
    thread = in_background(SmsSender(spool, "p", phone, replace(plan, receipts=Receipts(receipts._url))), 60)
    poll(lambda: thread.is_alive() and _connects(phone.urls[0]), 10, "it listens")
    tell(phone.urls[0], 1)
    thread.join(20)
    assert [one.receipt for one in spool.pending(SENT)] == ["delivered"]
    assert phone.asked == 1


def _connects(url: str) -> bool:
    try:
        return tell(url, 8) == 200
    except OSError:
        return False


def test_a_listener_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the port taken nobody is asked for receipts, the texts leave, and it is told."""
    spool, phone = Spool(tmp_path), Phone(receipts=True)
    spool.put(text())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        receipts = Receipts(f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert SmsSender(spool, "p", phone, SendPlan(receipts=receipts)).run(stay=5) == 0
    assert (phone.urls, spool.count(SENT)) == ([""], 1)
    assert "cannot listen" in capsys.readouterr().err


def test_a_flood_is_told_by_a_digest(tmp_path: Path) -> None:
    """Of twenty at once a phone gets nine and "11 more", another phone its own; then nothing until there is room."""
    spool, phone = Spool(tmp_path), Phone()
    began = time.time()
    for n in range(20):
        spool.put(text(words=f"event {n}", at=began + n / 100))
    spool.put(text("+492", "other phone"))
    sender = SmsSender(spool, "p", phone, SendPlan(limit=10, window=2.0))
    assert sender.run(stay=0) == 0
    told = [words for number, words in phone.got if number == "+491"]
    assert told[:9] == [f"event {n}" for n in range(9)]
    assert told[9].startswith("11 more in 1 min: event 19; event 18; ")
    assert ("+492", "other phone") in phone.got
    assert len(phone.got) == 11
    assert not spool.put(text(words="event 15")), "told by the digest"
    spool.put(text(words="late"))
    assert sender.run(stay=0) == 1
    assert len(phone.got) == 11
    assert sender.run(stay=30) == 0
    assert phone.got[-1] == ("+491", "late")


def test_a_digest_waits_for_a_gateway_too(tmp_path: Path) -> None:
    """While the gateway is down nothing is put together; then it is, and none is lost."""
    spool, phone = Spool(tmp_path), Phone()
    for n in range(5):
        spool.put(text(words=f"event {n}", at=time.time() - 3600 + n))
    phone.down = True
    sender = SmsSender(spool, "p", phone, SendPlan(limit=3))
    assert sender.run(stay=0) == 5
    phone.down = False
    assert sender.run(stay=0) == 0
    assert [words for _, words in phone.got] == [
        "event 1",
        "event 2",
        "3 more in 60 min: event 4; event 3; event 0",
    ]


def test_old_texts_are_forgotten(tmp_path: Path) -> None:
    """What was sent is kept for a day, what failed for a month."""
    spool, now = Spool(tmp_path), time.time()
    for folder, age in ((SENT, 90000), (SENT, 10), (FAILED, 90000), (FAILED, 31 * 86400)):
        one = text(words=f"{folder} {age}")
        spool.put(one)
        spool.settle(one, folder)
        os.utime(tmp_path / folder / f"{one.key}.json", (now - age, now - age))
    spool.prune(now)
    assert (spool.count(SENT), spool.count(FAILED)) == (1, 1)
