"""Learned thresholds: how long a service usually takes, and from when on silence is worth a probe. Pure."""

from collections import deque
from dataclasses import dataclass, field

KNOWN = 100  # replies of an operation until its p99 counts
UNKNOWN_WAIT = 0.3  # seconds until then
MIN_WAIT = 0.1  # seconds
TIMES_P99 = 4  # a request without a reply is suspicious after so many times the usual longest reply
MANY = 10  # requests in a row without a reply: not all of these can be slow ones
SEVERAL = 3  # the same, where none of them got a byte for 4 * p50
ENCRYPTED_WAIT = 2.0  # seconds: the operation is not visible
SYN_MIN, SYN_MAX = 0.1, 0.5  # seconds
_RING = 512
_REFRESH = 32  # replies between two sorts
_DECAY = 120.0  # seconds until a doubled threshold has halved again
_MAX_SCALE = 64.0
ERRORS, ERROR_SHARE, MAX_ERROR_SHARE, ERRORS_LEAST = 100, 0.2, 0.9, 5
FIRST_AGAIN = 60.0  # seconds until another single error counts as a first one
SILENCE, SILENCE_GAPS = 60.0, 10.0  # seconds, usual gaps
STALE_READING = 1.0  # seconds between two readings of the NAT's counters after which they begin anew
_BURST = 1.0  # seconds: shorter gaps belong to one burst of traffic


@dataclass(slots=True, eq=False)
class ReplyTimes:
    """Reply times of one operation: p50 and p99 over the last 512."""

    _ring: deque[float] = field(default_factory=lambda: deque(maxlen=_RING))
    count: int = 0
    unanswered_run: int = 0  # requests since the server last sent payload for one of them
    run_began: float = 0.0
    p50: float | None = None  # None: no reply yet
    p99: float | None = None

    def add(self, seconds: float) -> None:
        self._ring.append(seconds)
        self.count += 1
        if self.count % _REFRESH == 0 or self.count in (1, 8, KNOWN):
            ordered = sorted(self._ring)
            self.p50 = ordered[(len(ordered) - 1) // 2]
            self.p99 = ordered[(len(ordered) * 99 - 1) // 100]  # nearest rank: of 100, the second largest

    def asked(self, now: float) -> None:
        """A request: it may be the first of a run without a reply."""
        if not self.unanswered_run:
            self.run_began = now
        self.unanswered_run += 1

    def usual(self) -> float:
        """Seconds within which most replies come: max(100 ms, 4 * p50), 300 ms until 100 replies are known."""
        return UNKNOWN_WAIT if self.count < KNOWN or self.p50 is None else max(MIN_WAIT, TIMES_P99 * self.p50)

    def wait(self, now: float = 0.0) -> float:
        """Seconds without a reply that raise a suspicion: max(100 ms, 4 * p99), 300 ms until 100 replies are known.

        After ``MANY`` unanswered requests in a row, or ``SEVERAL`` for that long, p50 replaces p99: one client with
        slow queries, or one that reads no replies, lifts p99 to seconds. This must not hide a server that answers none.
        """
        usual = self.usual()
        if self.count < KNOWN or self.p99 is None or self.unanswered_run >= MANY:
            return usual  # the maximum of a few replies is no estimate: one slow reply would hide a fault
        several = self.unanswered_run >= SEVERAL and now - self.run_began >= usual
        return usual if several else max(MIN_WAIT, TIMES_P99 * self.p99)


@dataclass(slots=True, eq=False)
class RoundTrip:
    """SRTT and RTTVAR of the handshakes (RFC 6298, section 2)."""

    _srtt: float | None = None
    _rttvar: float = 0.0

    def add(self, seconds: float) -> None:
        if self._srtt is None:
            self._srtt, self._rttvar = seconds, seconds / 2
        else:
            self._rttvar = 0.75 * self._rttvar + 0.25 * abs(self._srtt - seconds)
            self._srtt = 0.875 * self._srtt + 0.125 * seconds

    def wait(self) -> float:
        """Seconds without a SYN-ACK that raise a suspicion: SRTT + 4 * RTTVAR, within 100 and 500 ms."""
        if self._srtt is None:
            return SYN_MAX / 2
        return min(SYN_MAX, max(SYN_MIN, self._srtt + 4 * self._rttvar))


@dataclass(slots=True, eq=False)
class Scale:
    """A factor on a detector's threshold. Each refuted suspicion doubles it; it halves again in two minutes."""

    _value: float = 1.0
    _at: float = 0.0

    def double(self, now: float, least: float = 1.0) -> None:
        self._value = min(_MAX_SCALE, 2 * max(least, self.now(now)))
        self._at = now

    def now(self, now: float) -> float:
        if self._value == 1.0:
            return 1.0
        return max(1.0, self._value * float(0.5 ** (max(0.0, now - self._at) / _DECAY)))


@dataclass(slots=True, eq=False)
class Errors:
    """The last 100 replies. The first error raises a suspicion, and so does an error share of a fifth."""

    _last: deque[bool] = field(default_factory=lambda: deque(maxlen=ERRORS))
    _sum: int = 0
    _asked_at: float = float("-inf")  # of the last suspicion of a first error
    at: float = float("-inf")  # of the last reply

    def add(self, error: bool, now: float = 0.0) -> None:
        self.at = now
        if len(self._last) == ERRORS:
            self._sum -= self._last[0]
        self._last.append(error)
        self._sum += error

    def suspicious(self, now: float, scale: float) -> str | None:
        """The suspicion's text, after an error; None: no suspicion."""
        text = f"{self._sum} of the last {len(self._last)} replies are errors"
        if self._sum == 1 and now - self._asked_at >= FIRST_AGAIN * scale:
            self._asked_at = now
            return text
        most = min(MAX_ERROR_SHARE, ERROR_SHARE * scale)
        return text if self._sum >= ERRORS_LEAST and self.share >= most else None

    @property
    def share(self) -> float:
        return self._sum / len(self._last) if self._last else 0.0


@dataclass(slots=True, eq=False)
class Quiet:
    """Silence without demand: one probe after max(60 s, 10 * the usual gap), and none again until the next packet."""

    last: float | None = None  # time of the last packet
    probed: bool = False  # since that packet
    _usual: float = 0.0

    def traffic(self, now: float) -> None:
        gap = 0.0 if self.last is None else min(now - self.last, 4 * max(self._usual, SILENCE / SILENCE_GAPS))
        if gap >= _BURST:  # the gap is capped above: one long night must not become the usual gap
            self._usual = gap if not self._usual else 0.95 * self._usual + 0.05 * gap
        self.last = now
        self.probed = False

    def due(self, scale: Scale) -> float | None:
        """When the silence is due for a probe; None: no probe."""
        if self.last is None or self.probed:
            return None
        return self.last + max(SILENCE, SILENCE_GAPS * self._usual) * scale.now(self.last)


@dataclass(slots=True, eq=False)
class Counters:
    """The NAT's counters: requests forwarded since the last answer. They cover the connections that are not watched."""

    _read_at: float = float("-inf")
    _asked: int = 0  # when an answer was counted last
    _answered: int = -1
    since: float | None = None  # when a later request was seen first

    def read(self, asked: int, answered: int, now: float) -> tuple[int, float]:
        """(requests since the last answer, seconds since the first of them was seen)."""
        if answered != self._answered or asked < self._asked or now - self._read_at > STALE_READING:
            self._asked, self._answered, self.since = asked, answered, None
        elif self.since is None and asked > self._asked:
            self.since = now
        self._read_at = now
        return asked - self._asked, 0.0 if self.since is None else now - self.since
