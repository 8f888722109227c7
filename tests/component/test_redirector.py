"""failover-redirector on the real kernel: every shape of service, other people's rules, restarts, rights, kills."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover import control, listening, rights
from check_failover.peer import Peer
from tests.lab.echo import Echo
from tests.lab.netns import (
    CLIENT,
    CLIENT6,
    CONTROLLER,
    PRIMARY,
    PRIMARY6,
    SERVICE_ADDRESS,
    SERVICE_ADDRESS6,
    STANDBY,
    STANDBY6,
    House,
    end,
    poll,
    python_argv,
)

pytestmark = pytest.mark.component
ROOT = Path(__file__).resolve().parents[2]
NFT = "/usr/sbin/nft"
FACTS = {"detector": "refused", "probes": 2, "probes_failed": 2, "standby_ok": True}

# name: protocol, service address, port, port of the standby, source NAT, client's address
SHAPES = {
    "tcp4": ("tcp", SERVICE_ADDRESS, 7001, 7001, None, CLIENT),
    "udp4": ("udp", SERVICE_ADDRESS, 7002, 7002, None, CLIENT),
    "tcp6": ("tcp", SERVICE_ADDRESS6, 7003, 7003, None, CLIENT6),
    "udp6": ("udp", SERVICE_ADDRESS6, 7004, 7004, None, CLIENT6),
    "tcp4-port": ("tcp", SERVICE_ADDRESS, 7005, 8005, None, CLIENT),
    "tcp4-snat": ("tcp", SERVICE_ADDRESS, 7006, 7006, CONTROLLER, CONTROLLER),
    "udp6-port": ("udp", SERVICE_ADDRESS6, 7007, 8007, None, CLIENT6),
    "same-address": ("tcp", SERVICE_ADDRESS, 7008, 7008, None, CLIENT),
}


class Controller:
    """The redirector alone, with a service of every shape and echo servers behind it."""

    def __init__(self, directory: Path, house: House, only: Collection[str] = tuple(SHAPES)) -> None:
        self.directory, self.house = directory, house
        self.config, self.socket = directory / "config.toml", directory / "run" / "redirector.sock"
        for name in ("run", "state"):
            (directory / name).mkdir()
        parts = [f'[controller]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\ncore_user = "nobody"\n']
        parts.append('operators = "operator"\n')
        parts.append(f'[monitoring]\ncommand_file = "{directory}/nagios.cmd"\n')
        for name in only:
            protocol, address, port, other, snat, _client = SHAPES[name]
            six = ":" in address
            parts.append(
                f'[[service]]\nname = "{name}"\nhost = "h"\nprotocol = "{protocol}"\naddress = "{address}"\n'
                f'port = {port}\nprimary = "{PRIMARY6 if six else PRIMARY}"\n'
                f'standby = "{f"[{STANDBY6}]" if six else STANDBY}:{other}"\n'
                + (f'source_nat = "{snat}"\n' if snat else "")
                + '[service.check]\ntype = "tcp"\n[service.policy]\nhold_down = 0\n'
            )
            for server, at, where in (("primary", port, (PRIMARY, PRIMARY6)), ("standby", other, (STANDBY, STANDBY6))):
                Echo(house, server, protocol, where[six], at, directory / f"{name}-{server}.log").start()
        self.config.write_text("".join(parts))
        self.process: subprocess.Popen[Any] | None = None

    def start(self, *prefix: str) -> None:
        argv = [*prefix, *python_argv("check_failover.redirector.daemon", "--config", str(self.config))]
        log = self.directory / "redirector.log"
        self.process = self.house.start("controller", *argv, log=log, cwd=ROOT)

        def there() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(log.read_text())
            try:
                return bool(self.status())
            except control.UnreachableError:
                return False

        poll(there, 15.0, "the redirector answers")

    def stop(self) -> None:
        assert self.process is not None
        end(self.process)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def say(self, verb: str, service: str = "tcp4", **more: object) -> dict[str, Any]:
        return control.ask(self.socket, {"verb": verb, "service": service, **more}, timeout=20.0)

    def flip(self, service: str, verb: str = "fail-over") -> dict[str, Any]:
        """By the shortest way: by hand, with facts that are good enough."""
        return self.say(verb, service, facts=FACTS, manual=True, by="test")

    def end_server(self, who: str, port: int) -> None:
        """One echo server fails its probes from now on."""
        for process in self.house._processes:
            if who in process.args and str(port) in process.args:
                process.kill()
                process.wait()

    def status(self) -> dict[str, Any]:
        services: dict[str, Any] = control.ask(self.socket, {"verb": "status"}, timeout=10.0)["services"]
        return services

    def ask(self, service: str, timeout: float = 2.0, source_port: int = 0) -> str:
        protocol, address, port = SHAPES[service][:3]
        argv = python_argv("tests.lab.echo", "ask", protocol, address, str(port), str(timeout), str(source_port))
        return self.house.run("client", *argv, timeout=30).strip()

    def nft(self, text: str) -> str:
        return self.house.run("controller", NFT, *text.split())

    def journal(self) -> list[dict[str, Any]]:
        lines = (self.directory / "state" / "journal.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with tempfile.TemporaryDirectory(prefix="cfo-redirector-") as name, House() as house:
        Path(name).chmod(0o755)
        yield Controller(Path(name), house)


def test_every_shape_fails_over(controller: Controller) -> None:
    """TCP and UDP, IPv4 and IPv6, another port, source NAT, two services on one address: each flips on its own."""
    controller.start()
    for name, shape in SHAPES.items():
        assert controller.ask(name) == f"primary {shape[5]}", name
    for number, (name, shape) in enumerate(SHAPES.items()):
        reply = controller.flip(name)
        assert reply["flipped"], reply
        assert controller.ask(name) == f"standby {shape[5]}", name
        targets = [status["kernel"] for status in controller.status().values()]
        assert targets == ["standby"] * (number + 1) + ["primary"] * (len(SHAPES) - number - 1)


def test_restart_before_the_first_packet(controller: Controller) -> None:
    """After a power cut the first packet that is forwarded goes to the saved target; a restart changes no rule."""
    controller.start()
    controller.flip("tcp4")
    controller.kill()
    controller.nft("flush ruleset")  # as after a reboot
    assert "connect_tcp4" not in controller.nft("list ruleset")
    controller.start()
    assert controller.ask("tcp4").startswith("standby")
    before = controller.nft("-a list table inet check_failover")
    controller.stop()
    assert controller.ask("tcp4").startswith("standby"), "a stopped redirector took the service with it"
    controller.start()
    handles = [line.split("# handle")[1] for line in before.splitlines() if "# handle" in line]
    after = controller.nft("-a list table inet check_failover")
    assert [line.split("# handle")[1] for line in after.splitlines() if "# handle" in line] == handles
    assert len(controller.journal()) == 1


FOREIGN = """
table inet site {
    set allowed { type ipv4_addr; elements = { 192.0.2.7, 192.0.2.8 } }
    chain forward { type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "cl0" accept
    }
    chain pre { type nat hook prerouting priority dstnat; policy accept;
        ip daddr 192.0.2.1 tcp dport 8080 dnat ip to 10.0.0.12:80
    }
    chain post { type nat hook postrouting priority srcnat; policy accept;
        oifname "wan0" masquerade
    }
}
table ip mangle {
    chain x { type filter hook prerouting priority mangle; policy accept;
        meta mark set 0x5
    }
}
"""


def test_other_peoples_rules_are_left_alone(controller: Controller) -> None:
    """A site's own firewall stays as it is, byte for byte, through all that we do; and we work beside it."""
    controller.house.run("controller", NFT, "-f", "-", input=FOREIGN)
    before = [controller.nft(f"list table {name}") for name in ("inet site", "ip mangle")]
    controller.start()
    controller.flip("tcp4")
    controller.flip("udp6")
    assert controller.ask("tcp4") == f"standby {CLIENT}"
    controller.stop()
    assert [controller.nft(f"list table {name}") for name in ("inet site", "ip mangle")] == before


OURS = "inet check_failover"


@pytest.mark.parametrize(
    "hand",
    [
        f"delete table {OURS}",
        f"flush table {OURS}",
        f"flush chain {OURS} forward",
        f"delete element {OURS} on_standby4 {{ tcp . {SERVICE_ADDRESS} . 7001 }}",
        f"flush chain {OURS} connect_tcp4",
    ],
    ids=["table deleted", "table flushed", "chain flushed", "element removed", "service's chain flushed"],
)
def test_another_hand_is_put_right(controller: Controller, hand: str) -> None:
    """Our rules removed or changed by another hand are restored within seconds, and it is written down."""
    controller.start()
    controller.flip("tcp4")
    before = controller.nft("list table inet check_failover")
    controller.nft(hand)
    poll(lambda: controller.journal()[-1]["verb"] == "restore", 10.0, "it is written down")
    assert controller.status()["tcp4"]["kernel"] == "standby"
    assert controller.ask("tcp4").startswith("standby")
    after = controller.nft("list table inet check_failover")
    assert [line for line in rules_of(before) if line not in rules_of(after)] == []


def rules_of(table: str) -> list[str]:
    """Without what is counted, and the old server's element, which only a flip brings."""
    return [line for line in table.splitlines() if "counter" not in line and "elements" not in line]


@pytest.mark.parametrize("hand", ["", "delete table inet check_failover"])
def test_a_waiting_client_is_freed(controller: Controller, hand: str) -> None:
    """A client that waits for an answer that will never come gets a RST at the flip, not after minutes.

    Also where another hand took our rules just before: they are loaded anew, and it is a whole flip all the same.
    """
    controller.start()
    code = (
        "import socket, time\n"
        f"s = socket.create_connection(({SERVICE_ADDRESS!r}, 7001)); s.sendall(b'wait\\n')\n"
        "print('waiting', flush=True)\n"
        "t = time.monotonic()\n"
        "try: print('got', s.recv(10))\n"
        "except ConnectionResetError: print('reset', time.monotonic() - t)\n"
    )
    log = controller.directory / "client.log"
    controller.house.start("client", sys.executable, "-c", code, log=log)
    poll(lambda: "waiting" in log.read_text(), 10.0, "the client waits")
    if hand:
        controller.nft(hand)
    reply = controller.flip("tcp4")
    assert reply["flipped"]
    poll(lambda: "reset" in log.read_text(), 10.0, "the client is told")
    assert controller.journal()[-1]["freed"] == 1


def test_a_port_used_again_is_a_new_connection(controller: Controller) -> None:
    """A client that reconnects from the port it had is served by the standby, not sent after its former connection."""
    controller.start()
    code = (
        "import socket, time\n"
        "def talk(word):\n"
        "    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.settimeout(5)\n"
        f"    s.bind(('', 40123)); s.connect(({SERVICE_ADDRESS!r}, 7001)); s.sendall(word)\n"
        "    print('waiting', flush=True)\n"
        "    return s.recv(100)\n"
        "try: talk(b'wait\\n')\n"
        "except ConnectionResetError: print('reset', flush=True)\n"
        "print(talk(b'hello\\n').decode())\n"
    )
    log = controller.directory / "client.log"
    controller.house.start("client", sys.executable, "-c", code, log=log)
    poll(lambda: "waiting" in log.read_text(), 10.0, "the client waits")
    assert controller.flip("tcp4")["flipped"]
    poll(lambda: "standby" in log.read_text(), 10.0, "the client is served")
    assert log.read_text().split()[:3] == ["waiting", "reset", "waiting"]


def test_forgetting_many_is_forgetting_each(controller: Controller) -> None:
    """A batch of deletes counts those that are gone already, and leaves other services' entries alone."""
    controller.start()
    code = (
        "from check_failover.model import Endpoint\n"
        "from check_failover.redirector.nftables.conntrack import Conntrack\n"
        "kernel = Conntrack()\n"
        "found = kernel.dump(0, 0, 4)\n"
        "port = lambda e: int.from_bytes(e.original[-4:-2])\n"  # of the service
        "ours = [e for e in found if port(e) == 7002]\n"
        "kernel.delete_all([ours[3]]); kernel.delete_all([ours[-1]])\n"
        "left = {port(e) for e in kernel.dump(0, 0, 4)}\n"
        "print(len(ours), kernel.delete_all(ours), kernel.delete_all(ours), kernel.delete_all([]))\n"
        "print(sum(port(e) == 7002 for e in kernel.dump(0, 0, 4)), 7001 in left)\n"
    )
    asking = (
        "import socket\n"
        "at_once = [socket.socket(type=socket.SOCK_DGRAM) for n in range(230)]\n"  # a closed one's port may come again
        f"for s in at_once: s.connect(({SERVICE_ADDRESS!r}, 7002)); s.send(b'x\\n')\n"
        f"socket.create_connection(({SERVICE_ADDRESS!r}, 7001)).sendall(b'x\\n')\n"
    )
    controller.house.run("client", sys.executable, "-c", asking)
    done = controller.house.run("controller", sys.executable, "-c", code)
    assert done.split("\n")[:2] == ["230 228 0 0", "0 True"]


def test_refusals_are_withheld_until_decided(controller: Controller) -> None:
    """While nothing is decided a refused client waits; a refused order tells it the truth again."""
    controller.start()
    controller.end_server("primary", 7001)
    assert controller.ask("tcp4", 0.5) == "timeout"
    controller.say("fail-over", "tcp4", facts={**FACTS, "blind": True})
    assert controller.ask("tcp4", 2.0) == "Connection refused"


def test_who_may_say_what(controller: Controller) -> None:
    """SO_PEERCRED decides: the core's user may order, a stranger may only look, a member of the operators' group may do
    it by hand; bogus messages change nothing."""
    controller.start()
    (controller.directory / "run").chmod(0o755)
    controller.socket.chmod(0o666)

    def say(user: str, message: str, groups: str = "") -> dict[str, Any]:
        code = (
            "import socket, sys\n"
            f"s = socket.socket(socket.AF_UNIX); s.connect({str(controller.socket)!r})\n"
            f"s.sendall({message + chr(10)!r}.encode()); print(s.makefile().readline())"
        )
        have = f"--groups={groups}" if groups else "--clear-groups"
        argv = ["/usr/bin/setpriv", f"--reuid={user}", have, "/usr/bin/python3", "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True, cwd="/")
        reply: dict[str, Any] = json.loads(done.stdout)
        return reply

    order = json.dumps({"verb": "fail-over", "service": "tcp4", "facts": FACTS})
    assert say("daemon", json.dumps({"verb": "status"}))["ok"]
    for verb in ("fail-over", "fail-back", "hold", "release", "facts", "forget", "elsewhere", "recovered", "decided"):
        refused = say("daemon", json.dumps({"verb": verb, "service": "tcp4", "facts": FACTS}))
        assert "not for user daemon; allowed are: " in refused["error"], verb
    assert say("daemon", json.dumps({"verb": "hold", "service": "tcp4"}))["error"].endswith(
        "the group operator and root"
    )
    for verb in ("hold", "release", "facts", "forget"):
        assert "not for user nobody" in say("nobody", json.dumps({"verb": verb, "service": "tcp4"}))["error"]
    assert (
        "only operators" in say("nobody", json.dumps({"verb": "fail-over", "service": "tcp4", "manual": True}))["error"]
    )
    for bogus in ("", "{", "[]", '"x"', '{"verb": 1}', '{"verb": "flush"}', '{"verb": "fail-over"}', "{" * 500):
        assert say("nobody", bogus)["ok"] is False
    assert controller.status()["tcp4"]["target"] == "primary"
    for verb in ("hold", "release"):
        message = json.dumps({"verb": verb, "service": "tcp4", "reason": "new\ndisks"})
        assert "not for user daemon" in say("daemon", message, groups="games,users")["error"]
        assert say("daemon", message, groups="games,operator,users")["ok"]
        many = ",".join(map(str, range(5000, 5300)))  # more than one getsockopt takes: the databases are asked
        assert "not for user daemon" in say("daemon", message, groups=many)["error"]
    (held,) = [entry["line"] for entry in controller.journal() if entry["verb"] == "hold"]
    assert held == "tcp4: hold: new disks"
    made = {"verb": "decided", "service": "tcp4", "run": "take", "source": "primary", "by": "ann"}
    with pytest.raises(control.ControlError, match=r"want run \(take or merge\) and source"):
        controller.say("decided", run="lose", source="primary")
    assert controller.say("decided", run="merge", source="primary", kept="standby: /x\n.sync/kept-1", by="ann")["ok"]
    place = controller.directory / "state" / "sync"
    assert "not for user daemon; allowed are: the owner of " in say("daemon", json.dumps(made))["error"]
    place.mkdir(exist_ok=True)
    shutil.chown(place, "daemon")
    assert say("daemon", json.dumps(made))["ok"]
    told, none = [entry for entry in controller.journal() if entry["verb"] == "decided"]
    text = "failover-sync --merge: the primary's data with the standby's changes replaces the standby's, which is kept"
    assert told["line"] == f"tcp4: decided: {text}: standby: /x .sync/kept-1"
    text = "failover-sync --take primary: the primary's data replaces the standby's, which had none"
    assert none["line"] == f"tcp4: decided: {text}"
    assert (told["by"], told["peer"]["uid"], none["peer"]["uid"]) == ("ann", 0, 1)
    controller.end_server("primary", 7001)
    assert say("nobody", order)["flipped"] is True
    assert controller.journal()[-1]["peer"]["uid"] == 65534


GREEDY = """
import json, os, socket, sys, time
kept = []
for text in ('{"verb": "subscribe"}\\n', '{"verb": "status"'):
    for _ in range(1200):
        sock = socket.socket(socket.AF_UNIX)
        try: sock.connect(sys.argv[1]); sock.sendall(text.encode())
        except OSError: continue
        kept.append(sock)
print("holds on", flush=True)
time.sleep(60)
"""


def test_a_greedy_looker_stops_nobody(controller: Controller) -> None:
    """Who may only look takes all he can get, subscriptions and half lines: others are served, and it flips."""
    controller.start()
    (controller.directory / "run").chmod(0o755)
    controller.socket.chmod(0o666)
    log = controller.directory / "greedy.log"
    limit = ("/usr/bin/prlimit", "--nofile=4096")
    argv = (*limit, "/usr/bin/setpriv", "--reuid=daemon", "--clear-groups", sys.executable, "-c", GREEDY)
    controller.house.start("controller", *argv, str(controller.socket), log=log, cwd=Path("/"))
    poll(lambda: "holds on" in log.read_text(), 30.0, "all places of that user are taken")
    reply = controller.flip("tcp4")
    assert reply["flipped"], reply
    assert controller.ask("tcp4").startswith("standby")


def test_least_privilege(controller: Controller) -> None:
    """As an ordinary user with CAP_NET_ADMIN and CAP_NET_RAW alone it does all of its work."""
    shutil.chown(controller.directory / "run", "daemon")
    shutil.chown(controller.directory / "state", "daemon")
    caps = "+net_admin,+net_raw"
    keep = ["--no-new-privs", f"--inh-caps=-all,{caps}", f"--ambient-caps=-all,{caps}", f"--bounding-set=-all,{caps}"]
    controller.start("/usr/bin/setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", *keep)
    assert controller.process is not None
    status = Path(f"/proc/{controller.process.pid}/status").read_text()
    assert "CapEff:\t0000000000003000" in status  # bits 12 and 13
    assert controller.flip("tcp4")["flipped"]
    assert controller.ask("tcp4").startswith("standby")
    assert controller.flip("udp6")["flipped"]
    assert controller.ask("udp6").startswith("standby")


def test_damaged_state_is_told_and_healed(controller: Controller) -> None:
    """A state file cut short keeps the kernel's rule, is CRITICAL with its reason, and is healed by the next flip."""
    controller.start()
    controller.flip("tcp4")
    controller.stop()
    path = controller.directory / "state" / "target" / "tcp4.json"
    path.write_bytes(path.read_bytes()[:9])
    controller.start()
    status = controller.status()["tcp4"]
    assert (status["target"], status["kernel"], status["state"]) == ("standby", "standby", 2)
    assert "damaged" in status["problem"]


@pytest.mark.parametrize("broken", ["state", "journal", "nft"])
def test_what_cannot_be_written(controller: Controller, broken: str) -> None:
    """No room for the state: no flip, and it is said. No journal: the flip is made all the same, and it is said."""
    controller.start()
    state = controller.directory / "state"
    if broken == "state":
        shutil.rmtree(state / "target")
        reply = controller.flip("tcp4")
        assert not reply["flipped"]
        assert "cannot write" in reply["error"]
        assert controller.status()["tcp4"]["kernel"] == "primary"
        (state / "target").mkdir()
    elif broken == "journal":
        (state / "journal.jsonl").unlink(missing_ok=True)
        (state / "journal.jsonl").mkdir()
        assert controller.flip("tcp4")["flipped"]
        assert "journal" in controller.status()["tcp4"]["problem"]
    else:
        controller.nft("delete table inet check_failover")
        assert controller.flip("tcp4")["flipped"]
    poll(lambda: controller.status()["tcp4"]["kernel"] == controller.status()["tcp4"]["target"], 10.0, "one truth")
    if controller.status()["tcp4"]["target"] == "primary":
        assert controller.flip("tcp4")["flipped"]
    assert controller.ask("tcp4").startswith("standby")


def test_two_redirectors_are_one_too_many(controller: Controller) -> None:
    """A second one is told so and leaves the first alone."""
    controller.start()
    argv = controller.house.argv(
        "controller", *python_argv("check_failover.redirector.daemon", "--config", str(controller.config))
    )
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "another daemon already listens" in done.stderr
    assert controller.status()["tcp4"]["target"] == "primary"


def test_an_order_without_facts_or_with_old_ones_is_looked_into(controller: Controller) -> None:
    """The sniffer's standing verdict counts; facts from before the last flip never move traffic again."""
    known: dict[str, Any] = {"facts": None, "blind": None}
    probed: list[object] = []

    def sniffer(message: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        if message["verb"] == "status":
            return {"services": {"tcp4": {**known, "primary": {"passes": 9, "good_for": 99.0}}}}
        probed.append(message["target"])
        return {"passed": True}

    path = controller.directory / "run" / "sniffer.sock"
    server = listening.Server(path, rights.OF_SNIFFER, sniffer, lambda _verb, _peer: None)
    server.start()
    try:
        controller.start()
        began = int(time.time() * 1000)
        assert controller.say("fail-over")["reason"] == "not-confirmed"
        assert probed == ["primary", "primary", "standby"]
        known["blind"] = "the link is down"
        assert controller.say("fail-over")["reason"] == "blind"
        known.update(blind=None, facts={**FACTS, "requests": 9, "evidence": began})
        assert controller.say("fail-over")["text"] == "no useful reply to 9 of 9 requests"
        known["facts"] = None
        assert controller.say("fail-back", manual=True)["flipped"]
        old = f"detector=0 probes=2 probes_failed=2 asked=9 answered=0 standby_ok=1 evidence={began}"
        assert controller.say("fail-over", perfdata=old)["reason"] == "not-confirmed"
        new = old.replace(str(began), str(int(time.time() * 1000)))
        probed.clear()
        assert controller.say("fail-over", perfdata=new)["reason"] == "not-confirmed", "invented: the sniffer has none"
        assert probed[:2] == ["primary", "primary"]
        known["facts"] = {**FACTS, "requests": 7}
        assert controller.say("fail-over", perfdata=new)["text"] == "no useful reply to 7 of 7 requests"
    finally:
        server.close()


def test_an_order_that_was_long_on_its_way_is_looked_into(controller: Controller) -> None:
    """The redirector, or the core, was stopped meanwhile: what is over by now moves nothing, what still stands does.

    The standby may have failed since, so it is probed anew.
    """
    known: dict[str, Any] = {"facts": None, "blind": None}

    def sniffer(message: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        if message["verb"] == "status":
            return {"services": {"tcp4": known, "udp4": known}}
        probed.append((message["target"], message["quick"]))
        return {"passed": message["target"] in well}

    well, probed = {"primary"}, []
    late = (
        f"detector=0 probes=2 probes_failed=2 asked=9 answered=0 standby_ok=1 evidence={time.time() * 1000 - 5000:.0f}"
    )
    path = controller.directory / "run" / "sniffer.sock"
    server = listening.Server(path, rights.OF_SNIFFER, sniffer, lambda _verb, _peer: None)
    server.start()
    try:
        controller.start()
        assert controller.say("fail-over", perfdata=late)["reason"] == "not-confirmed"
        known["facts"] = {**FACTS, "requests": 7, "evidence": int(time.time() * 1000) - 5000}
        refused = controller.say("fail-over", perfdata=late)  # the primary is well again, the verdict is about to end
        assert (refused["reason"], refused["text"]) == ("not-confirmed", "only 0 of 1 probes of the primary failed")
        probed.clear()
        well.clear()
        assert controller.say("fail-over", perfdata=late)["reason"] == "no-healthy-server"
        assert probed == [("primary", True), ("standby", False)]
        known["primary"] = {"ok": False, "ago": 0.5}
        probed.clear()
        assert controller.say("fail-over", perfdata=late)["reason"] == "no-healthy-server"
        assert probed == [("standby", False)], "orders for many services must not wait for a dead server each"
        known["primary"] = {"ok": False, "ago": 1.5}
        stood, known["facts"] = known["facts"], None
        well |= {"primary", "standby"}  # meanwhile the sniffer's own facts for the pending order waited to be sent
        waited = {**FACTS, "requests": 71, "evidence": int(time.time() * 1000) - 500}
        assert controller.say("facts", facts=waited)["reason"] == "not-confirmed"
        known["facts"] = stood
        well.discard("primary")
        assert controller.say("fail-over", perfdata=late)["text"] == "no useful reply to 7 of 7 requests"
    finally:
        server.close()
