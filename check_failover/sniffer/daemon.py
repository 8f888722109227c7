"""failover-sniffer: watches clients' traffic, probes on suspicion and reports to the core. The work is in ``loop``."""

import argparse
import logging
import signal
from functools import partial
from pathlib import Path

from check_failover import __version__, rights
from check_failover.checks import ProbeError
from check_failover.config import DEFAULT_PATH, Config, ConfigError, load
from check_failover.control import ControlError
from check_failover.listening import Server
from check_failover.notify import fail, log_to_stderr, notify, reloading
from check_failover.sniffer.capture import CaptureError
from check_failover.sniffer.loop import Loop
from check_failover.sniffer.requests import SnifferRequests

log = logging.getLogger("failover-sniffer")


def run(config: Config) -> None:
    """Watch until SIGTERM. Raises ConfigError, ControlError, CaptureError or ProbeError when it cannot start."""
    if not config.controller.client_interfaces:
        raise ConfigError(
            f"{config.path}: $.controller.client_interface: needed by the sniffer: where are the clients?"
        )
    loop = Loop(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    signal.signal(signal.SIGHUP, lambda *_: loop.call(lambda: _reload(loop)))
    requests = SnifferRequests(loop)
    server = Server(
        config.controller.sniffer_socket,
        rights.OF_SNIFFER,
        requests.handle,
        partial(rights.refused, rights.OF_SNIFFER, config.controller),
        looks=partial(rights.looks, config.controller),
    )
    server.start()
    notify("READY=1")
    log.info("watching %s", ", ".join(config.controller.client_interfaces))
    try:
        loop.run()
    finally:
        server.close()


def _reload(loop: Loop) -> None:
    """SIGHUP: read the config again; one that is refused changes nothing."""
    reloading("reading the config again")
    try:
        loop.reload(load(loop.config.path))
        log.info("config read again: %d services", len(loop.config.services))
    except (ConfigError, CaptureError, ProbeError) as error:
        log.error("the config in force stays: %s", error)
        notify(f"STATUS=config refused, the one in force stays: {error}")
    notify("READY=1")


def main() -> None:
    parser = argparse.ArgumentParser(prog="failover-sniffer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=DEFAULT_PATH, type=Path, help="default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="log each suspicion that is not investigated, and why")
    parser.add_argument("--version", action="version", version=__version__)
    replay = parser.add_argument_group("replay of a capture file, without any effect")
    replay.add_argument("--pcap", type=Path, metavar="FILE", help="print what would have been decided, and why")
    replay.add_argument("--speed", type=float, metavar="N", help="replay at N times real time (as fast as possible)")
    replay.add_argument(
        "--assume-primary",
        choices=("fails", "passes"),
        default="fails",
        help="assumed result of its probes: %(default)s",
    )
    arguments = parser.parse_args()
    if arguments.speed is not None and not arguments.speed > 0:
        parser.error("--speed must be above 0")
    log_to_stderr(parser.prog, debug=arguments.debug)
    try:
        if arguments.pcap is None:
            run(load(arguments.config))
        else:
            from check_failover.sniffer import replay as player

            passes = arguments.assume_primary == "passes"
            player.run(load(arguments.config), arguments.pcap, arguments.speed, primary_passes=passes)
    except (ConfigError, ControlError, CaptureError, ProbeError) as error:
        fail(parser.prog, error)


if __name__ == "__main__":
    main()
