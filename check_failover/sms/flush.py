"""Sends what waits in the spool. Started by the notification command for each text, and by a timer in case that died.

One sender at a time (the spool's lock, never waited for): a second one ends at once, because the first looks again
before it leaves. While a gateway is down it is asked once per pause, not once per text, and the pause doubles; a new
text is a reason to ask at once. A sender stays for ``STAY`` seconds at most, then the timer or the next text goes on.

The second gateway gets a text that the first one refuses, that waits for it longer than ``patience``, or whose delivery
is denied or not confirmed within ``patience``. More texts for one phone than its limit are told by a digest, which
takes the last free place: "12 more in 5 min: " and the newest of them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from check_failover import config as configuration
from check_failover.sms import GATEWAYS, Gateway, GatewayError
from check_failover.sms.receipts import DELIVERED, Receipts
from check_failover.sms.spool import AWAITED, FAILED, QUEUE, SENT, Spool, SpoolError, Text, key_of
from check_failover.sms.text import fit

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two questions to a gateway that is down
LOOK = 0.5  # seconds between two looks for new texts
STAY = 900.0  # seconds
DIGESTED = "digest"  # in place of the gateway's name: told by a digest


@dataclass(frozen=True, slots=True)
class SendPlan:
    """What is done beside sending. Seconds; the defaults of a config are in its schema's words (README)."""

    second: tuple[str, Gateway] | None = None
    patience: float = 120.0  # for the first gateway, and for its receipt
    receipts: Receipts | None = None
    limit: int = 0  # texts for one phone within ``window``; 0: no limit
    window: float = 300.0


class SmsSender:
    """Sends from one spool through one gateway, or two."""

    def __init__(self, spool: Spool, name: str, gateway: Gateway, plan: SendPlan | None = None) -> None:
        self.spool, self.first, self.plan = spool, (name, gateway), plan or SendPlan()
        self._gone: set[str] = set()  # sent, but a broken disk kept them in the queue: not again

    @property
    def ways(self) -> list[tuple[str, Gateway]]:
        """The gateways in their order."""
        return [self.first, *([self.plan.second] if self.plan.second else [])]

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
                with self._listening():
                    left = self._send_until(end)
            # A text that came after our last look, while its own sender found the spool locked:
            if left or not self._waiting():
                return left

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """For receipts; where we cannot listen none is asked for, and that is told."""
        with contextlib.ExitStack() as stack:
            if self.plan.receipts is not None and self.first[1].receipts:
                try:
                    stack.enter_context(self.plan.receipts.listening())
                except OSError as error:
                    self.spool.log(problem=f"receipt_url: cannot listen: {error.strerror or error}")
                    print(f"failover_sms: receipt_url: cannot listen: {error.strerror or error}", file=sys.stderr)
            yield

    def _send_until(self, end: float) -> int:
        pause, again, seen = FIRST_PAUSE, 0.0, set[tuple[str, bool]]()
        while True:
            self._tend()
            waiting = self._waiting()
            known = {(text.key, text.unconfirmed) for text in waiting}
            if waiting and (known - seen or time.monotonic() >= again):
                seen |= known
                if self._send_all(waiting):
                    pause, again = FIRST_PAUSE, 0.0
                else:
                    again = time.monotonic() + min(pause, *self._until_overdue(waiting), LONGEST_PAUSE)
                    pause = min(2 * pause, LONGEST_PAUSE)
                waiting = self._waiting()
            if not waiting and not self.spool.count(AWAITED):
                return 0
            if time.monotonic() >= end:
                return len(waiting)
            time.sleep(LOOK)

    def _waiting(self) -> list[Text]:
        return [text for text in self.spool.pending() if text.key not in self._gone]

    # ------------------------------------------------------------ one pass

    def _send_all(self, waiting: Sequence[Text]) -> bool:
        """Each text once, as far as the limit allows; a gateway that does not take one is not asked for the others.

        The least tried first, so that one text that a gateway cannot digest does not hold up the others. False: a
        gateway did not take one, but may later.
        """
        down: set[str] = set()
        order = [
            text for text in sorted(waiting, key=lambda text: (text.attempts, text.at)) if not self._needless(text)
        ]
        now, rest = self._room(order)
        for text in now:
            self.send(text, down)
        for held in rest.values():
            if not down:
                self.send(self._digest(held), down)
        return not down

    def _needless(self, text: Text) -> bool:
        return not text.unconfirmed and self.spool.needless(text)

    def _room(self, order: Sequence[Text]) -> tuple[list[Text], dict[str, list[Text]]]:
        """The texts to send now; and those for which a digest has the last place, by number."""
        if not self.plan.limit:
            return list(order), {}
        since = time.time() - self.plan.window
        recent = [text for folder in (AWAITED, SENT) for text in self.spool.pending(folder, since)]
        sent = Counter(text.number for text in recent if text.gateway != DIGESTED and text.sent_at > since)
        now, by_number = [], defaultdict[str, list[Text]](list)
        for text in order:
            if text.digest or text.unconfirmed:
                now.append(text)
            else:
                by_number[text.number].append(text)
        held = {}
        for number, texts in by_number.items():
            room = max(0, self.plan.limit - sent[number])
            if len(texts) <= room:
                now += texts
            elif room:
                now += texts[: room - 1]
                held[number] = texts[room - 1 :]
        return now, held

    def _digest(self, held: Sequence[Text]) -> Text:
        """One text in place of several; written down before they leave the queue. A full disk: the newest of them."""
        newest = sorted(held, key=lambda text: text.at, reverse=True)
        minutes = max(1, round((time.time() - newest[-1].at) / 60))
        words = fit(f"{len(held)} more in {minutes} min: ", "; ".join(text.text for text in newest))
        number, now = held[0].number, time.time()
        made = Text(key_of(DIGESTED, number, *sorted(text.key for text in held)), number, words, now, digest=True)
        try:
            self.spool.put(made)
        except SpoolError:
            return newest[0]
        for text in held:
            self._settle(replace(text, gateway=DIGESTED, sent_at=now, problem=""), SENT)
            self.spool.log(number=number, text=text.text, gateway=DIGESTED, key=text.key)
        return made

    # ------------------------------------------------------------ one text

    def send(self, text: Text, down: set[str]) -> None:
        """Try the gateways whose turn it is, except those that are ``down``; one that does not take it joins them."""
        tried, ways, refused = text, self._turn(text), 0
        for name, gateway in ways:
            if name in down:
                continue
            receipts = self.plan.receipts if (name, gateway) == self.first and gateway.receipts else None
            token = receipts.token() if receipts else ""
            tried = replace(tried, attempts=tried.attempts + 1)
            try:
                gateway.send(text.text, text.number, receipts.url(token) if receipts else "")
            except GatewayError as error:
                tried = replace(tried, problem=str(error))
                self.spool.log(number=text.number, text=text.text, gateway=name, problem=str(error), key=text.key)
                if not error.permanent:
                    down.add(name)
                    continue
                refused += 1
                if self.plan.second is not None and self.plan.second not in ways:
                    ways.append(self.plan.second)
                continue
            now = time.time()
            self._settle(replace(tried, problem="", gateway=name, sent_at=now, token=token), AWAITED if token else SENT)
            waited = round(now - text.at, 3)
            self.spool.log(number=text.number, text=text.text, gateway=name, waited=waited, key=text.key)
            return
        if refused == len(ways):
            self._settle(tried, FAILED)
        elif tried.attempts > text.attempts:
            self.spool.update(tried)

    def _turn(self, text: Text) -> list[tuple[str, Gateway]]:
        if self.plan.second is None:
            return [self.first]
        if text.unconfirmed:
            return [self.plan.second]
        overdue = time.time() - text.at >= self.plan.patience
        return [self.first, self.plan.second] if overdue else [self.first]

    def _until_overdue(self, waiting: Sequence[Text]) -> list[float]:
        """Seconds until the next of these texts may go to the second gateway."""
        if self.plan.second is None:
            return []
        left = [text.at + self.plan.patience - time.time() for text in waiting]
        return [seconds for seconds in left if seconds > 0]

    def _tend(self) -> None:
        """Receipts that came, and those that did not come in time."""
        awaited = self.spool.pending(AWAITED)
        kinds = self.plan.receipts.take() if self.plan.receipts else {}
        for text in awaited:
            if not text.token:  # a full disk kept the old record, which knows of no receipt
                self._settle(text, SENT, AWAITED)
                continue
            kind = kinds.get(text.token, "")
            if not kind and time.time() - text.sent_at < self.plan.patience:
                continue
            self._receipt(replace(text, receipt=kind or f"no receipt in {self.plan.patience:.0f} s"), AWAITED)
        for text in self._waiting() if kinds else ():
            if text.unconfirmed and kinds.get(text.token) == DELIVERED:  # late, but before the second gateway had it
                self._receipt(replace(text, receipt=DELIVERED), QUEUE)

    def _receipt(self, text: Text, source: str) -> None:
        now = time.time()
        self.spool.log(
            number=text.number, gateway=text.gateway, receipt=text.receipt, key=text.key, after=round(now - text.at, 3)
        )
        if text.receipt == DELIVERED:
            self._settle(text, SENT, source)
        elif self.plan.second is not None:
            self._settle(replace(text, unconfirmed=True), QUEUE, source)
        else:  # refused by the network: for a person; silence is no proof of anything
            self._settle(text, SENT if text.receipt.startswith("no receipt") else FAILED, source)

    def _settle(self, text: Text, folder: str, source: str = QUEUE) -> None:
        if source == QUEUE:
            self._gone.add(text.key)
        try:
            self.spool.settle(text, folder, source)
        except SpoolError as error:
            print(f"failover_sms: sent, but still in the {source}: {error}", file=sys.stderr)
        else:
            self._gone.discard(text.key)


def sender(config: configuration.Config) -> SmsSender:
    """The sender of a config. Raises GatewayError when it names no gateway."""
    if config.sms is None:
        raise GatewayError(f"{config.path}: no [sms]: it says how texts leave")
    options, usual = config.sms, SendPlan()
    second = options.get("second")
    plan = SendPlan(
        second=None if second is None else (f"second {second['gateway']}", GATEWAYS[second["gateway"]](second)),
        patience=float(options.get("patience", usual.patience)),
        receipts=Receipts(options["receipt_url"]) if options.get("receipt_url") else None,
        limit=int(options.get("limit", 10)),
        window=float(options.get("limit_seconds", usual.window)),
    )
    name = str(options["gateway"])
    return SmsSender(Spool(spool_directory(config.controller.state_dir)), name, GATEWAYS[name](options), plan)


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
