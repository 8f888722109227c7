"""Two hundred services and one sniffer, on real nftables; and a service of which few connections are watched."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.bench.bench_sniffer import service_block
from tests.lab.demo import from_log
from tests.lab.load import Load
from tests.lab.netns import SERVICE_ADDRESS, freeze, poll, python_argv
from tests.lab.others import Clients, config, start
from tests.lab.site import ROOT, Site

pytestmark = pytest.mark.system

MakeSite = Callable[..., Site]
MakeLoad = Callable[..., Load]
NUMBER, FAULTY = 200, 137


def test_one_of_two_hundred_services_hangs(make_site: MakeSite, make_load: MakeLoad) -> None:
    """It is noticed and flipped; the others stay, none is blind, and clients of another service lose nothing, also
    while the config changes. One socket watches the clients, one the servers' refusals."""
    blocks = [service_block(number) for number in range(1, NUMBER - 1)]
    blocks.insert(FAULTY - 1, config("dns"))
    site = make_site(nagios=False, kannel=False, extra="".join(blocks))
    with contextlib.ExitStack() as stack:
        named = start(site, stack, "dns")["dns"]
        load, clients = make_load(site), Clients(site, "dns", many=10)
        site.wait_healthy("standby", name="dns")
        clients.served(150)
        sockets = site.house.run("controller", "cat", "/proc/net/packet").splitlines()
        assert len(sockets) == 1 + 2, sockets
        site.config.write_text(site.config.read_text() + service_block(NUMBER))
        os.kill(site.pid("sniffer"), signal.SIGHUP)
        site.poll(lambda: f"config read again: {NUMBER + 1} services" in site.log("sniffer"), 10.0, "the new config")
        freeze(named.pid)
        site.wait_target("standby", 20.0, name="dns")
        clients.served()
        poll(lambda: site.log("sniffer").count("dns: verdict") > 0, 5.0, "by the sniffer's verdict")
        seen = site.sniffers()
        assert len(seen) == NUMBER + 1
        assert {name for name, one in seen.items() if one["target"] != "primary"} == {"dns"}
        assert {one["blind"] for one in seen.values()} == {None}
        assert {one["stats"]["drops"] for one in seen.values()} == {0}
        assert [request for request in load.requests() if request.server != "primary"] == []


def test_a_hang_beside_a_flood_of_answered_connections(make_site: MakeSite, make_load: MakeLoad) -> None:
    """The capture sees a thousand answered connections a second that no server has, and samples. Fifty real requests a
    second get no answer: the NAT's counters tell, as fast as without sampling and a fraction of a second."""
    site = make_site(nagios=False, kannel=False)
    load = make_load(site)
    log = site.directory / "mirror.log"
    argv = python_argv("tests.bench.mirror", "cl0", SERVICE_ADDRESS, "1000", "60")
    site.house.start("controller", *argv, log=log, cwd=ROOT)
    poll(lambda: site.sniffer()["stats"]["share"] >= 8, 20.0, "the flood is sampled")
    time.sleep(2.0)  # the thresholds know what is usual
    assert load.requests()[-1].server == "primary"
    at = time.monotonic()
    site.fault("hang")
    found = poll(lambda: [r for r in from_log(site) if r[0] >= at and r[1] == "sniffer: suspicion"], 10.0, "suspicion")
    assert found[0][0] - at < 1.5
    poll(lambda: [r for r in from_log(site) if r[0] >= at and r[1] == "sniffer: verdict"], 10.0, "a verdict")
    assert site.sniffer()["stats"]["share"] >= 8
