"""``failover-sniffer --pcap FILE``: run the detection over a capture file and print each decision with its reason.

For tuning, support and tests. The clock is the capture's. Probes into the past are impossible, so their outcome is
assumed. By default the primary's probes fail and the standby's pass: then only the traffic can veto a fail-over.
``--assume-primary passes`` shows how many probes a healthy server would have received.

scapy reads the file: pcap or pcapng, any byte order; Ethernet, Linux cooked or raw IP.
"""

import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from check_failover.config import Config
from check_failover.decide import FAIL_OVER, Situation, decide
from check_failover.model import Facts, PassiveResult, Probe, Service, Target
from check_failover.sniffer.capture import CaptureError
from check_failover.sniffer.capture.bpf import SNAPLEN
from check_failover.sniffer.monitor import Condition, ServiceMonitor
from check_failover.sniffer.stage1.packet import ETHERNET, LINUX_SLL, RAW_IP, parse

ANSWER = 0.005  # seconds that an assumed passing probe takes
TAIL = 5.0  # seconds that the clock runs after the last packet
_LINKTYPES = {1: ETHERNET, 12: RAW_IP, 101: RAW_IP, 228: RAW_IP, 229: RAW_IP, 113: LINUX_SLL}


class Replay:
    """One pass over a file. Implements ``monitor_actions.Actions``: probes are assumed, lines go to ``say``."""

    def __init__(self, config: Config, say: Callable[[str], None], *, primary_passes: bool, begin: float) -> None:
        self._say, self._primary_passes = say, primary_passes
        self.now = self._begin = begin
        self._later: list[tuple[float, int, Service, Target, Probe]] = []
        self._numbers = itertools.count()
        self.probes = 0
        self.monitors = [ServiceMonitor(service, self, begin) for service in config.services]
        for monitor in self.monitors:
            monitor.probed(Target.STANDBY, Probe(True, ANSWER, "assumed to pass"), begin)

    def frame(self, frame: bytes, at: float, linktype: int) -> None:
        """Feed one captured frame to the monitors."""
        self.run_to(at)
        packet = parse(frame, at, linktype)
        if packet is not None:
            for monitor in self.monitors:
                monitor.packet(packet, frame)

    def run_to(self, moment: float) -> None:
        """Do everything that is due before ``moment``."""
        while True:
            due = min(monitor.deadline(self.now) for monitor in self.monitors)
            if self._later:
                due = min(due, self._later[0][0])
            if due > moment:
                break
            self.now = max(self.now, due)
            while self._later and self._later[0][0] <= self.now:
                _, _, service, target, probe = heapq.heappop(self._later)
                next(s for s in self.monitors if s.service is service).probed(target, probe, self.now)
            for monitor in self.monitors:
                monitor.tick(self.now)
            if due <= self.now and moment - self.now < 1e-9:
                break
            self.now = min(moment, self.now + 0.001)
        self.now = max(self.now, moment)

    # ------------------------------------------------------------ Actions

    def probe(self, service: Service, target: Target, timeout: float) -> None:
        passes = target is Target.STANDBY or self._primary_passes
        took = ANSWER if passes else timeout
        text = "assumed to pass" if passes else "assumed: no answer in time"
        self.probes += target is Target.PRIMARY
        heapq.heappush(self._later, (self.now + took, next(self._numbers), service, target, Probe(passes, took, text)))

    def report(self, result: PassiveResult) -> None:
        """Print nothing: ``note`` prints the verdicts."""

    def facts(self, service: Service, facts: Facts) -> None: ...

    def keep(self, service: Service, story: dict[str, object]) -> int | None:
        return None

    def note(self, text: str, level: int = logging.INFO) -> None:
        if level < logging.INFO:
            return
        self._say(f"{self.now - self._begin:12.6f}  {text}")
        for monitor in self.monitors:
            facts = monitor.last_facts()
            if ": verdict: " in text and text.startswith(f"{monitor.service.name}:") and facts is not None:
                self._decide(monitor, facts)

    def sync(self, service: Service, facts: Facts) -> Facts:
        return facts

    def _decide(self, monitor: ServiceMonitor, facts: Facts) -> None:
        policy = monitor.service.policy
        decision = decide(FAIL_OVER, facts, policy, Situation(Target.PRIMARY))
        word = "would fail over" if decision.flip else f"would refuse, {decision.reason}"
        self._say(f"{self.now - self._begin:12.6f}  {monitor.service.name}: {word}: {decision.text}")

    def summary(self) -> Iterator[str]:
        """The final lines: what was seen of each service, and the number of probes."""
        for monitor in self.monitors:
            stats = monitor.traffic.stats(self.now)
            gap = "" if stats.p99 is None else f", 99 % of replies within {1000 * stats.p99:.1f} ms"
            state = "failed" if monitor.condition is Condition.FAILED else "ok"
            yield f"{monitor.service.name}: {stats.requests} requests, {stats.replies} replies{gap}; {state} at the end"
        yield f"probes of the primary that would have been made: {self.probes}"


def run(config: Config, path: Path, speed: float | None, *, primary_passes: bool) -> None:
    """Print the replay of a file; ``speed`` 1 is real time, None as fast as possible. Raises CaptureError."""
    replay: Replay | None = None
    real = time.monotonic()
    frames = cut = 0
    for frame, size, at, linktype in _frames(path):
        frames, cut = frames + 1, cut + (len(frame) < min(size, SNAPLEN))
        if replay is None:
            replay = Replay(config, print, primary_passes=primary_passes, begin=at)
            first = at
        if speed is not None:
            time.sleep(max(0.0, (at - first) / speed - (time.monotonic() - real)))
        replay.frame(frame, max(at, replay.now), linktype)
    if replay is None:
        raise CaptureError(f"{path}: no packets in it")
    replay.run_to(replay.now + TAIL)
    print("\n".join(replay.summary()))
    if cut:
        print(f"{cut} of {frames} packets are cut, their payload is not in the file: capture with tcpdump -s 0")


def _frames(path: Path) -> Iterator[tuple[bytes, int, float, int]]:
    """Yields each frame with its length on the wire, its Unix time and its link type."""
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    try:
        with RawPcapReader(str(path)) as reader:
            ng = isinstance(reader, RawPcapNgReader)
            for data, meta in reader:
                kind = getattr(meta, "linktype", None) if ng else reader.linktype
                if kind not in _LINKTYPES:
                    raise CaptureError(f"{path}: link type {kind} is not supported: capture on an Ethernet interface")
                at = _ng_time(meta) if ng else meta.sec + meta.usec / (1e9 if reader.nano else 1e6)
                yield bytes(data), getattr(meta, "wirelen", None) or len(data), at, _LINKTYPES[kind]
    except OSError as error:
        raise CaptureError(f"{path}: cannot read: {error.strerror or error}") from None
    except (Scapy_Exception, EOFError, ValueError, TypeError) as error:
        raise CaptureError(f"{path}: not a capture file that can be read: {error}") from None


def _ng_time(meta: object) -> float:
    high, low = getattr(meta, "tshigh", 0) or 0, getattr(meta, "tslow", 0) or 0
    return float((high << 32) + low) / float(getattr(meta, "tsresol", 0) or 1_000_000)
