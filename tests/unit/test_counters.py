"""What the NAT's counters say of a service of which few connections are watched, or none at all."""

from check_failover.model import Detector, Suspicion, Target
from check_failover.sniffer.bypass import AT_ONCE, Bypass
from check_failover.sniffer.stage1.traffic import TrafficMonitor
from tests.unit import packets as made
from tests.unit.test_monitor import Scene, hangs

EVERY = 0.1  # seconds between two readings
RATE = 50  # requests per second


def hang(traffic: TrafficMonitor, *, after: float = 2.0, seconds: float = 3.0) -> tuple[Suspicion | None, float]:
    """The counters at ``RATE``, answered until ``after``. Returns the first suspicion, and when it came after that."""
    asked = answered = 0
    for step in range(int((after + seconds) / EVERY)):
        now = 1000.0 + step * EVERY
        asked += int(RATE * EVERY)
        if step * EVERY < after:
            answered = asked
        suspicion = traffic.detect.forwarded(asked, answered, now)
        if suspicion is not None:
            return suspicion, now - 1000.0 - after
    return None, seconds


def test_a_hang_is_noticed_however_few_connections_are_watched() -> None:
    """Not one of them is watched here. Unsampled it takes 300 ms, as long as no reply time is known."""
    suspicion, took = hang(TrafficMonitor(made.service("ldap")))
    assert suspicion is not None
    assert suspicion.detector is Detector.UNANSWERED_REQUEST
    assert took <= 0.3 + 2 * EVERY
    assert suspicion.since is not None
    assert suspicion.since >= 1000.0 + 2.0


def test_the_patience_is_learned() -> None:
    """Replies that take half a second usually: two seconds without any are nothing yet."""
    traffic = TrafficMonitor(made.service("ldap"))
    for _ in range(200):
        traffic.detect.reply_times["search"].add(0.5)
    _, took = hang(traffic)
    assert 2.0 <= took <= 2.0 + 2 * EVERY


def test_a_refuted_suspicion_waits_longer() -> None:
    """And a flip begins anew."""
    traffic = TrafficMonitor(made.service("ldap"))
    suspicion, first = hang(traffic)
    assert suspicion is not None
    traffic.detect.refuted(suspicion.detector, 1003.0)
    _, second = hang(traffic)
    assert second > 1.5 * first
    traffic.flipped(1010.0)
    assert hang(traffic)[1] == first


def test_no_demand_and_too_few_requests_are_no_suspicion() -> None:
    """Nor are counters that begin anew, or that were not read for a while."""
    traffic = TrafficMonitor(made.service("ldap"))
    read = traffic.detect.forwarded
    for step in range(20):
        assert read(100, 90, 1000.0 + step * EVERY) is None
    for step in range(20):
        assert read(102, 90, 1002.0 + step * EVERY) is None
    assert read(150, 90, 1030.0) is None
    for step in range(20):
        assert read(step, 0, 1031.0 + step * EVERY * 10.1) is None


def seen(bypass: Bypass, captured: dict[str, int], asked: int) -> dict[str, str]:
    for name in bypass.suspects(captured):
        bypass.compare(name, asked, captured[name])
    return bypass.blind


def test_what_bypasses_the_capture_makes_blind() -> None:
    """Fifty requests and no frame; one frame, and it sees again. Nobody asks about a service that is captured."""
    bypass, frames = Bypass(), {"ldap": 0, "web": 0}
    assert bypass.suspects(frames) == ["ldap", "web"]
    frames["web"] = 7
    assert seen(bypass, frames, 1000) == {}
    assert seen(bypass, frames, 1049) == {}
    assert seen(bypass, frames, 1050).keys() == {"ldap"}
    assert seen(bypass, frames, 1099).keys() == {"ldap", "web"}
    frames["web"] = 8
    assert seen(bypass, frames, 1051).keys() == {"ldap"}
    assert bypass.suspects(frames | {"ldap": 1}) == ["web"]
    assert bypass.blind == {}


def test_a_frame_that_came_meanwhile_counts() -> None:
    """The counters are read a moment later than the frames."""
    bypass = Bypass()
    for asked in (0, 1000):
        bypass.suspects({"ldap": 0})
        bypass.compare("ldap", asked, captured=1)
    assert bypass.blind == {}


def test_a_thousand_quiet_services_take_turns() -> None:
    """Each comparison is about some of them."""
    bypass, frames = Bypass(), {f"s{n}": 0 for n in range(1000)}
    rounds = [bypass.suspects(frames) for _ in range(5)]
    assert {len(names) for names in rounds} == {AT_ONCE}
    assert {name for names in rounds for name in names} == set(frames)


def test_a_verdict_follows() -> None:
    """The suspicion goes the usual way: two probes, a verdict, though no connection was watched."""
    scene = Scene()
    scene.servers[Target.PRIMARY] = hangs
    monitor = scene.monitor
    for step in range(10):
        now = scene.now + step * EVERY
        monitor.suspect(monitor.traffic.detect.forwarded(5 * step, 0, now), now)
    scene.now = now
    scene.wait(1.0)
    assert monitor.failed
    assert monitor.target is Target.PRIMARY
