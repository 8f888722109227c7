"""First packets that are under way when the redirect moves: sent on to the standby, so that nobody waits to try again.

The client may not try again here: what is served was sent on by failover-sniffer when it heard of the flip.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from check_failover import control
from tests.component.test_redirector import FACTS, NFT, ROOT, SHAPES, Controller
from tests.lab.netns import House, poll, python_argv

pytestmark = pytest.mark.component
SERVICES = ("tcp4", "tcp6", "udp4", "udp6")
# A SYN whose port has sent one is a second try; retransmissions keep the port.
ONE_TRY = """
table inet once {
    set tried { type inet_service; }
    chain out { type filter hook output priority 0;
        tcp flags & (syn | ack) == syn tcp sport @tried counter drop
        tcp flags & (syn | ack) == syn add @tried { tcp sport }
    }
}
"""
DARK = "table inet dark { chain in { type filter hook input priority -300; th dport 7001-7004 drop; }; }"


def test_what_is_under_way_is_sent_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One SYN and one datagram, over IPv4 and IPv6, into a dark host: served by the standby at the flip."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.chmod(0o755)
    with House() as house:
        controller = Controller(tmp_path, house, only=SERVICES)
        text = controller.config.read_text().replace("[controller]\n", '[controller]\nclient_interface = "cl0"\n')
        text = text.replace("hold_down = 0\n", "hold_down = 0\nrescue = false\n")
        udp = re.compile(r'(protocol = "udp".*?)type = "tcp"', re.DOTALL)
        controller.config.write_text(udp.sub(r'\1type = "udp"\nsend = "who\\n"', text))
        controller.start()
        log = tmp_path / "sniffer.log"
        argv = python_argv("check_failover.sniffer.daemon", "--config", str(controller.config))
        house.start("controller", *argv, cwd=ROOT, log=log)
        sniffer = controller.socket.with_name("sniffer.sock")
        poll(sniffer.exists, 20.0, "the sniffer is there")
        for service in SERVICES:
            assert controller.ask(service).startswith("primary")
            controller.say("hold", service, reason="the test decides when")
        house.run("client", NFT, "-f", "-", input=ONE_TRY)
        house.run("primary", NFT, "-f", "-", input=DARK)
        for service in SERVICES:
            protocol, address, port = SHAPES[service][:3]
            ask = python_argv("tests.lab.echo", "ask", protocol, address, str(port), "30")
            house.start("client", *ask, cwd=ROOT, log=tmp_path / f"{service}.log")

        def under_way() -> bool:
            listed = "".join(
                house.run("controller", "/usr/sbin/conntrack", "-L", "-f", family) for family in ("ipv4", "ipv6")
            )
            return all(
                re.search(rf"(SYN_SENT|udp ).*dport={SHAPES[service][2]} .*UNREPLIED", listed) for service in SERVICES
            )

        poll(under_way, 10.0, "all four are under way", every=0.01)
        for service in SERVICES:
            controller.say("release", service)
            assert controller.say("fail-over", service, facts=FACTS, manual=True, by="test")["flipped"]
        for service in SERVICES:
            answer = tmp_path / f"{service}.log"
            poll(lambda answer=answer: "standby" in answer.read_text(), 10.0, f"{service} is served")  # type: ignore[misc]
        assert control.ask(sniffer, {"verb": "status"})["services"]["tcp4"]["stats"]["rescued"] == 0
