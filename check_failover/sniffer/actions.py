"""The effects of the monitors: probes, results for the core, facts for the redirector, evidence files.

Nothing here blocks the loop. A probe runs in a thread of a pool; ``call`` brings its outcome to the loop's thread.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from check_failover import syncstate
from check_failover.checks import ProbeError, probe_function
from check_failover.config import Config
from check_failover.control import ControlError
from check_failover.model import Facts, PassiveResult, Probe, Service, Target
from check_failover.sniffer.evidence import Evidence
from check_failover.sniffer.monitor import ServiceMonitor
from check_failover.sniffer.redirector_link import RedirectorLink
from check_failover.transports import TRANSPORTS
from check_failover.transports.outbox import Outbox

PROBERS = 256  # threads, made when they are needed: the services of a host that dies are probed at once

log = logging.getLogger("failover-sniffer")


class ServiceActions:
    """Implements ``monitor_actions.Actions``. Raises ControlError when the state directory cannot be made."""

    def __init__(
        self,
        config: Config,
        monitors: Mapping[str, ServiceMonitor],
        link: RedirectorLink,
        call: Callable[..., None],  # ``Loop.call``
    ) -> None:
        self._config, self._monitors, self._link, self._call = config, monitors, link, call
        self._probes = {service.name: probe_function(service.check) for service in config.services}
        self._pool = ThreadPoolExecutor(PROBERS, thread_name_prefix="probe")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="evidence")
        directory = config.controller.state_dir / "sniffer"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ControlError(f"{directory}: cannot make: {error.strerror}: check space and rights") from None
        transport = TRANSPORTS[config.monitoring["transport"]](config.monitoring)
        self.outbox = Outbox(transport, directory / "results.kept", on_failure=lambda: call(lambda: None))
        self.evidence = Evidence(directory / "evidence")

    def reload(self, config: Config) -> None:
        """Probe what a new config says; the way to the core stays. Raises ProbeError."""
        self._probes = {service.name: probe_function(service.check) for service in config.services}
        self._config = config

    def probe(self, service: Service, target: Target, timeout: float) -> None:
        self._pool.submit(self._probe, service, target, timeout)

    def _probe(self, service: Service, target: Target, timeout: float) -> None:
        probe = self.probe_now(service, target, timeout)
        if probe is not None:
            self._call(lambda: self._outcome(service, target, probe), service.name)

    def _outcome(self, service: Service, target: Target, probe: Probe) -> None:
        monitor = self._monitors.get(service.name)
        if monitor is not None and monitor.service is service:  # else the config changed meanwhile
            monitor.probed(target, probe, time.monotonic())

    def probe_now(self, service: Service, target: Target, timeout: float) -> Probe | None:
        """Probe in the caller's thread; None when the probe could not be made: UNKNOWN, which moves no traffic."""
        try:
            probe = self._probes[service.name](service.server(target), service.check.options, timeout)
        except ProbeError as error:
            why = str(error)
            log.error("%s: cannot probe the %s: %s", service.name, target, why)
            self._call(lambda: self._monitors[service.name].health[target].probe_error(why), service.name)
            return None
        if not probe.passed:
            known = self._monitors[service.name].health[target].ok is False  # then it is probed again and again
            level = logging.DEBUG if known else logging.WARNING
            log.log(level, "%s: probe of the %s failed: %s", service.name, target, probe.text)
        return probe

    def report(self, result: PassiveResult) -> None:
        self.outbox.submit(result)

    def facts(self, service: Service, facts: Facts) -> None:
        self._link.send_facts(service, facts)

    def note(self, text: str, level: int = logging.INFO) -> None:
        log.log(level, "%s", text)

    def keep(self, service: Service, story: dict[str, Any]) -> int | None:
        number = time.time_ns() // 1_000_000
        frames = self.evidence.snapshot(service.name)
        self._writer.submit(self.evidence.save, f"{service.name}-{number}", frames, {"evidence": number, **story})
        return number

    def sync(self, service: Service, facts: Facts) -> Facts:
        return syncstate.known(self._config.controller.state_dir, service, facts, time.time())

    def close(self) -> None:
        for pool in (self._pool, self._writer):
            pool.shutdown(wait=False, cancel_futures=True)
        self.outbox.close()
