"""Sends what waits in the spool. Started by the notification command for each text, and by a timer in case that died.

One sender at a time (the spool's lock, never waited for): a second one ends at once, because the first looks again
before it leaves. While the gateway is down it is asked once per pause, not once per text, and the pause doubles; a new
text is a reason to ask at once. A sender stays for ``STAY`` seconds at most, then the timer or the next text goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from check_failover import config as configuration
from check_failover.sms import GATEWAYS, Gateway, GatewayError
from check_failover.sms.spool import FAILED, SENT, Spool, SpoolError, Text

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two questions to a gateway that is down
LOOK = 0.5  # seconds between two looks for new texts
STAY = 900.0  # seconds


class Sender:
    """Sends from one spool through one gateway."""

    def __init__(self, spool: Spool, name: str, gateway: Gateway) -> None:
        self.spool, self.name, self.gateway = spool, name, gateway
        self._gone: set[str] = set()  # sent, but a broken disk kept them in the queue: not again

    def run(self, stay: float) -> int:
        """Send until nothing waits or ``stay`` seconds are over (0: each text once). Returns how many still wait.

        Raises SpoolError.
        """
        end = time.monotonic() + stay
        while True:
            with self.spool.lock() as ours:
                if not ours:
                    return 0
                self.spool.prune(time.time())
                left = self._send_until(end)
            # A text that came after our last look, while its own sender found the spool locked:
            if left or not self._waiting():
                return left

    def _send_until(self, end: float) -> int:
        pause, seen = FIRST_PAUSE, set[str]()
        while waiting := self._waiting():
            seen |= {text.key for text in waiting}
            if self._send_all(waiting):
                pause = FIRST_PAUSE
                continue
            again = time.monotonic() + pause
            pause = min(2 * pause, LONGEST_PAUSE)
            while time.monotonic() < again and {text.key for text in self._waiting()} <= seen:
                if time.monotonic() >= end:
                    return len(self._waiting())
                time.sleep(LOOK)
            if time.monotonic() >= end:
                return len(self._waiting())
        return 0

    def _waiting(self) -> list[Text]:
        return [text for text in self.spool.pending() if text.key not in self._gone]

    def _send_all(self, waiting: Sequence[Text]) -> bool:
        """Each text once, until the gateway does not take one: then False. The least tried first, so that one text
        that the gateway cannot digest does not hold up the others."""
        order = sorted(waiting, key=lambda text: (text.attempts, text.at))
        return all(self.spool.needless(text) or self.send(text) for text in order)

    def send(self, text: Text) -> bool:
        """One attempt. False: the gateway did not take it, but may later."""
        tried = replace(text, attempts=text.attempts + 1)
        try:
            self.gateway.send(text.text, text.number, text.key)
        except GatewayError as error:
            tried = replace(tried, problem=str(error))
            self.spool.log(number=text.number, text=text.text, gateway=self.name, problem=str(error), key=text.key)
            if not error.permanent:
                self.spool.update(tried)
                return False
            self._settle(tried, FAILED)
            return True
        now = time.time()
        self._settle(replace(tried, problem="", gateway=self.name, sent_at=now), SENT)
        self.spool.log(
            number=text.number, text=text.text, gateway=self.name, waited=round(now - text.at, 3), key=text.key
        )
        return True

    def _settle(self, text: Text, folder: str) -> None:
        self._gone.add(text.key)
        try:
            self.spool.settle(text, folder)
        except SpoolError as error:
            print(f"failover_sms: sent, but still in the queue: {error}", file=sys.stderr)


def sender(config: configuration.Config) -> Sender:
    """The sender of a config. Raises GatewayError when it names no gateway."""
    if config.sms is None:
        raise GatewayError(f"{config.path}: no [sms]: it says how texts leave")
    name = str(config.sms["gateway"])
    return Sender(Spool(spool_directory(config.controller.state_dir)), name, GATEWAYS[name](config.sms))


def spool_directory(state_dir: Path) -> Path:
    """Where the spool of a controller is."""
    return state_dir / "spool"


def main(argv: Sequence[str] | None = None) -> int:
    """Send what waits: exit code 0 when nothing is left, 1 when something is, or could not be read."""
    parser = argparse.ArgumentParser(prog="failover_sms --flush", allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--config", default=configuration.DEFAULT_PATH)
    parser.add_argument("--stay", type=float, default=STAY, metavar="SECONDS", help="how long to go on (%(default)s)")
    options = parser.parse_args(argv)
    try:
        left = sender(configuration.load(options.config)).run(options.stay)
    except (configuration.ConfigError, GatewayError, SpoolError) as error:
        print(f"failover_sms: {error}", file=sys.stderr)
        return 1
    if left:
        print(f"failover_sms: {left} texts still wait for the gateway", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
