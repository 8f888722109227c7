"""failover-redirector: the only program that touches NAT. Restores the targets, then serves its control socket.

A daemon has advantages over sudo: fixed verbs, one writer, no Python start for each order, and at boot it restores the
target before the first packet is forwarded. ``rights`` authorises clients by SO_PEERCRED. On SIGTERM the rules stay,
because a stopped redirector must not interrupt the service.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from check_failover import __version__, rights
from check_failover.config import DEFAULT_PATH, Config, ConfigError, fixed, load, publish
from check_failover.control import ControlError
from check_failover.listening import Server
from check_failover.model import Target
from check_failover.notify import alive, fail, log_to_stderr, notify, reloading
from check_failover.redirector import REDIRECTS, Change, RedirectError
from check_failover.redirector.drill import Drills
from check_failover.redirector.report import CoreReports
from check_failover.redirector.requests import RedirectorRequests
from check_failover.redirector.state import StateError
from check_failover.redirector.steering import Steering

log = logging.getLogger("failover-redirector")

TURN = 2.0  # seconds between two turns of the loop
READ_EVERY = 60.0  # seconds between two reads of all rules where the kernel tells of changes


class Wake(threading.Event):
    """Wakes the loop: a signal came, or the kernel told of a change of the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = self.hangup = False
        self._change, self._lock = Change.RULES, threading.Lock()

    def changed(self, change: Change) -> None:
        with self._lock:
            self._change = max(self._change, change)
        if change is not Change.NONE:
            self.set()

    def take(self) -> Change:
        """What changed since the last call."""
        with self._lock:
            change, self._change = self._change, Change.NONE
        return change

    def signalled(self, number: int, _frame: object) -> None:
        self.hangup = self.hangup or number == signal.SIGHUP
        self.stop = self.stop or number != signal.SIGHUP
        self.set()


def run(config: Config, wake: Wake) -> bool:
    """Serve until ``wake.stop``, or until ``wake.hangup`` when the config can be read anew: True then.

    Raises RedirectError or ControlError when it cannot begin.
    """
    published: list[Server] = []
    redirect = REDIRECTS[config.controller.redirect](config)
    steering = Steering(config, redirect, lambda e: published[0].publish(e))
    steering.restore()
    report = CoreReports(config)
    drills = Drills(redirect, steering)
    requests = RedirectorRequests(config, steering, report, drills)
    server = Server(
        config.controller.redirector_socket,
        rights.OF_REDIRECTOR,
        requests.handle,
        partial(rights.refused, rights.OF_REDIRECTOR, config.controller),
        hello=lambda: {"targets": {name: str(target) for name, target in steering.targets().items()}},
        looks=partial(rights.looks, config.controller),
    )
    published.append(server)
    server.start()
    publish(config)
    notify("READY=1")
    for name, target in steering.targets().items():
        log.info("started, %s: %s", name, target)
    told, read_at, anew = redirect.watch(wake.changed), 0.0, False
    while not anew and not wake.stop:
        wake.clear()
        change = wake.take()
        if not told or time.monotonic() > read_at:
            change, read_at = Change.RULES, time.monotonic() + READ_EVERY
        _guarded(partial(steering.reconcile, change))
        said = float("-inf")
        for service in config.services:
            for act in (requests.advance, requests.fail_back):
                _guarded(partial(act, service))
            if time.monotonic() - said > 1:
                alive(_summary(steering))  # the lock could be taken
                said = time.monotonic()
        _guarded(requests.look)
        if wake.hangup:
            wake.hangup = False
            anew = _can_begin_anew(config, drills)
        else:
            wake.wait(TURN)
    if anew:
        server.hand_over()
    else:
        notify("STOPPING=1")
        server.close()
    requests.close()
    report.close()
    return anew


def _guarded(act: Callable[[], None]) -> None:
    """A fault of ours in one duty must not end the others."""
    try:
        act()
    except Exception:
        log.exception("internal error")


def _summary(steering: Steering) -> str:
    """For ``systemctl status``."""
    targets = list(steering.targets().values())
    return f"{len(targets)} services, {targets.count(Target.STANDBY)} on the standby"


def _can_begin_anew(config: Config, drills: Drills) -> bool:
    """Whether the config file can be taken; if not, the reason is reported and the config in force stays."""
    try:
        if drills.running:
            raise ConfigError(f"a drill of {', '.join(list(drills.running))} goes on: reload again when it is over")
        if fixed(load(config.path)) != fixed(config):
            raise ConfigError(f"{config.path}: [controller] and [monitoring] change with a restart only")
    except ConfigError as error:
        log.error("the config in force stays: %s", error)
        notify(f"STATUS=config refused, the one in force stays: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="failover-redirector", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=DEFAULT_PATH, type=Path, help="default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="log each order with the facts it was decided on")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    log_to_stderr(parser.prog, debug=arguments.debug)
    wake = Wake()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, wake.signalled)
    try:
        if run(load(arguments.config), wake):
            # The rules and the state stay, so a program that begins anew in this process takes nothing from clients.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            reloading("reading the config again")
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606, our own program
    except (ConfigError, ControlError, RedirectError, StateError) as error:
        fail(parser.prog, error)


if __name__ == "__main__":
    main()
