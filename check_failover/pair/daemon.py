"""failover-pair: where two controllers share the service addresses (VRRP), each follows the other one's targets.

``ssh PEER`` starts ``failover-pair --serve`` on the peer (a forced command of that key, see
``nagios-conf/keepalived/README.md``). It prints its redirector's state as one JSON line after each change and every
second. This program passes each line to the local redirector as the verb ``follow``; the state with more flips wins.

Each controller follows its peer, because the core's orders to both would not be enough: a controller that was down
must learn the target before it forwards packets, and operators' orders, holds and drains must reach both. ssh provides
authentication and encryption, and no new port is open. The program has no privileges; the redirector accepts only the
verbs of ``pair_user`` from it.

This program creates ``run_dir/pair.ready`` once it knows the peer's state, or after ``PATIENCE`` seconds without an
answer, because then the peer is down and this controller must serve. keepalived takes no address before the file
exists. The file stays when this program ends, so that no address moves then; a reboot removes it.
"""

import argparse
import json
import logging
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from check_failover import __version__, control, programs
from check_failover.config import DEFAULT_PATH, Config, ConfigError, Controller, load
from check_failover.control import ControlError, Message
from check_failover.notify import fail, log_to_stderr, notify

log = logging.getLogger("failover-pair")

SSH = "/usr/bin/ssh"
OPTIONS = ["BatchMode=yes", "ConnectTimeout=3", "StrictHostKeyChecking=yes", "ServerAliveInterval=1"]
OPTIONS += ["ServerAliveCountMax=3", "ClearAllForwardings=yes", "ForwardAgent=no", "LogLevel=ERROR"]
HEARTBEAT = 1.0  # seconds between two lines without a change
SILENCE = 3.5  # seconds without a line until the connection counts as broken
PATIENCE = 5.0  # seconds from the start until a peer that never answered counts as down
PAUSE = 0.5  # seconds before the next attempt
LIMIT = 1 << 20  # bytes of a line
TIMEOUT = 20.0  # seconds for an answer: the redirector may probe a server before it follows


def main() -> None:
    parser = argparse.ArgumentParser(prog="failover-pair", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=DEFAULT_PATH, type=Path, help="default: %(default)s")
    parser.add_argument(
        "--serve", action="store_true", help="print the state for the other controller (started by ssh)"
    )
    parser.add_argument("--debug", action="store_true", help="log each state that the other controller sends")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    log_to_stderr(parser.prog, debug=arguments.debug)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload of all units must not end this one
    try:
        config = load(arguments.config)
        if arguments.serve:
            serve(config.controller, sys.stdout)
        follow(config)
    except (ConfigError, ControlError) as error:
        fail(parser.prog, error)
    except BrokenPipeError:
        sys.exit(0)


def serve(controller: Controller, out: IO[str]) -> None:
    """Print states until the reader or the redirector is gone (BrokenPipeError, ControlError)."""
    sock, _ = control.subscribe(controller.redirector_socket)
    with sock:
        while True:
            reply = control.ask(controller.redirector_socket, {"verb": "state"})
            print(json.dumps({key: reply.get(key) for key in ("state", "sync", "heard")}), file=out, flush=True)
            if select.select([sock], [], [], HEARTBEAT)[0] and not sock.recv(65536):
                raise ControlError(f"{controller.redirector_socket}: the redirector is gone")


def follow(config: Config) -> None:
    """Follow the peer forever. Raises ConfigError if the config names no peer."""
    peer = config.controller.peer
    if peer is None:
        raise ConfigError(f"{config.path}: $.controller.peer: missing: the other controller, as user@host for ssh")
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
    """The argument list of ssh. The peer runs its forced command, whatever command is asked for here."""
    more = [] if controller.peer_ssh_config is None else ["-F", str(controller.peer_ssh_config)]
    options = [word for option in OPTIONS for word in ("-o", option)]
    return [SSH, "-a", "-x", "-T", *options, *more, "--", peer, "failover-pair --serve"]


def lines(argv: list[str]) -> Iterator[Message]:
    """Each line of the peer. Ends with ControlError, which says what failed."""
    try:
        ssh = programs.start(argv)
    except OSError as error:
        raise ControlError(f"{argv[0]}: cannot run: {error.strerror}") from None
    out, err, buffer = programs.pipe(ssh.stdout), programs.pipe(ssh.stderr), bytearray()
    with programs.ended(ssh, patience=0.0):
        programs.pipe(ssh.stdin).close()
        while ready := select.select([out, err], [], [], SILENCE)[0]:
            chunk = out.read(65536) if out in ready else b""
            if not chunk:
                raise ControlError(f"{argv[-2]}: {_complaint(err) or 'the connection has ended'}")
            buffer += chunk
            if not buffer.startswith(b"{"):  # not from failover-pair
                raise ControlError(f"{argv[-2]}: {programs.last_line(bytes(buffer))[:200]}")
            yield from list(control.split_lines(buffer))[-1:]  # an older one is outdated
            if len(buffer) > LIMIT:
                raise ControlError(f"{argv[-2]}: a line that does not end")
        raise ControlError(f"{argv[-2]}: silent for {SILENCE} s")


def _complaint(err: IO[bytes]) -> str:
    """The last line of what ssh says on its stderr within a moment."""
    said = b""
    while len(said) < LIMIT and select.select([err], [], [], 0.3)[0] and (piece := err.read(65536)):
        said += piece
    return programs.last_line(said)[:200]


def _pass_on(controller: Controller, line: Message) -> bool:
    """Pass one line to the local redirector, which checks it. False: the redirector does not answer."""
    log.debug("from the other controller: %s", line)
    said = (line.get(key) for key in ("state", "sync", "heard"))
    states, records, heard = (found if isinstance(found, dict) else {} for found in said)
    if not states:
        raise ControlError("not the state of a redirector: do both controllers run the same version?")
    try:
        for name, one in states.items():  # one at a time: a request has a limit
            parts = {"state": {name: one}, "sync": {name: records.get(name)}, "heard": {name: heard.get(name)}}
            control.ask(controller.redirector_socket, {"verb": "follow", **parts}, TIMEOUT)
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
