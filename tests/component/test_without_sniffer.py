"""Orders while the sniffer is away, perhaps by the same fault: the redirector has the servers probed itself."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.component.test_redirector import FACTS, Controller, controller
from tests.lab.netns import poll

__all__ = ["controller"]
pytestmark = pytest.mark.component
INVENTED = "detector=0 probes=2 probes_failed=2 asked=9 answered=0 standby_ok=1"
CAPABILITIES = "+net_admin,+net_raw"
WITHOUT = ("CapPrm", "CapEff", "CapAmb")
LOOKS = """#!/bin/sh
cat /proc/self/status > {seen}
exit {code}
"""


def test_a_primary_that_passes_stays(controller: Controller) -> None:
    """Whatever an order's perfdata says, early or late."""
    controller.start()
    for perfdata in (INVENTED, f"{INVENTED} evidence={time.time() * 1000:.0f}", ""):
        answer = controller.say("fail-over", perfdata=perfdata)
        assert (answer["reason"], answer["text"]) == ("not-confirmed", "only 0 of 2 probes of the primary failed")
    assert controller.say("fail-over", facts={**FACTS, "server": "standby"})["flipped"] is False
    assert controller.status()["tcp4"]["kernel"] == "primary"


def test_a_real_fault_gets_through(controller: Controller) -> None:
    """With the sniffer's last facts, and without any: the primary's process is gone. Never to a dead standby."""
    controller.start()
    for port in (7001, 7003, 7008):
        controller.end_server("primary", port)
    controller.end_server("standby", 7008)
    assert controller.say("fail-over", "tcp4", perfdata=INVENTED)["text"] == "no useful reply to 9 of 9 requests"
    assert controller.say("fail-over", "tcp6")["flipped"]
    assert controller.say("fail-over", "same-address", perfdata=INVENTED)["reason"] == "no-healthy-server"
    assert [name for name, status in controller.status().items() if status["kernel"] == "standby"] == ["tcp4", "tcp6"]


def test_the_probes_have_no_capability_and_come_together(controller: Controller) -> None:
    """A plugin of the site sees none of the redirector's; the redirector keeps its own. Fifty orders share probes."""
    seen, plugin = controller.directory / "seen", controller.directory / "plugin"
    plugin.write_text(LOOKS.format(seen=seen, code=2))
    plugin.chmod(0o755)
    text = controller.config.read_text()
    text = text.replace('type = "tcp"', f'type = "plugin"\ncommand = ["{plugin}"]', 1)
    controller.config.write_text(text)
    for name in (".", "run", "state"):
        shutil.chown(controller.directory / name, "daemon")
    keep = [f"--{kind}=-all,{CAPABILITIES}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    controller.start("/usr/bin/setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", *keep)
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: controller.say("fail-over", perfdata=INVENTED), range(50)))
    assert {answer["reason"] for answer in answers} == {"no-healthy-server"}
    status = dict(line.split(":\t", 1) for line in seen.read_text().splitlines() if ":\t" in line)
    assert [int(status[name], 16) for name in WITHOUT] == [0, 0, 0]
    assert controller.say("fail-over", manual=True, facts=FACTS)["flipped"]


def test_a_probe_that_does_not_end_holds_no_order(controller: Controller) -> None:
    """A plugin that hangs is a failure within its time, and is gone then."""
    pid, plugin = controller.directory / "pid", controller.directory / "plugin"
    plugin.write_text(f"#!/bin/sh\necho $$ >> {pid}\nexec sleep 60\n")
    plugin.chmod(0o755)
    text = controller.config.read_text().replace('type = "tcp"', f'type = "plugin"\ncommand = ["{plugin}"]', 1)
    controller.config.write_text(text.replace("[service.policy]", "timeout = 0.5\n[service.policy]", 1))
    controller.start()
    began = time.monotonic()
    assert controller.say("fail-over", perfdata=INVENTED)["reason"] == "no-healthy-server"
    assert time.monotonic() - began < 8.0
    pids = pid.read_text().split()
    assert len(pids) == 3
    poll(lambda: not any(Path(f"/proc/{one}").exists() for one in pids), 5.0, "they are gone")


def test_what_cannot_be_probed_here_is_believed(controller: Controller) -> None:
    """The redirector must not read the servers' passwords: then a fresh order's facts decide, no others."""
    text = controller.config.read_text()
    options = 'type = "ldap"\nbase = "dc=x"\nbind_dn = "cn=x"\nbind_password_file = "/nonexistent"'
    controller.config.write_text(text.replace('type = "tcp"', options, 1))
    controller.start()
    assert controller.say("fail-over")["reason"] == "not-confirmed"
    assert controller.say("fail-over", perfdata=INVENTED)["flipped"]
    assert "/nonexistent: cannot read the bind password" in (controller.directory / "redirector.log").read_text()
