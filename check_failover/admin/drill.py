"""failoverctl drill: test the whole chain, from a test client to the SMS gateway, without touching any other client.

The real NAT sends one test client's address to the standby. The sniffer submits a CRITICAL for "NAME drill", a separate
service in the core, whose event handler and notification command are the same programs as in a fault. They report to
the redirector, which changes no target. Each step is printed with its time.

This program makes the test client (``testclient``) or waits for a real client's requests (``--wait``). If the redirect
cannot redirect one client (ipfilter), the output shows the steps "redirect" and "client" as left out.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from check_failover import control
from check_failover.admin import FailedError
from check_failover.admin.testclient import LINK, client_at
from check_failover.checks import ProbeError, probe_function
from check_failover.config import Config
from check_failover.control import ControlError
from check_failover.model import Service, Target
from check_failover.records import DrillStatus, RecordError, ServiceStatus, service_statuses
from check_failover.rights import user_name
from check_failover.sms import GatewayError
from check_failover.sms.flush import sender

PATIENCE = 15.0  # seconds for each of the core's actions
POLL = 0.05  # seconds between two questions
# part -> the setting that the core needs
SETTINGS = {"handler": "is enable_event_handlers 1", "notification": "is enable_notifications 1"}


@dataclass(slots=True)
class DrillRun:
    """One drill of one service; ``run`` returns the name of the step that failed, or None. Times in seconds."""

    config: Config
    service: Service
    by: str
    client: str | None  # its address; None: no client is redirected
    wait: float | None  # for a real client to ask; None: the test client is made here
    limit: float  # the kernel forgets the client after this time
    sms: Sequence[str]
    _id: str = ""
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> str | None:
        if self.wait is None and self.client and os.geteuid() != 0:
            raise ControlError("drill: making the test client needs root; or use --wait 60 and a real client")
        steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("standby", self._standby),
            ("redirect", self._redirect),
            ("client", self._served),
            ("result", self._result),
            ("handler", lambda: self._ran("handler", "failover_event")),
            ("notification", lambda: self._ran("notification", "failover_sms")),
            *([("sms", self._sms)] if self.sms else []),
            ("untouched", self._untouched),
        )
        failed: str | None = "standby"
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            for failed, act in steps:
                self._say(failed, act())
            failed = None
        except (FailedError, RecordError, ControlError, ProbeError, GatewayError) as error:
            self._say(str(failed), f"FAILED: {error}")
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._end(failed)
        return failed

    def _say(self, step: str, text: str) -> None:
        print(f"  {time.monotonic() - self._began:7.3f} s  {step:<12}  {text}", flush=True)

    # ------------------------------------------------------------ steps: return a text or raise FailedError

    def _standby(self) -> str:
        reply = self._sniffer({"verb": "probe", "target": str(Target.STANDBY)})
        if not reply.get("passed"):
            raise FailedError(f"the standby fails its probe: {reply.get('text')}")
        return f"{self.service.standby} passes its probe: {reply.get('text')}"

    def _redirect(self) -> str:
        reply = self._ask("drill", client=self.client, seconds=self.limit, by=self.by)
        self._id, self.client = str(reply["id"]), reply["client"]
        if self.client is None:
            return "left out: this redirect cannot send one client elsewhere"
        if self.wait is None and reply["in_use"]:
            raise FailedError(f"{self.client} is a client's that was just served; name an address that nobody uses")
        return f"only {self.client} goes to the standby {self.service.standby}, for {self.limit:.0f} s at most"

    def _served(self) -> str:
        if self.client is None:
            return "left out, with the redirect"
        if self.wait is not None:
            print(f"  waiting {self.wait:.0f} s: ask {self.service.address} from {self.client} now", flush=True)
            self._until(lambda drill: drill.served, self.wait, f"no request of {self.client} served")
            return f"{self.client} was served by the standby"
        check, address = self.service.check, self.service.address
        ask = probe_function(check)
        with client_at(self.client, address) as as_client:
            probe = as_client(lambda: ask(address, check.options, check.timeout))
        if not probe.passed:
            raise FailedError(
                f"no good answer at {self.client}: {probe.text}: forwarding, the standby's way back to it, "
                f"a firewall that does not know {LINK}? see failoverctl doctor"
            )
        self._until(lambda drill: drill.served, 2.0, "answered, but not by the standby")
        return f"{self.client} was served by the standby: {probe.text}"

    def _result(self) -> str:
        reply = self._sniffer({"verb": "drill", "id": self._id, "step": "begin"})
        if not reply.get("taken"):
            raise FailedError("the core does not take results: is it running? they are kept, and sent when it is back")
        return f'the core took CRITICAL for "{self.service.name} drill"'

    def _ran(self, part: str, program: str) -> str:
        what = f"the core did not run {program} ({SETTINGS[part]}, may core_user execute it? see the core's log)"
        heard = self._until(lambda drill: part in drill.parts, PATIENCE, what)
        report = heard.parts[part]
        user = user_name(report.uid)
        if user != self.config.controller.core_user:
            raise FailedError(f"{program} was run by {user}, not by core_user {self.config.controller.core_user}")
        if report.problem:
            raise FailedError(report.problem)
        done = "nothing moves" if part == "handler" else "spool and gateway would take the text, nothing is sent"
        return f"{program} was run by {user}: {done}"

    def _sms(self) -> str:
        one = sender(self.config)
        name, gateway = one.first
        text = f"DRILL of {self.service.name}: nothing has happened ({self._id})"
        for number in self.sms:
            gateway.send(text, number, "")
            one.spool.log(number=number, text=text, gateway=name, direct=True, key=self._id)
        return f"accepted by {name} for {', '.join(self.sms)}"

    def _untouched(self) -> str:
        status = self._status()
        if not status.target is status.kernel is Target.PRIMARY:
            raise FailedError(f"the target is {status.target}, the kernel's {status.kernel}: see failoverctl history")
        return "everybody else stays on the primary"

    def _until(self, true: Callable[[DrillStatus], bool], patience: float, what: str) -> DrillStatus:
        end = time.monotonic() + patience
        while True:
            drill = self._status().drill
            if drill is None or drill.id != self._id:
                raise FailedError(f"{what}, and the drill's time is over (or the redirector was restarted)")
            if true(drill):
                return drill
            if time.monotonic() > end:
                raise FailedError(f"{what} within {patience:.0f} s")
            time.sleep(POLL)

    def _end(self, failed: str | None) -> None:
        """Report the end to core and redirector. Errors do not matter: the client's time ends by itself."""
        if not self._id:
            return
        with contextlib.suppress(ControlError):
            self._sniffer({"verb": "drill", "id": self._id, "step": failed or "passed"})
        with contextlib.suppress(ControlError):
            self._ask("drill-end", id=self._id, failed=failed, by=self.by)

    def _status(self) -> ServiceStatus:
        found = service_statuses(self._ask("status")).get(self.service.name)
        if found is None:
            raise FailedError("the redirector does not know this service: restart failover-redirector")
        return found

    def _ask(self, verb: str, **more: object) -> dict[str, Any]:
        message = {"verb": verb, "service": self.service.name, **more}
        return control.ask(self.config.controller.redirector_socket, message, timeout=10.0)

    def _sniffer(self, message: dict[str, Any]) -> dict[str, Any]:
        timeout = self.service.check.timeout + 5.0
        message = {**message, "service": self.service.name}
        return control.ask(self.config.controller.sniffer_socket, message, timeout=timeout)
