"""A pair of controllers: the active one dies in a fail-over; who comes back learns the target before it serves."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import SERVICE_ADDRESS, poll
from tests.lab.pair import PORT, ROOT, Half, Pair

pytestmark = pytest.mark.system

# New connections, ten a second, and who answered each.
ASKING = """
import socket, sys, time
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5) as s:
            s.settimeout(0.5); s.sendall(b"who\\n"); print(s.recv(100).decode().split()[0], flush=True)
    except (OSError, IndexError) as error: print("none", flush=True)
    time.sleep(0.1)
"""


class Client:
    def __init__(self, pair: Pair) -> None:
        self.log = pair.place / "client.log"
        pair.house.start("client", sys.executable, "-c", ASKING, SERVICE_ADDRESS, str(PORT), log=self.log)

    def answers(self, since: int = 0) -> list[str]:
        return self.log.read_text().splitlines()[since:] if self.log.exists() else []

    def served_by(self, who: str, half: Half) -> int:
        """Five times in a row, the newest ones; how many answers there were so far."""
        try:
            poll(lambda: self.answers()[-5:] == [who] * 5, 40.0, f"the client is served by the {who}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.answers()[-9:]}\n{half.log()}") from None
        return len(self.answers())


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Pair(tmp_path) as made:
        poll(lambda: made.left.active() and not made.right.active(), 40.0, "left is active")
        yield made


def agreed(pair: Pair, target: str) -> None:
    """Kernel and intent of both."""

    def same() -> bool:
        found = [pair.left.status(), pair.right.status()]
        return all(status["target"] == status["kernel"] == target and not status["problem"] for status in found)

    poll(same, 30.0, f"both controllers are on the {target}")


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
def test_the_active_one_dies_in_a_fail_over(pair: Pair, heard: bool) -> None:
    """Whether or not the other heard of the flip, clients come to the standby, and both agree once both are back.

    While one is dead a person fails back on the other. Who was dead is the preferred one, and its disk says "standby":
    it learns better before it takes the address, so that no client goes to the standby again.
    """
    client = Client(pair)
    client.served_by("primary", pair.left)
    agreed(pair, "primary")
    follower = pair.right.processes["pair"]
    if not heard:
        follower.send_signal(signal.SIGSTOP)
    pair.servers["primary"].kill()
    poll(lambda: pair.left.status()["target"] == "standby", 20.0, "the fail-over", every=0.005)
    pair.left.power_off()
    follower.send_signal(signal.SIGCONT)
    client.served_by("standby", pair.right)
    assert pair.right.active()
    poll(lambda: pair.right.status()["target"] == "standby", 10.0, "right has moved: until then it rescues the clients")

    pair.serve("primary")
    poll(lambda: pair.right.say("fail-back")["flipped"], 30.0, "a person fails back", every=0.5)
    since = client.served_by("primary", pair.right)
    pair.left.boot()
    poll(lambda: pair.left.active() and not pair.right.active(), 40.0, "left is active again")
    client.served_by("primary", pair.left)
    assert "standby" not in client.answers(since)
    assert "not found, ignoring" not in pair.left.log("keepalived"), "it did not wait for pair.ready"
    agreed(pair, "primary")
    poll(lambda: pair.left.journal()[-1]["verb"] == "follow", 10.0, "left wrote it down")


def test_what_a_person_orders_holds_for_both(pair: Pair) -> None:
    """A drain and a hold on the controller that is not active move the active one and hold it; a restart keeps them."""
    client = Client(pair)
    client.served_by("primary", pair.left)
    assert pair.right.say("drain")["flipped"]
    client.served_by("standby", pair.left)
    pair.right.say("hold", reason="work")
    poll(lambda: (pair.left.status()["hold"] or {}).get("reason") == "work", 20.0, "left is held")
    pair.right.power_off()
    poll(lambda: "no word from the other controller" in pair.left.status()["text"], 40.0, "left misses the other")
    pair.right.boot()
    agreed(pair, "standby")
    assert pair.right.status()["hold"]["reason"] == "work"
    assert [entry["verb"] for entry in pair.left.journal() if entry["flipped"]] == ["follow"]
    poll(lambda: "no word" not in pair.left.status()["text"], 20.0, "left hears it again")
