"""failover-redirector: the only program that touches NAT. Restores the targets, then serves its control socket.

A daemon has advantages over sudo: fixed verbs, one writer, no Python start for each order, and at boot it restores the
target before the first packet is forwarded. ``rights`` authorises clients by SO_PEERCRED. On SIGTERM the rules stay,
because a stopped redirector must not interrupt the service.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from pathlib import Path

from check_failover import __version__, control
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.control import ControlError
from check_failover.listening import Server
from check_failover.notify import fail, log_to_stderr, notify
from check_failover.redirector import REDIRECTS, RedirectError
from check_failover.redirector.drill import Drills
from check_failover.redirector.report import CoreReports
from check_failover.redirector.requests import RedirectorRequests
from check_failover.redirector.state import StateError
from check_failover.redirector.steering import Steering

log = logging.getLogger("failover-redirector")

HEAL_EVERY = 2.0  # seconds between two reads of the kernel's rules


def run(config: Config, stop: threading.Event) -> None:
    """Serve until ``stop``. Raises RedirectError or ControlError if it cannot start."""
    published: list[Server] = []
    redirect = REDIRECTS[config.controller.redirect](config)
    steering = Steering(config, redirect, lambda e: published[0].publish(e))
    steering.restore()
    report = CoreReports(config)
    requests = RedirectorRequests(config, steering, report, Drills(redirect, steering))
    server = Server(
        config.controller.redirector_socket,
        control.REDIRECTOR_VERBS,
        requests.handle,
        requests.authorise,
        hello=lambda: {"targets": {name: str(target) for name, target in steering.targets().items()}},
    )
    published.append(server)
    server.start()
    notify("READY=1")
    for line in (f"{name}: {target}" for name, target in steering.targets().items()):
        log.info("started, %s", line)
    pause = 0.0
    while not stop.wait(pause):
        pause = HEAL_EVERY
        steering.reconcile()
        for service in config.services:
            requests.advance(service)
            requests.fail_back(service)
            requests.look(service)
    notify("STOPPING=1")
    server.close()
    requests.close()
    report.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="failover-redirector", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=DEFAULT_PATH, type=Path, help="default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="log each order with the facts it was decided on")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    log_to_stderr(parser.prog, debug=arguments.debug)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(load(arguments.config), stop)
    except (ConfigError, ControlError, RedirectError, StateError) as error:
        fail(parser.prog, error)


if __name__ == "__main__":
    main()
