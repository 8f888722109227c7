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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from check_failover import control
from check_failover.admin.testclient import LINK, ClientError, client_at
from check_failover.checks import ProbeError, probe_function
from check_failover.config import Config
from check_failover.control import ControlError
from check_failover.model import Probe, Service, Target
from check_failover.records import DrillStatus, RecordError, ServiceStatus, service_statuses
from check_failover.rights import user_name
from check_failover.sms import GatewayError
from check_failover.sms.flush import sender

PATIENCE = 15.0  # seconds for each of the core's actions
POLL = 0.05  # seconds between two questions
# part -> the setting that the core needs
SETTINGS = {"handler": "is enable_event_handlers 1", "notification": "is enable_notifications 1"}


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """The operator's settings. Times in seconds."""

    client: str | None
    wait: float | None  # for a real client to ask; None: the test client is made here
    limit: float  # the kernel forgets the client after this time
    sms: tuple[str, ...]
    by: str


class DrillStepError(Exception):
    """A step failed: one line."""


class DrillRun:
    """One drill of one service; ``run`` returns the name of the step that failed, or None."""

    def __init__(self, config: Config, service: Service, plan: DrillPlan) -> None:
        self._config, self._service, self._plan = config, service, plan
        self._began = time.monotonic()
        self._id = ""
        self._client: str | None = None

    def run(self) -> str | None:
        if self._plan.wait is None and self._plan.client and os.geteuid() != 0:
            raise ControlError("drill: making the test client needs root; or use --wait 60 and a real client")
        failed: str | None = "standby"
        previous = signal.signal(signal.SIGTERM, _terminated)
        try:
            for failed, act in self._steps():
                self._say(failed, act())
            failed = None
        except (DrillStepError, RecordError, ControlError, ClientError, ProbeError, GatewayError) as error:
            self._say(str(failed), f"FAILED: {error}")
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._end(failed)
        return failed

    def _steps(self) -> tuple[tuple[str, Callable[[], str]], ...]:
        steps = (
            ("standby", self._standby),
            ("redirect", self._redirect),
            ("client", self._served),
            ("result", self._result),
            ("handler", lambda: self._ran("handler", "failover_event")),
            ("notification", lambda: self._ran("notification", "failover_sms")),
            ("sms", self._sms),
            ("untouched", self._untouched),
        )
        return tuple(step for step in steps if step[0] != "sms" or self._plan.sms)

    def _say(self, step: str, text: str) -> None:
        print(f"  {time.monotonic() - self._began:7.3f} s  {step:<12}  {text}", flush=True)

    # ------------------------------------------------------------ steps: return a text or raise DrillStepError

    def _standby(self) -> str:
        reply = self._sniffer({"verb": "probe", "target": str(Target.STANDBY)})
        if not reply.get("passed"):
            raise DrillStepError(f"the standby fails its probe: {reply.get('text')}")
        return f"{self._service.standby} passes its probe: {reply.get('text')}"

    def _redirect(self) -> str:
        plan = self._plan
        reply = self._ask("drill", client=plan.client, seconds=plan.limit, by=plan.by)
        self._id, self._client = str(reply["id"]), reply["client"]
        if self._client is None:
            return "left out: this redirect cannot send one client elsewhere"
        if plan.wait is None and reply["in_use"]:
            raise DrillStepError(f"{self._client} is a client's that was just served; name an address that nobody uses")
        return f"only {self._client} goes to the standby {self._service.standby}, for {plan.limit:.0f} s at most"

    def _served(self) -> str:
        if self._client is None:
            return "left out, with the redirect"
        if self._plan.wait is not None:
            print(f"  waiting {self._plan.wait:.0f} s: ask {self._service.address} from {self._client} now", flush=True)
            self._until(lambda drill: drill.served, self._plan.wait, f"no request of {self._client} served")
            return f"{self._client} was served by the standby"
        probe = self._probe(self._client)
        if not probe.passed:
            raise DrillStepError(
                f"no good answer at {self._client}: {probe.text}: forwarding, the standby's way back to it, "
                f"a firewall that does not know {LINK}? see failoverctl doctor"
            )
        self._until(lambda drill: drill.served, 2.0, "answered, but not by the standby")
        return f"{self._client} was served by the standby: {probe.text}"

    def _probe(self, client: str) -> Probe:
        check, address = self._service.check, self._service.address
        probe = probe_function(check)
        with client_at(client, address) as run:
            return run(lambda: probe(address, check.options, check.timeout))

    def _result(self) -> str:
        reply = self._sniffer({"verb": "drill", "id": self._id, "step": "begin"})
        if not reply.get("taken"):
            raise DrillStepError(
                "the core does not take results: is it running? they are kept, and sent when it is back"
            )
        return f'the core took CRITICAL for "{self._service.name} drill"'

    def _ran(self, part: str, program: str) -> str:
        what = f"the core did not run {program} ({SETTINGS[part]}, may core_user execute it? see the core's log)"
        heard = self._until(lambda drill: part in drill.parts, PATIENCE, what)
        report = heard.parts[part]
        user = user_name(report.uid)
        if user != self._config.controller.core_user:
            raise DrillStepError(f"{program} was run by {user}, not by core_user {self._config.controller.core_user}")
        if report.problem:
            raise DrillStepError(report.problem)
        done = "nothing moves" if part == "handler" else "spool and gateway would take the text, nothing is sent"
        return f"{program} was run by {user}: {done}"

    def _sms(self) -> str:
        one = sender(self._config)
        name, gateway = one.first
        text = f"DRILL of {self._service.name}: nothing has happened ({self._id})"
        for number in self._plan.sms:
            gateway.send(text, number, "")
            one.spool.log(number=number, text=text, gateway=name, direct=True, key=self._id)
        return f"accepted by {name} for {', '.join(self._plan.sms)}"

    def _untouched(self) -> str:
        status = self._status()
        if not status.target is status.kernel is Target.PRIMARY:
            raise DrillStepError(
                f"the target is {status.target}, the kernel's {status.kernel}: see failoverctl history"
            )
        return "everybody else stays on the primary"

    def _until(self, true: Callable[[DrillStatus], bool], patience: float, what: str) -> DrillStatus:
        end = time.monotonic() + patience
        while True:
            drill = self._status().drill
            if drill is None or drill.id != self._id:
                raise DrillStepError(f"{what}, and the drill's time is over (or the redirector was restarted)")
            if true(drill):
                return drill
            if time.monotonic() > end:
                raise DrillStepError(f"{what} within {patience:.0f} s")
            time.sleep(POLL)

    def _end(self, failed: str | None) -> None:
        """Report the end to core and redirector. Errors do not matter: the client's time ends by itself."""
        if not self._id:
            return
        with contextlib.suppress(ControlError):
            self._sniffer({"verb": "drill", "id": self._id, "step": failed or "passed"})
        with contextlib.suppress(ControlError):
            self._ask("drill-end", id=self._id, failed=failed, by=self._plan.by)

    def _status(self) -> ServiceStatus:
        found = service_statuses(self._ask("status")).get(self._service.name)
        if found is None:
            raise DrillStepError("the redirector does not know this service: restart failover-redirector")
        return found

    def _ask(self, verb: str, **more: object) -> dict[str, Any]:
        message = {"verb": verb, "service": self._service.name, **more}
        return control.ask(self._config.controller.redirector_socket, message, timeout=10.0)

    def _sniffer(self, message: dict[str, Any]) -> dict[str, Any]:
        timeout = self._service.check.timeout + 5.0
        message = {**message, "service": self._service.name}
        return control.ask(self._config.controller.sniffer_socket, message, timeout=timeout)


def _terminated(_signal: int, _frame: object) -> NoReturn:
    sys.exit(143)
