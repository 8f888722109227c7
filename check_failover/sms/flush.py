"""Sends the texts in the spool. The notification command starts it for each text, and a timer starts it again.

Only one sender runs at a time: a second one finds the spool locked and ends at once, because the first one checks for
new texts before it ends. While a gateway is down, the sender tries one text per pause, and the pause doubles; a new
text is tried at once. A sender runs for ``STAY`` seconds at most; the timer or the next text starts another one.

The second gateway gets a text that the first one refuses, that waits longer than ``patience``, or whose delivery fails
or is not confirmed within ``patience``. If more texts wait for one phone than its limit allows, a digest replaces them
and uses the last free place: "12 more in 5 min: " and the newest of them.
"""

import argparse
import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from check_failover import config as configuration
from check_failover.sms import GATEWAYS, Gateway, GatewayError
from check_failover.sms.receipts import DELIVERED, Receipts
from check_failover.sms.spool import AWAITED, FAILED, QUEUE, SENT, Spool, SpoolError, Text, key_of
from check_failover.sms.text import fit

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts at a gateway that is down
LOOK = 0.5  # seconds between two checks for new texts
STAY = 900.0  # seconds that a sender runs at most
DIGESTED = "digest"  # in place of the gateway's name: the text is part of a digest


@dataclass(frozen=True, slots=True)
class SendPlan:
    """Second gateway, receipts and rate limit. Times in seconds; README lists the config's defaults."""

    second: tuple[str, Gateway] | None = None
    patience: float = 120.0  # time limit for the first gateway, and for its receipt
    receipts: Receipts | None = None
    limit: int = 0  # texts for one phone within ``window``; 0: no limit
    window: float = 300.0


class SmsSender:
    """Sends the texts of one spool through one or two gateways."""

    def __init__(self, spool: Spool, name: str, gateway: Gateway, plan: SendPlan | None = None) -> None:
        self.spool, self.first, self.plan = spool, (name, gateway), plan or SendPlan()
        self._gone: set[str] = set()  # sent, but still in the queue after a disk error: do not send them again

    @property
    def ways(self) -> list[tuple[str, Gateway]]:
        """Names and gateways, the first one first."""
        return [self.first, *([self.plan.second] if self.plan.second else [])]

    def run(self, stay: float) -> int:
        """Send until the queue is empty or ``stay`` seconds passed (0: each text once). Returns how many still wait.

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
            # A text may have come after our last check; its own sender found the spool locked and ended.
            if left or not self._waiting():
                return left

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Listen for receipts; if that fails, log and print the error, and request no receipts."""
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

    def _send_all(self, waiting: Sequence[Text]) -> bool:
        """Try each text once, within the rate limit; a gateway that fails is skipped for the other texts.

        Texts with the fewest attempts come first, so that one text that a gateway rejects does not delay the others.
        False: a gateway failed temporarily.
        """
        down: set[str] = set()
        first = sorted(waiting, key=lambda text: (text.attempts, text.at))
        order = [text for text in first if text.unconfirmed or not self.spool.needless(text)]
        now, rest = self._room(order)
        for text in now:
            self.send(text, down)
        for held in rest.values():
            if not down:
                self.send(self._digest(held), down)
        return not down

    def _room(self, order: Sequence[Text]) -> tuple[list[Text], dict[str, list[Text]]]:
        """The texts to send now, and by number the texts that a digest in the last free place replaces."""
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
        """One text in place of several, stored before they leave the queue. On a full disk: the newest of them."""
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

    def send(self, text: Text, down: set[str]) -> None:
        """Try the gateways of this text's turn, except those in ``down``; a gateway that fails is added to ``down``."""
        tried, ways, refused = text, self._turn(text), 0
        for name, gateway in ways:
            if name in down:
                continue
            receipts = self.plan.receipts if (name, gateway) == self.first and gateway.receipts else None
            token = receipts.token() if receipts else ""
            tried = replace(tried, attempts=tried.attempts + 1)
            try:
                gateway.send(text.text, text.number, receipts.url(token) if receipts else "")
            except Exception as error:  # after a fault of ours too the other gateway and texts must have their turn
                known = isinstance(error, GatewayError)
                problem = str(error) if known else f"internal error: {type(error).__name__}: {error}"
                tried = replace(tried, problem=problem)
                self.spool.log(number=text.number, text=text.text, gateway=name, problem=problem, key=text.key)
                if not (isinstance(error, GatewayError) and error.permanent):
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
        """For each text that must still wait for the second gateway: how many seconds."""
        if self.plan.second is None:
            return []
        left = [text.at + self.plan.patience - time.time() for text in waiting]
        return [seconds for seconds in left if seconds > 0]

    def _tend(self) -> None:
        """Process the receipts that came, and those that did not come in time."""
        awaited = self.spool.pending(AWAITED)
        kinds = self.plan.receipts.take() if self.plan.receipts else {}
        for text in awaited:
            if not text.token:  # a full disk kept the old record, which has no token
                self._settle(text, SENT, AWAITED)
                continue
            kind = kinds.get(text.token, "")
            if not kind and time.time() - text.sent_at < self.plan.patience:
                continue
            self._receipt(replace(text, receipt=kind or f"no receipt in {self.plan.patience:.0f} s"), AWAITED)
        for text in self._waiting() if kinds else ():
            if text.unconfirmed and kinds.get(text.token) == DELIVERED:  # late, but before the second gateway got it
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
        else:  # refused by the network: a person must look; a missing receipt proves nothing
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
    """The sender for a config. Raises GatewayError if the config has no [sms]."""
    if config.sms is None:
        raise GatewayError(f"{config.path}: [sms] is missing: add it to configure the SMS gateway")
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
    return SmsSender(Spool(config.controller.state_dir / "spool"), name, GATEWAYS[name](options), plan)


def reach(config: configuration.Config) -> None:
    """Test spool and gateways with the rights of the calling user; sends nothing. Raises GatewayError."""
    one = sender(config)
    try:
        one.spool.try_writing()
    except SpoolError as error:
        raise GatewayError(f"cannot write into the spool: {error}: is this user in its group?") from None
    for name, gateway in one.ways:
        try:
            gateway.answers()
        except GatewayError as error:
            raise GatewayError(f"{name}: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Send the waiting texts: exit code 0 when all are sent, 1 when texts are left or the spool cannot be read."""
    parser = argparse.ArgumentParser(prog="failover_sms --flush", allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--config", default=configuration.DEFAULT_PATH)
    parser.add_argument("--stay", type=float, default=STAY, metavar="SECONDS", help="time limit (%(default)s)")
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
