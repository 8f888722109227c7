"""failoverctl with two hundred services on one controller: one view, one order for many, one line for one finding."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import control, listening, rights
from tests.lab.echo import Echo
from tests.lab.many import PORT, Many, blocks
from tests.lab.netns import PRIMARY, ROOT, SERVICE_ADDRESS, STANDBY, House, end, poll

pytestmark = pytest.mark.component
NUMBER, HALF = 200, 100
PROBED = {"ok": True, "passes": 99, "good_for": 999.0, "text": "accepted"}
STATS = {"request_rate": 0.0, "p99": None, "unanswered": 0}
SEEN = {"target": "primary", "verdict": "ok", "blind": None, "text": "", "facts": None, "stats": STATS}
CLIENT = f"""
import socket, time
held = [socket.create_connection(("{SERVICE_ADDRESS}", {PORT} + n)) for n in (0, 1)]
print("held", flush=True)
time.sleep(600)
"""


class Sniffer:
    """Answers as the sniffer does where every server passes its probe, and keeps what it was asked."""

    def __init__(self, many: Many) -> None:
        self.asked: list[dict[str, Any]] = []
        self.seen = {f"s{n}": {**SEEN, "primary": PROBED, "standby": PROBED} for n in range(1, NUMBER + 1)}
        path = many.socket("sniffer")
        self.server = listening.Server(path, rights.OF_SNIFFER, self._answer, lambda _verb, _peer: None)
        self.server.start()

    def _answer(self, message: dict[str, Any], _peer: object) -> dict[str, Any]:
        self.asked.append(message)
        if message["verb"] == "probe":
            return {"passed": True, "seconds": 0.001, "text": "accepted"}
        name = message.get("service")
        return {"services": {name: self.seen[name]} if name else self.seen}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Iterator[Many]:
    """s1 to s100 on one pair of servers, s101 to s200 on the same pair the other way round."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with tempfile.TemporaryDirectory(prefix="cfo-many-") as name, House() as house:
        Path(name).chmod(0o755)
        crossed = blocks(HALF, primary=STANDBY, standby=PRIMARY, first=HALF + 1)
        made = Many(Path(name), house, blocks(HALF) + crossed)
        made.start("redirector")
        yield made
        made.stop()


@pytest.fixture
def sniffer(many: Many) -> Iterator[Sniffer]:
    made = Sniffer(many)
    yield made
    made.server.close()


def done(found: subprocess.CompletedProcess[str], code: int = 0) -> list[str]:
    """The lines of its output (of stderr, if it failed)."""
    assert found.returncode == code, (found.returncode, found.stdout, found.stderr)
    assert "Traceback" not in found.stderr
    return (found.stderr if code else found.stdout).splitlines()


def on_standby(many: Many) -> set[int]:
    return {int(name[1:]) for name, status in many.status().items() if status["target"] == "standby"}


def reports(sniffer: Sniffer) -> int:
    """How many services the redirector has asked about one by one since the last call."""
    found = sum("service" in message for message in sniffer.asked)
    sniffer.asked.clear()
    return found


def entries(many: Many) -> int:
    journal = many.directory / "state" / "journal.jsonl"
    return len(journal.read_text().splitlines()) if journal.exists() else 0


def test_problems_first_and_the_well_in_one_line(many: Many, sniffer: Sniffer) -> None:
    """Whatever a person must look at has a line, the worst first; --all has a line for each service."""
    sniffer.seen["s150"] = {**sniffer.seen["s150"], "verdict": "failed", "text": "two probes failed"}
    done(many.ctl("hold", "s7", "--reason", "new disks"))
    done(many.ctl("drain", "s9", "s8"))
    lines = done(many.ctl("status"))
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        ["s150", "CRITICAL"],
        *(["s7", "WARNING"], ["s8", "WARNING"], ["s9", "WARNING"]),
    ]
    assert "verdict on the primary: failed: two probes failed" in lines[0]
    assert "held by root: new disks" in lines[1]
    assert f"on the standby {STANDBY}:{PORT + 7}" in lines[2]
    assert lines[-1] == "196 services: all well, on the primary"
    assert len(done(many.ctl("status", "--all"))) == NUMBER
    named = done(many.ctl("status", "s8", "s7"))
    assert next(line for line in named if not line.startswith(" ")).startswith("s8: WARNING: on the standby")
    assert "  fail-back:" in named
    assert set(json.loads("\n".join(done(many.ctl("status", "--json"))))) == set(sniffer.seen)


def test_one_question_to_each_daemon(many: Many, sniffer: Sniffer) -> None:
    """A status of two hundred services on their standbys asks the sniffer once here, once by the redirector,
    which also looks every two seconds; of one service, for that service only."""
    done(many.ctl("fail-over", "--all"))
    poll(lambda: not reports(sniffer), 30.0, "the flips are reported", every=1.0)
    sniffer.asked.clear()
    began = time.monotonic()
    assert len(done(many.ctl("status"))) == NUMBER
    looks = 1 + (time.monotonic() - began) / 2.0
    assert 2 <= len(sniffer.asked) <= 2 + looks
    assert all(message == {"verb": "status"} for message in sniffer.asked)
    done(many.ctl("status", "s3"))
    assert sniffer.asked.count({"verb": "status", "service": "s3"}) == 2


def test_maintenance_of_a_server(many: Many, sniffer: Sniffer) -> None:
    """--server takes what that server serves now; refusals are named with their reason, the others are done."""
    done(many.ctl("hold", "s5", "s105", "--reason", "the auditors"))
    lines = done(many.ctl("drain", "--server", PRIMARY), 1)
    assert lines == ["failoverctl: drain: 99 of 100 done, 1 not:", "  s5: refused, hold: held by root: the auditors"]
    assert on_standby(many) == set(range(1, HALF + 1)) - {5}
    lines = done(many.ctl("drain", "--server", STANDBY), 1)  # it serves s101 to s200 as primary, the first as standby
    assert lines[0] == "failoverctl: drain: 99 of 199 done, 100 not:"
    assert [
        line for line in lines if "s1, s2" in line and f"{STANDBY} serves as its standby: fail-back moves it" in line
    ]
    assert on_standby(many) == set(range(1, NUMBER + 1)) - {5, 105}
    assert done(many.ctl("release", "--server", PRIMARY))[-1] == "release: all 200 done"
    assert done(many.ctl("fail-back", "--all"))[-1].endswith("all 200 done")
    assert on_standby(many) == set()
    assert done(many.ctl("fail-back", "--server", PRIMARY), 1)[0].startswith("failoverctl: fail-back: 0 of 100 done")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["s1", "nobody"], 1, "no service 'nobody'"),
        (["--server", "10.9.9.9"], 1, "10.9.9.9 is no server of any service"),
        (["--server", "ldap"], 2, "want an IP address, not 'ldap'"),
        (["--all", "s1"], 2, "not allowed with"),
        ([], 2, "one of the arguments NAME --all --server is required"),
    ],
)
def test_nothing_is_ordered(many: Many, words: list[str], code: int, said: str) -> None:
    """One line says what is wrong with the choice, and no service gets an order."""
    for verb in ("drain", "hold"):
        assert said in done(many.ctl(verb, *words), code)[-1]
    assert entries(many) == 0


def test_a_wait_for_all(many: Many, sniffer: Sniffer) -> None:
    """Two drains run at the same time; --wait ends when no connection of either is left."""
    for n in (0, 1):
        for server, address in (("primary", PRIMARY), ("standby", STANDBY)):
            Echo(many.house, server, "tcp", address, PORT + n, many.directory / f"{server}{n}.log").start()
    log = many.directory / "client.log"
    client = many.house.start("client", sys.executable, "-c", CLIENT, log=log)
    poll(lambda: "held" in log.read_text(), 20.0, "the connections are open")
    found: list[subprocess.CompletedProcess[str]] = []
    waits = threading.Thread(target=lambda: found.append(many.ctl("drain", "s1", "s2", "--wait")))
    waits.start()
    poll(lambda: all(many.status()[n]["drain"] for n in ("s1", "s2")), 20.0, "both drain")
    assert {many.status()[n]["drain"]["left"] for n in ("s1", "s2")} == {1}
    assert waits.is_alive()
    end(client)
    waits.join(30)
    lines = done(found[0])
    assert "s1, s2: 2 open connections left in all" in lines
    assert "s1, s2: no open connection is left to wait for" in lines


def test_a_redirector_that_ends_amid_the_orders(many: Many, sniffer: Sniffer) -> None:
    """What is not ordered any more is said in one line, with how many were done."""
    end(many.daemons["redirector"])
    lines = done(many.ctl("hold", "--all"), 1)
    assert lines[0] == "failoverctl: hold: 0 of 200 done, 200 not:"
    assert len(lines) == 2
    assert "is the daemon running?" in lines[1]


def test_the_doctor_says_each_thing_once(many: Many, sniffer: Sniffer) -> None:
    """One line for each finding, with the names of the services."""
    sniffer.seen["s2"]["standby"] = sniffer.seen["s1"]["standby"] = {**PROBED, "ok": False, "text": "refused"}
    lines = done(many.ctl("doctor"), 2) or many.ctl("doctor").stdout.splitlines()
    assert len(lines) < 40, "\n".join(lines)
    assert "ok       s1, s2 and 198 more: redirect: intended and in the kernel: primary" in lines
    fails = "s1, s2: standby: fails its probe: refused: mend 10.0.0.12:7001, mend 10.0.0.12:7002"
    assert [line for line in lines if line == f"missing  {fails}"]


def test_a_check_asks_for_its_service_only(many: Many, sniffer: Sniffer) -> None:
    """Each minute's checks of 200 services must not fetch 200 statuses each."""
    whole = control.ask(many.socket("redirector"), {"verb": "status"})["services"]
    one = control.ask(many.socket("redirector"), {"verb": "status", "service": "s9"})["services"]
    assert (len(whole), list(one)) == (NUMBER, ["s9"])
    run = 'from check_failover.checks import entry; entry.main("traffic")'
    argv = [sys.executable, "-c", run, "--service", "s4", "--config", str(many.config)]
    many.house.run("controller", *argv, check=False)
    assert sniffer.asked == [{"verb": "status", "service": "s4"}]
