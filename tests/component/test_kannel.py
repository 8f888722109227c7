"""SMS through real gateways: Kannel with a fake phone network, smstools' smsd without a modem, gammu-smsd-inject."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from check_failover.config import Config, load
from check_failover.sms import GATEWAYS, GatewayError
from check_failover.sms.flush import sender
from check_failover.sms.spool import AWAITED, QUEUE, SENT, Spool, Text, key_of
from tests.lab.kannel import Kannel
from tests.lab.netns import poll
from tests.lab.scripted import closed_port
from tests.lab.smsd import Smsd

pytestmark = pytest.mark.component
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
CHINESE = "PROBLEM 主服务器 ldap primary CRITICAL：没有回答 12 个请求中的 12 个，已切换到备用服务器"


def config(directory: Path, sms: Mapping[str, object], second: Mapping[str, object] | None = None) -> Config:
    """A config that knows nothing but these gateways and one service."""
    lines = ["[controller]", f'state_dir = "{directory}"', "[sms]", *(f"{k} = {json.dumps(v)}" for k, v in sms.items())]
    lines += ["[sms.second]", *(f"{k} = {json.dumps(v)}" for k, v in second.items())] if second else []
    lines += ["[[service]]", 'name = "a"', 'host = "h"', 'protocol = "tcp"', 'address = "192.0.2.1"', "port = 1"]
    lines += ['primary = "192.0.2.2"', 'standby = "192.0.2.3"', "[service.check]", 'type = "tcp"']
    (directory / "config.toml").write_text("\n".join(lines))
    return load(directory / "config.toml")


def of(kannel: Kannel) -> dict[str, object]:
    """``[sms]`` for this Kannel."""
    return {
        "gateway": "kannel",
        "url": kannel.url,
        "username": kannel.username,
        "password_file": str(kannel.password_file),
        "sender": "1234",
        "status_url": kannel.status_url,
    }


def put(directory: Path, words: str, number: str = "+491701") -> Spool:
    """A text in the spool."""
    spool = Spool(directory / "spool")
    spool.put(Text(key_of(words, number), number, words, time.time(), 60.0))
    return spool


@contextlib.contextmanager
def sending(config: Config, stay: float) -> Iterator[threading.Thread]:
    """A sender in the background; it has ended when the block has."""
    thread = threading.Thread(target=sender(config).run, args=(stay,))
    thread.start()
    yield thread
    thread.join(stay + 5)
    assert not thread.is_alive()


@pytest.mark.parametrize("words", ["hello <world> [1] {2} 5 €", CHINESE, "🔥" * 35, "x" * 160, "主" * 70])
def test_what_the_phone_shows(tmp_path: Path, kannel: Kannel, words: str) -> None:
    """GSM 7-bit and UCS-2, up to the last character that fits, come out as they went in."""
    before = len(kannel.received())
    put(tmp_path, words)
    assert sender(config(tmp_path, of(kannel))).run(stay=0) == 0
    assert kannel.wait_received(before + 1)[before:] == [("+491701", words)]


@pytest.fixture(scope="module")
def kannel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kannel]:
    """One Kannel for the tests that leave it running."""
    with Kannel(tmp_path_factory.mktemp("kannel")) as running:
        yield running


def test_a_real_receipt(tmp_path: Path, kannel: Kannel) -> None:
    """Kannel tells of the delivery, by the address it was given, and the text is done with."""
    spool = put(tmp_path, "delivered?")
    with sending(config(tmp_path, of(kannel) | {"receipt_url": f"http://127.0.0.1:{closed_port()}"}), 30.0) as thread:
        thread.join(20)
    (kept,) = spool.pending(SENT)
    assert (kept.receipt, kept.gateway) == ("delivered", "kannel")


def test_whether_it_answers(tmp_path: Path, kannel: Kannel) -> None:
    """Right and wrong account, a message centre that is away, no gateway: each is told, and no phone rings."""
    before = kannel.received()
    wrong = tmp_path / "password"
    wrong.write_text("no\n")
    assert GATEWAYS["kannel"](of(kannel)).answers() == "Kannel answers, 1 of 1 message centres connected"
    with pytest.raises(GatewayError, match="HTTP 403: Authorization failed"):
        GATEWAYS["kannel"](of(kannel) | {"password_file": str(wrong)}).answers()
    with pytest.raises(GatewayError, match="refused"):
        GATEWAYS["kannel"](of(kannel) | {"url": f"http://127.0.0.1:{closed_port()}/"}).answers()
    kannel.network_down()
    poll(
        lambda: _problem(kannel) == "no message centre is connected (re-connecting)", 10.0, "the message centre is away"
    )
    kannel.network_up()
    assert kannel.received() == before


def _problem(kannel: Kannel) -> str:
    try:
        return GATEWAYS["kannel"](of(kannel)).answers()
    except GatewayError as error:
        return str(error)


def test_no_receipt_so_another_way(tmp_path: Path) -> None:
    """Kannel accepts and cannot deliver: smsd gets the text, each phone number and letter of it, once."""
    with Kannel(tmp_path / "kannel") as kannel, Smsd(tmp_path / "smsd") as smsd:
        kannel.network_down()
        spool = put(tmp_path, CHINESE)
        first = of(kannel) | {"receipt_url": f"http://127.0.0.1:{closed_port()}", "patience": 1}
        with sending(config(tmp_path, first, smsd.options), 30.0):
            smsd.wait_sent(1)
        (kept,) = spool.pending(SENT)
        assert (kept.gateway, kept.receipt) == ("second smstools", "no receipt in 1 s")
        assert kannel.received() == []
        assert smsd.sent() == [("491701", CHINESE)]


def test_smstools(tmp_path: Path) -> None:
    """What smsd would hand to a modem; a directory that is none, or that nobody empties, is the gateway's problem."""
    with Smsd(tmp_path / "smsd") as smsd:
        gateway = GATEWAYS["smstools"](smsd.options)
        gateway.send("é [x] €", "+491701", "")
        assert smsd.wait_sent(1) == [("491701", "é [x] €")]
        assert gateway.answers().endswith("is writable")
    gateway.send("nobody takes it", "+491701", "")
    (lies,) = (tmp_path / "smsd" / "outgoing").iterdir()
    os.utime(lies, (time.time() - 300, time.time() - 300))
    with pytest.raises(GatewayError, match="is smsd running"):
        gateway.answers()
    gateway = GATEWAYS["smstools"]({"outgoing": str(tmp_path / "none")})
    for act in (lambda: gateway.send("x", "1", ""), gateway.answers):
        with pytest.raises(GatewayError, match="none"):
            act()


def test_gammu(tmp_path: Path) -> None:
    """The real program writes into smsd's outbox, in both alphabets; without a config it says so."""
    for name in ("in", "out", "sent", "err"):
        (tmp_path / name).mkdir()
    rc = tmp_path / "gammu-smsdrc"
    rc.write_text(
        f"[gammu]\ndevice = /dev/null\n[smsd]\nservice = files\ninboxpath = {tmp_path}/in/\n"
        f"outboxpath = {tmp_path}/out/\nsentsmspath = {tmp_path}/sent/\nerrorsmspath = {tmp_path}/err/\n"
    )
    gateway = GATEWAYS["gammu"]({"config": str(rc)})
    assert gateway.answers().endswith("runs")
    for words in ("é [x] €", CHINESE):
        gateway.send(words, "+491701", "")
    written = [path.read_text() for path in sorted((tmp_path / "out").iterdir())]
    assert ['Number = "+491701"' in text for text in written] == [True, True]
    assert ["Unicode_No_Compression" in text for text in written] == [False, True]
    texts = [
        bytes.fromhex("".join(re.findall(r"^Text\d\d = (\w+)", text, re.M))).decode("utf-16-be") for text in written
    ]
    assert texts == ["é [x] €", CHINESE]
    for broken in ({"config": str(tmp_path / "none")}, {"config": str(rc), "program": "/nonexistent"}):
        with pytest.raises(GatewayError, match=r"exit code|cannot run"):
            GATEWAYS["gammu"](broken).send("x", "1", "")
        with pytest.raises(GatewayError, match="No such file"):
            GATEWAYS["gammu"](broken).answers()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=16k", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", str(place)], check=True)


def notify(config: Config, words: str) -> str:
    """The notification command for one text; what it said."""
    script = [sys.executable, str(ROOT / "handlers" / "failover_sms")]
    argv = [*script, "--config", str(config.path), "--number", "+491701", "--text", words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """A text that the spool cannot store is sent directly; a stored text is sent once."""
    with Kannel(tmp_path / "kannel") as kannel:
        made = config(small_disk, of(kannel))
        spool = put(small_disk, "before")
        with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 512)
        assert "CANNOT BE STORED" in (said := notify(made, "after")), said
        assert "No space left" in said
        assert "accepted by kannel" in said
        for _ in range(2):
            assert sender(made).run(stay=0) == 0
        assert sorted(kannel.wait_received(2)) == [("+491701", "after"), ("+491701", "before")]
        assert (spool.count(QUEUE), spool.count(AWAITED), spool.count(SENT)) == (0, 0, 1)
        (small_disk / "filler").unlink()
        assert "stored" in notify(made, "room again")
        kannel.wait_received(3)


def test_the_spool_survives_a_killed_sender(tmp_path: Path) -> None:
    """With the gateway down a sender is killed in the middle; after its return the next one sends, each text once."""
    with Kannel(tmp_path / "kannel") as kannel:
        made = config(tmp_path, of(kannel))
        kannel.stop()
        spool = put(tmp_path, "one")
        put(tmp_path, "two")
        argv = [sys.executable, "-m", "check_failover.sms.flush", "--config", str(made.path)]
        process = subprocess.Popen(argv, cwd=ROOT, env=ENVIRONMENT)
        poll(lambda: any(text.attempts for text in spool.pending()), 20.0, "a first attempt")
        process.kill()
        process.wait()
        kannel.start()
        assert sender(made).run(stay=10) == 0
        assert sorted(kannel.wait_received(2)) == [("+491701", "one"), ("+491701", "two")]
        assert sender(made).run(stay=0) == 0
        assert len(kannel.received()) == 2


def test_the_lab_gateway_delivers_after_a_restart(tmp_path: Path) -> None:
    """The private Kannel shows what a phone would, again after a restart of the gateway."""
    with Kannel(tmp_path / "kannel") as kannel:
        kannel.stop()
        kannel.start()
        put(tmp_path, "主服务器 down")
        assert sender(config(tmp_path, of(kannel))).run(stay=10) == 0
        assert kannel.wait_received(1) == [("+491701", "主服务器 down")]
