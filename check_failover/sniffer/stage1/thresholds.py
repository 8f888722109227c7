"""Learned waiting times: how long a service usually takes, and from when on it is worth a probe. Pure."""

from __future__ import annotations

from collections import deque

KNOWN = 100  # replies until an operation's p99 is trusted
UNKNOWN_WAIT = 0.3  # seconds until then
MIN_WAIT = 0.1  # seconds
MANY = 10  # requests in a row without a reply: these are not all the slow ones
ENCRYPTED_WAIT = 2.0  # seconds: nobody can see what was asked
SYN_MIN, SYN_MAX = 0.1, 0.5  # seconds
_RING = 512
_REFRESH = 32  # replies between two sorts
_DECAY = 120.0  # seconds in which a doubled threshold halves again
_MAX_SCALE = 64.0
ERRORS, ERROR_SHARE, MAX_ERROR_SHARE, ERRORS_LEAST = 100, 0.2, 0.9, 5
FIRST_AGAIN = 60.0  # seconds until a single error is "the first one" again
SILENCE, SILENCE_GAPS = 60.0, 10.0  # seconds, usual gaps
_BURST = 1.0  # seconds: shorter gaps are part of one conversation


class ReplyTimes:
    """Reply times of one operation: p50 and p99 over the last 512."""

    __slots__ = ("_p50", "_p99", "_ring", "count", "unanswered_run")

    def __init__(self) -> None:
        self._ring: deque[float] = deque(maxlen=_RING)
        self.count = 0
        self.unanswered_run = 0  # requests since the server last said anything to one of this operation
        self._p50 = self._p99 = 0.0

    def add(self, seconds: float) -> None:
        self._ring.append(seconds)
        self.count += 1
        if self.count % _REFRESH == 0 or self.count in (1, 8, KNOWN):
            ordered = sorted(self._ring)
            self._p50 = ordered[(len(ordered) - 1) // 2]
            self._p99 = ordered[(len(ordered) * 99 - 1) // 100]  # nearest rank: of 100, the second largest

    @property
    def p50(self) -> float | None:
        return self._p50 if self.count else None

    @property
    def p99(self) -> float | None:
        return self._p99 if self.count else None

    def wait(self) -> float:
        """Seconds without a reply that are suspicious: max(100 ms, 4 * p99), 300 ms until 100 replies are known.

        Where ``MANY`` in a row wait, p50 is the measure: one client with slow questions, two of a hundred, lifts p99 to
        seconds, and must not make us deaf to a server that answers nobody.
        """
        if self.count < KNOWN:
            return UNKNOWN_WAIT  # the largest of a few says nothing: one slow reply must not make us deaf
        return max(MIN_WAIT, 4 * (self._p50 if self.unanswered_run >= MANY else self._p99))


class RoundTrip:
    """SRTT and RTTVAR of the handshakes (RFC 6298, section 2)."""

    __slots__ = ("_rttvar", "_srtt")

    def __init__(self) -> None:
        self._srtt: float | None = None
        self._rttvar = 0.0

    def add(self, seconds: float) -> None:
        if self._srtt is None:
            self._srtt, self._rttvar = seconds, seconds / 2
        else:
            self._rttvar = 0.75 * self._rttvar + 0.25 * abs(self._srtt - seconds)
            self._srtt = 0.875 * self._srtt + 0.125 * seconds

    def wait(self) -> float:
        """Seconds without a SYN-ACK that are suspicious: SRTT + 4 * RTTVAR, within 100 and 500 ms."""
        if self._srtt is None:
            return SYN_MAX / 2
        return min(SYN_MAX, max(SYN_MIN, self._srtt + 4 * self._rttvar))


class Scale:
    """A factor on a detector's threshold: doubled by each refuted suspicion, halved again over two minutes."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value, self._at = 1.0, 0.0

    def double(self, now: float) -> None:
        self._value = min(_MAX_SCALE, 2 * self.now(now))
        self._at = now

    def now(self, now: float) -> float:
        if self._value == 1.0:
            return 1.0
        return max(1.0, self._value * float(0.5 ** (max(0.0, now - self._at) / _DECAY)))


class Errors:
    """The last 100 replies: the first error is worth a look, a fifth of them a suspicion."""

    __slots__ = ("_asked_at", "_last", "_sum")

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=ERRORS)
        self._sum = 0
        self._asked_at = float("-inf")  # of the last look at a first error

    def add(self, error: bool) -> None:
        if len(self._last) == ERRORS:
            self._sum -= self._last[0]
        self._last.append(error)
        self._sum += error

    def suspicious(self, now: float, scale: float) -> str | None:
        """What is wrong, after an error; None: nothing yet."""
        text = f"{self._sum} of the last {len(self._last)} replies are errors"
        if self._sum == 1 and now - self._asked_at >= FIRST_AGAIN * scale:
            self._asked_at = now
            return text
        most = min(MAX_ERROR_SHARE, ERROR_SHARE * scale)
        return text if self._sum >= ERRORS_LEAST and self.share >= most else None

    @property
    def share(self) -> float:
        return self._sum / len(self._last) if self._last else 0.0


class Quiet:
    """Silence with no demand: one look after max(60 s, 10 * the usual gap), and then none before the next packet."""

    __slots__ = ("_probed", "_usual", "last")

    def __init__(self) -> None:
        self.last: float | None = None  # when anybody last said anything
        self._usual = 0.0
        self._probed = False

    def traffic(self, now: float) -> None:
        gap = 0.0 if self.last is None else min(now - self.last, 4 * max(self._usual, SILENCE / SILENCE_GAPS))
        if gap >= _BURST:  # one long night does not make gaps usual, many of a kind do
            self._usual = gap if not self._usual else 0.95 * self._usual + 0.05 * gap
        self.last = now
        self._probed = False

    def due(self, scale: Scale) -> float | None:
        """When to look."""
        if self.last is None or self._probed:
            return None
        return self.last + max(SILENCE, SILENCE_GAPS * self._usual) * scale.now(self.last)

    def probed(self) -> None:
        self._probed = True
