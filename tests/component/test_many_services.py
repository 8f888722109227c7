"""Two hundred services on real nftables: each flip, and each change of the config, touches one service only."""

import dataclasses
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover.config import Config, load
from check_failover.model import Target
from check_failover.redirector import Change, Wiring
from check_failover.redirector.nftables.redirect import Nftables, ct_marks
from tests.lab import kernel
from tests.lab.netns import House, inside

pytestmark = pytest.mark.component
NUMBER = 200
SERVICE = """
[[service]]
name = "s{n}"
host = "h"
protocol = "{protocol}"
address = "{address}"
port = {port}
primary = "{primary}"
standby = "{standby}"
[service.check]
type = "tcp"
"""
V4, V6 = ("192.0.2.10", "10.0.0.11", "10.0.0.12"), ("2001:db8::10", "2001:db8:1::11", "2001:db8:1::12")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    blocks = []
    for n in range(NUMBER):
        address, primary, standby = V6 if n % 5 == 0 else V4
        protocol = "udp" if n % 7 == 0 else "tcp"
        blocks.append(
            SERVICE.format(n=n, protocol=protocol, address=address, port=1000 + n, primary=primary, standby=standby)
        )
    path = tmp_path / "config.toml"
    path.write_text(f'[monitoring]\ncommand_file = "{tmp_path}/nagios.cmd"\n' + "".join(blocks))
    return load(path)


@pytest.fixture
def namespace() -> Iterator[str]:
    with House() as house:
        yield house.name("controller")


def listed(*options: str) -> str:
    return subprocess.run([kernel.NFT, *options, *kernel.TABLE], capture_output=True, text=True, check=True).stdout


def handles(said: str, name: str) -> list[str]:
    """The rules of one service's chains with their handles, which change when a rule is loaded anew."""
    chains = said.split("\tchain ")
    return [chain for chain in chains if chain.split(" ")[0].endswith(f"_{name}")]


def test_flips_and_changes(config: Config, namespace: str) -> None:
    """Over and back with one element; a service that is added, changed or removed leaves the others' rules alone."""
    everywhere = {service.name: Target.PRIMARY for service in config.services}

    def act() -> dict[str, Any]:
        redirect, found = Nftables(config), {}
        redirect.install(everywhere)
        before = listed("-a")
        found["whole"] = redirect.whole()
        for service in config.services[:7]:
            redirect.wire(service, Wiring(Target.STANDBY, Target.PRIMARY, withheld=False))
        found["over"] = redirect.wired(config.services[:8])
        found["nft"] = kernel.targets(listed())
        found["dead"], found["refusing"] = kernel.marked(listed(), "dead"), kernel.marked(listed(), "refusing")
        redirect.wire(config.services[0], Wiring(Target.PRIMARY))
        found["back"] = redirect.wired(config.services[:1])
        now = everywhere | {one.name: Target.STANDBY for one in config.services[1:7]}
        changed = dataclasses.replace(config.services[7], primary=config.services[7].standby)
        less = dataclasses.replace(config, services=(*config.services[:7], changed, *config.services[8:-1]))
        other = Nftables(less)
        other.install({name: target for name, target in now.items() if name != f"s{NUMBER - 1}"})
        after = listed("-a")
        found["kept"] = [n for n in range(NUMBER) if handles(before, f"s{n}") == handles(after, f"s{n}")]
        found["gone"] = handles(after, f"s{NUMBER - 1}")
        found["still"] = kernel.targets(listed())
        return found

    found = inside(namespace, act)
    assert found["whole"]
    over = [one.name for one in config.services[:7]]
    assert found["over"] == {name: Wiring(Target.STANDBY, Target.PRIMARY, withheld=False) for name in over} | {
        "s7": Wiring(Target.PRIMARY)
    }
    assert {name for name, target in found["nft"].items() if target == "standby"} == set(over)
    assert len(found["nft"]) == NUMBER
    assert {name for name, servers in found["dead"].items() if servers == {"primary"}} == set(over)
    assert {name for name, servers in found["refusing"].items() if len(servers) == 2} == set(over)
    assert found["back"] == {"s0": Wiring(Target.PRIMARY)}
    assert found["kept"] == [n for n in range(NUMBER - 1) if n != 7]
    assert found["gone"] == []
    assert {name for name, target in found["still"].items() if target == "standby"} == set(over[1:])


def test_the_kernel_tells_of_another_hand(config: Config, namespace: str) -> None:
    """An element changed is one kind of change, a rule another; another table's changes are not told."""

    def act() -> list[Change]:
        redirect = Nftables(config)
        redirect.install({service.name: Target.PRIMARY for service in config.services})
        told: list[Change] = []
        assert redirect.watch(told.append)

        def wait(change: Change, *argv: str) -> None:
            told.clear()
            subprocess.run([kernel.NFT, *argv], check=True)
            deadline = time.monotonic() + 5
            while change not in told and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(max(told, default=Change.NONE))

        seen: list[Change] = []
        wait(Change.WIRING, "add", "element", "inet", "check_failover", "on_standby4", "{ tcp . 192.0.2.10 . 1001 }")
        wait(Change.RULES, "flush", "chain", "inet", "check_failover", "forward")
        wait(Change.NONE, "add", "table", "inet", "other")
        wait(Change.RULES, "delete", "table", "inet", "check_failover")
        return seen

    assert inside(namespace, act) == [Change.WIRING, Change.RULES, Change.NONE, Change.RULES]


def test_marks_name_the_service(config: Config) -> None:
    """Each service has a mark of its own above the 20 bits of the site and two of ours; the order does not matter."""
    marks = ct_marks(config.services)
    assert len(set(marks.values())) == NUMBER
    assert all(mark & 0x003FFFFF == 0 and 0 < mark < 1 << 32 for mark in marks.values())
