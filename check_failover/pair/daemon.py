"""failover-pair: where two controllers share the service addresses (VRRP), each follows the other's targets.

The way: ``ssh PEER`` starts ``failover-pair --serve`` there (a forced command of that key, see
``nagios-conf/keepalived/README.md``), which prints the state of its redirector, one JSON line whenever it changes and
every second. Each line goes to our own redirector as the verb ``follow``; whose state has seen more flips wins there.

Why to follow and not to let the core's handler order on both: a controller that was dead must learn the target before
it forwards, from whom has it, and then the same way may as well serve always; and a person's order, a hold, a drain
come along. Why ssh: authentication, encryption and reconnection are not ours to write, and nothing listens that is
not there already. This program has no privilege: what it may say is fixed by its user (``pair_user``).

``run_dir/pair.ready`` appears once the state of the other is known, or the other was asked and did not answer for
``PATIENCE`` seconds (it is dead: somebody must serve). keepalived waits for it before it takes an address. It stays
when this program ends: an address must not move because of that; a boot removes it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from check_failover import __version__, control
from check_failover.config import DEFAULT_PATH, Config, ConfigError, Controller, load
from check_failover.control import ControlError, Message
from check_failover.notify import log_to_stderr, notify

log = logging.getLogger("failover-pair")

SSH = "/usr/bin/ssh"
OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=3",
    "StrictHostKeyChecking=yes",
    "ServerAliveInterval=1",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "LogLevel=ERROR",
)
HEARTBEAT = 1.0  # seconds between two lines when nothing changes
SILENCE = 3.5  # seconds without a line: the way is broken, or the other hangs
PATIENCE = 5.0  # seconds from the start until an other that never answered counts as dead
PAUSE = 0.5  # seconds before the next try
LIMIT = 1 << 20  # bytes of a line


def main() -> None:
    parser = argparse.ArgumentParser(prog="failover-pair", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=DEFAULT_PATH, type=Path, help="default: %(default)s")
    parser.add_argument(
        "--serve", action="store_true", help="print the state for the other controller (what ssh starts)"
    )
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    log_to_stderr()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        config = load(arguments.config)
        if arguments.serve:
            serve(config.controller, sys.stdout)
        follow(config)
    except (ConfigError, ControlError) as error:
        sys.exit(f"failover-pair: {error}")
    except BrokenPipeError:
        sys.exit(0)


def serve(controller: Controller, out: IO[str]) -> None:
    """Lines until the reader or the redirector is gone (BrokenPipeError, ControlError)."""
    sock, _ = control.subscribe(controller.redirector_socket)
    with sock:
        while True:
            state = control.ask(controller.redirector_socket, {"verb": "state"})["state"]
            print(json.dumps({"state": state}), file=out, flush=True)
            if select.select([sock], [], [], HEARTBEAT)[0] and not sock.recv(65536):
                raise ControlError(f"{controller.redirector_socket}: the redirector is gone")


def follow(config: Config) -> None:
    """For ever. Raises ConfigError where there is nobody to follow."""
    peer = config.controller.peer
    if peer is None:
        raise ConfigError(f"{config.path}: $.controller.peer: needed here: the other controller, as user@host for ssh")
    began, complained = time.monotonic(), ""
    notify("READY=1")
    while True:
        try:
            for line in lines(command(config.controller, peer)):
                if _pass_on(config.controller, line):
                    _ready(config.controller)
                if complained != "":
                    log.info("%s answers", peer)
                    complained = ""
        except ControlError as error:
            if str(error) != complained:
                log.warning("%s", error)
                complained = str(error)
        if time.monotonic() - began > PATIENCE:
            _ready(config.controller)
        time.sleep(PAUSE)


def command(controller: Controller, peer: str) -> list[str]:
    """The argument list of ssh. What it asks for is what the forced command is anyway."""
    more = [] if controller.peer_ssh_config is None else ["-F", str(controller.peer_ssh_config)]
    options = [word for option in OPTIONS for word in ("-o", option)]
    return [SSH, "-a", "-x", "-T", *options, *more, "--", peer, "failover-pair --serve"]


def lines(argv: list[str]) -> Iterator[Message]:
    """Every line of the other. Ends with ControlError: what went wrong."""
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb", buffering=0) as said,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env={"LC_ALL": "C"}) as ssh,
    ):
        os.close(writer)
        try:
            buffer = bytearray()
            while select.select([said], [], [], SILENCE)[0]:
                chunk = said.read(65536)
                if not chunk:
                    raise ControlError(f"{argv[-2]}: the connection has ended")
                buffer += chunk
                if not buffer.startswith(b"{"):  # ssh itself, why it cannot
                    raise ControlError(f"{argv[-2]}: {buffer.decode(errors='replace').strip().splitlines()[-1][:200]}")
                yield from control.split_lines(buffer)
                if len(buffer) > LIMIT:
                    raise ControlError(f"{argv[-2]}: a line that does not end")
            raise ControlError(f"{argv[-2]}: silent for {SILENCE} s")
        finally:
            ssh.kill()


def _pass_on(controller: Controller, line: Message) -> bool:
    """One line to our own redirector, which judges it; False: it is away, and gets the next one."""
    try:
        control.ask(controller.redirector_socket, {"verb": "follow", "state": line.get("state")})
    except control.UnreachableError as error:
        log.warning("%s", error)
        return False
    return True


def _ready(controller: Controller) -> None:
    try:
        (controller.run_dir / "pair.ready").touch()
    except OSError as error:
        raise ControlError(f"{controller.run_dir}/pair.ready: {error.strerror}: keepalived waits for it") from None


if __name__ == "__main__":
    main()
