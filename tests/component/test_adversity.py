"""Disk, kernel and clock at their worst: kernel, state file and status agree, or it is told; a retry heals."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.component.test_redirector import NFT, ROOT, Controller
from tests.lab.netns import STANDBY, poll
from tests.lab.small_disk import SmallDisk

pytestmark = pytest.mark.component


@pytest.fixture
def disk(controller: Controller) -> Iterator[SmallDisk]:
    made = SmallDisk(controller.directory / "state")
    yield made
    made.close()


def check(controller: Controller) -> str:
    """What the core is told: exit code and first line of check_failover_redirect."""
    argv = [sys.executable, "-m", "check_failover.checks.entry", "redirect", "--service", "tcp4"]
    done = subprocess.run(
        [*argv, "--socket", str(controller.socket)], capture_output=True, text=True, cwd=ROOT, check=False, timeout=30
    )
    return f"{done.returncode}: {done.stdout.splitlines()[0]}"


def saved(controller: Controller) -> str:
    path = controller.directory / "state" / "target" / "tcp4.json"
    return str(json.loads(path.read_text())["target"]) if path.exists() else "primary"


def one_truth(controller: Controller) -> str:
    """The target that kernel, state file and status agree on, told without a problem."""

    def agreed() -> str | None:
        status = controller.status()["tcp4"]
        same = status["target"] == status["kernel"] == saved(controller)
        return str(status["target"]) if same and status["problem"] is None else None

    return poll(agreed, 10.0, "kernel, state and status agree")


def served_by_the_standby(controller: Controller) -> None:
    """A retry heals, also over a restart."""
    assert controller.flip("tcp4")["flipped"]
    assert one_truth(controller) == "standby"
    controller.kill()
    controller.start()
    assert one_truth(controller) == "standby"
    assert controller.ask("tcp4").startswith("standby")


@pytest.mark.parametrize(("how", "reason"), [("fill", "No space left"), ("read_only", "Read-only file system")])
def test_the_disk(controller: Controller, disk: SmallDisk, how: str, reason: str) -> None:
    """Full or read-only: no flip, because a restart would undo it; CRITICAL says why; with room again it goes away."""
    controller.start()
    getattr(disk, how)()
    reply = controller.flip("tcp4")
    assert not reply["flipped"]
    assert reason in reply["error"]
    status = controller.status()["tcp4"]
    assert status["target"] == status["kernel"] == saved(controller) == "primary"
    assert check(controller).startswith("2: ")
    assert reason in check(controller)
    disk.well()
    assert one_truth(controller) == "primary"
    assert controller.journal()[0]["reason"] == "error", "the line was kept until there was room"
    getattr(disk, how)()
    controller.kill()
    controller.start()  # it serves all the same
    assert controller.ask("tcp4").startswith("primary")
    disk.well()
    controller.kill()
    controller.start()
    served_by_the_standby(controller)


def test_a_disk_that_fails_after_the_flip(controller: Controller, disk: SmallDisk) -> None:
    """The rule has moved, the clients are served, and the state cannot be settled: told, followed by a restart."""
    controller.start()
    path = controller.directory / "state" / "target" / "tcp4.json"
    path.mkdir()
    assert controller.flip("tcp4")["flipped"]
    assert "cannot write the state (Is a directory)" in check(controller)
    assert controller.status()["tcp4"]["kernel"] == "standby"
    path.rmdir()
    assert one_truth(controller) == "standby"
    assert disk.path == path.parent.parent


def owner(controller: Controller) -> subprocess.Popen[str]:
    """Another program takes our table's name for its own: the kernel refuses everybody else then."""
    argv = controller.house.argv("controller", NFT, "-i")
    made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert made.stdin is not None
    # One transaction: a table that is missing is restored at once.
    made.stdin.write("delete table inet check_failover; add table inet check_failover { flags owner; }\n")
    made.stdin.flush()
    poll(lambda: "owner" in controller.nft("list ruleset"), 10.0, "the table is taken")
    return made


def test_nft_refuses(controller: Controller) -> None:
    """Kernel and status differ, and CRITICAL says so; what refused goes away: healed without a word from anybody."""
    controller.start()
    other = owner(controller)
    try:
        reply = controller.flip("tcp4")
        assert not reply["flipped"]
        assert "Operation not permitted" in reply["error"]
        status = controller.status()["tcp4"]
        assert (status["target"], status["kernel"], saved(controller)) == ("primary", None, "primary")
        assert check(controller).startswith("2: ")
        assert "not permitted" in check(controller)
    finally:
        assert other.stdin is not None
        other.stdin.close()
        other.wait(10)
    assert one_truth(controller) == "primary"
    served_by_the_standby(controller)


def masked(*paths: str) -> list[str]:
    """A command's beginning under which these files are not what they were."""
    binds = " && ".join(f"/usr/bin/mount --bind /dev/null {path}" for path in paths)
    return ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", f'{binds} && exec "$@"', "sh"]


def test_without_nft_it_says_so(controller: Controller) -> None:
    """No start, and one line that says what to do."""
    with pytest.raises(AssertionError, match=r"failover-redirector: .*nft.*"):
        controller.start(*masked(NFT))
    assert "Traceback" not in (controller.directory / "redirector.log").read_text()


FLOOD = """
import socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
udp = bytearray(struct.pack("!BBHHHBBH4s4sHHHH", 0x45, 0, 28, 0, 0, 9, 17, 0,
                            socket.inet_aton("192.0.2.7"), socket.inet_aton("10.0.0.99"), 0, 9, 8, 0))
for number in range(int(sys.argv[1])):
    struct.pack_into("!HH", udp, 20, number & 0xFFFF, 1000 + (number >> 16))
    try: sock.sendto(udp, ("10.0.0.99", 0))
    except OSError: pass
"""


def test_the_conntrack_table_is_full(controller: Controller) -> None:
    """No room for one more connection in the kernel's table: the flip is made, and clients are served."""
    controller.start()
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())  # of all namespaces, so it stays
    fixed = ("neigh", "add", "10.0.0.99", "lladdr", "02:00:00:00:00:99", "dev", "sv0", "nud", "permanent")
    controller.house.run("controller", "/usr/sbin/ip", *fixed)
    controller.house.run("client", sys.executable, "-c", FLOOD, str(limit), timeout=120)
    count = controller.house.run("controller", "/usr/bin/cat", "/proc/sys/net/netfilter/nf_conntrack_count")
    assert int(count) > 0.95 * limit
    assert controller.flip("tcp4")["flipped"]
    status = controller.status()["tcp4"]
    assert (status["target"], status["kernel"], saved(controller)) == ("standby", "standby", "standby")
    poll(lambda: controller.ask("tcp4").startswith("standby"), 10.0, "clients are served")
    assert STANDBY not in FLOOD


CLOCK = """
import sys, time
from pathlib import Path
real, jump = time.time, Path(sys.argv.pop(1))
time.time = lambda: real() + float(jump.read_text())
from check_failover.redirector import daemon
daemon.main()
"""


def jumping(controller: Controller, jump: Path) -> None:
    """Start a redirector whose wall clock follows a file."""
    started(controller, CLOCK, str(jump))


def started(controller: Controller, code: str, *argv: str) -> None:
    """Start a redirector by ``code``, as its program does otherwise."""
    command = [sys.executable, "-c", code, *argv, "--config", str(controller.config)]
    log = controller.directory / "redirector.log"
    controller.process = controller.house.start("controller", *command, log=log, cwd=ROOT)

    def there() -> bool:
        with contextlib.suppress(Exception):
            return bool(controller.status())
        return False

    poll(there, 15.0, "the redirector answers")


@pytest.mark.parametrize("by", [86400.0, -86400.0])
def test_the_clock_jumps(controller: Controller, by: float) -> None:
    """A day on or back while it runs: the hold-down ends when it should, a drain's deadline too, nothing flips."""
    text = controller.config.read_text()
    controller.config.write_text(text.replace("hold_down = 0", "hold_down = 300"))
    jump = controller.directory / "jump"
    jump.write_text("0")
    jumping(controller, jump)
    code = (
        "import socket; s = socket.create_connection(('192.0.2.10', 7001)); s.sendall(b'wait\\n'); "
        "print('open', flush=True); s.recv(9)"
    )
    log = controller.directory / "client.log"
    controller.house.start("client", sys.executable, "-c", code, log=log)
    poll(lambda: "open" in log.read_text(), 10.0, "a client stays")
    facts = {"standby_ok": True}
    assert controller.say("drain", "tcp4", facts=facts, manual=True, deadline=3600)["flipped"]
    jump.write_text(str(by))
    time.sleep(2.2)  # one look of its own, every two seconds
    left: Any = controller.status()["tcp4"]
    assert 240 < left["hold_down_left"] <= 300
    assert left["drain"]["left"] == 1
    assert (left["target"], left["kernel"]) == ("standby", "standby")
    controller.kill()
    jumping(controller, jump)
    after: Any = controller.status()["tcp4"]
    assert (after["target"], after["kernel"]) == ("standby", "standby")
    assert after["hold_down_left"] == (0 if by > 0 else pytest.approx(300, abs=60))
