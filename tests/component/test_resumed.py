"""A connection without a conntrack entry whose server speaks next: after a reboot, or from another controller."""

import sys
from collections.abc import Iterator

import pytest

from tests.component.test_redirector import ROOT, SHAPES, Controller
from tests.lab.netns import House, poll

pytestmark = pytest.mark.component
CONNTRACK = "/usr/sbin/conntrack"

# Asks for a late answer, and then for one at once.
CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); s.settimeout(6)
s.sendall(b"later\\n"); print("connected", s.getsockname()[1], flush=True)
try:
    print(s.recv(100).decode().split()[0], flush=True)
    s.sendall(b"who\\n"); print(s.recv(100).decode().split()[0], flush=True)
except OSError as error: print("error", error, flush=True)
"""


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    directory = tmp_path_factory.mktemp("resumed")
    directory.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, House() as house:
        patch.setenv("PYTHONPATH", str(ROOT))
        made = Controller(directory, house, only=("tcp4", "tcp6", "tcp4-port", "same-address"))
        made.start()
        yield made


class Waiting:
    """A client that waits for the late answer."""

    def __init__(self, controller: Controller, service: str) -> None:
        self.controller, self.service = controller, service
        _, address, port, *_ = SHAPES[service]
        self.family = "ipv6" if ":" in address else "ipv4"
        self.log = controller.directory / f"late-{service}.log"
        self.log.unlink(missing_ok=True)
        controller.house.start("client", sys.executable, "-c", CLIENT, address, str(port), log=self.log)
        poll(self.lines, 5.0, "connected", every=0.01)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def conntrack(self, verb: str, side: str) -> str:
        port = self.lines()[0].split()[1]
        argv = (CONNTRACK, verb, "-f", self.family, "-p", "tcp", side, port)
        return self.controller.house.run("controller", *argv, check=verb == "-D")

    def forgotten(self) -> None:
        """As after a reboot; the entry is there until now."""
        self.conntrack("-D", "--orig-port-src")

    def ends(self, *wanted: str) -> None:
        poll(lambda: self.lines()[1:] == list(wanted), 9.0, f"{wanted}, not {self.lines()}")


@pytest.mark.parametrize("service", ["tcp4", "tcp6", "tcp4-port"])
def test_the_answer_arrives(controller: Controller, service: str) -> None:
    """From the service address, and the connection goes on; what the server sends counts as no request."""
    before = controller.nft(f"list counter inet check_failover requests_{service}")
    waiting = Waiting(controller, service)
    asked = controller.nft(f"list counter inet check_failover requests_{service}")
    assert asked != before
    waiting.forgotten()
    waiting.ends("primary", "primary")
    assert waiting.conntrack("-L", "--orig-port-dst"), "the server's segment did not begin the entry"
    assert controller.nft(f"list counter inet check_failover requests_{service}") == asked


def test_only_the_server_that_serves(controller: Controller) -> None:
    """After a fail-over a connection to the other server does not live on there: its client is reset, and so is it."""
    waiting = Waiting(controller, "same-address")
    waiting.forgotten()
    assert controller.flip("same-address")["flipped"]
    waiting.ends("error [Errno 104] Connection reset by peer")
    port = waiting.lines()[0].split()[1]
    poll(lambda: f":{port}" not in controller.house.run("primary", "/usr/bin/ss", "-Htn"), 9.0, "the server knows too")
