"""When the sniffer asks the redirector itself: a core that is away, one that is silent, and one that has spoken."""

from __future__ import annotations

from check_failover.sniffer.core_watchdog import ALLOWED, ASK_INTERVAL, ORDER_INTERVAL, CoreWatchdog


def asked(watchdog: CoreWatchdog, moments: list[float], *, reachable: bool = True) -> list[tuple[float, str]]:
    """(moment, why) of each own order while a verdict stands."""
    whys = [(now, watchdog.due("ldap", now, failed=True, reachable=reachable)) for now in moments]
    return [(now, why) for now, why in whys if why]


def test_a_core_that_is_away_is_not_waited_for() -> None:
    """At once, and again while nobody answers; a local core that took the verdict is never passed over."""
    assert asked(CoreWatchdog(None), [100.0, 100.1, 100.0 + ORDER_INTERVAL], reachable=False) == [
        (100.0, "the core is away"),
        (100.0 + ORDER_INTERVAL, "the core is away"),
    ]
    assert asked(CoreWatchdog(None), [100.0, 200.0, 90000.0]) == []


def test_a_core_that_is_silent_has_a_deadline() -> None:
    """It took the verdict and nothing came back; the deadline begins with the verdict, and anew with the next one."""
    watchdog = CoreWatchdog(5.0)
    assert asked(watchdog, [100.0, 104.9, 105.0, 105.1]) == [(105.0, "the core is silent")]
    assert watchdog.due("ldap", 106.0, failed=False, reachable=True) is None
    assert asked(watchdog, [107.0, 111.9, 112.0]) == [(112.0, "the core is silent")]


def test_a_core_that_has_spoken_is_obeyed() -> None:
    """An order that was refused is the core's word, away or not; one about an earlier fault says nothing."""
    watchdog = CoreWatchdog(5.0)
    watchdog.order_refused("ldap", 50.0)
    watchdog.order_refused("dns", 101.0)
    assert asked(watchdog, [100.0, 105.0]) == [(105.0, "the core is silent")]
    watchdog.order_refused("ldap", 105.1)
    assert asked(watchdog, [108.0, 120.0]) == []
    assert asked(watchdog, [121.0], reachable=False) == []


def test_the_cores_own_check_may_be_faster_than_the_verdict() -> None:
    """Its order came just before the sniffer was sure: that is about this fault."""
    watchdog = CoreWatchdog(5.0)
    watchdog.order_refused("ldap", 98.0)
    assert asked(watchdog, [100.0, 110.0]) == []


def test_what_was_said_of_an_earlier_fault_is_over() -> None:
    """A refusal just before a flip and a fail-back says nothing of the fault that follows them at once."""
    watchdog = CoreWatchdog(5.0)
    watchdog.order_refused("ldap", 99.0)
    watchdog.target_changed("ldap")
    assert asked(watchdog, [100.0, 105.0]) == [(105.0, "the core is silent")]


def test_an_order_about_another_server_decides_nothing() -> None:
    """A core repeats its order about the primary, which was left long ago; the standby's fault is not decided by it."""
    watchdog = CoreWatchdog(5.0)
    watchdog.order_refused("ldap", 101.0, "already-there")
    assert asked(watchdog, [100.0, 105.0]) == [(105.0, "the core is silent")]


def test_what_is_set_in_the_core_is_asked_for_again() -> None:
    """A downtime or handlers that are off: the sniffer asks again while refusal and fault stand."""
    for reason in ("downtime", "handlers-off"):
        watchdog = CoreWatchdog(5.0)
        watchdog.order_refused("ldap", 101.0, reason)
        later = [101.0 + ASK_INTERVAL, 101.0 + 2 * ASK_INTERVAL]
        assert asked(watchdog, [100.0, 105.9, later[0], later[0] + 0.1, later[1]]) == [(at, ALLOWED) for at in later]
        assert watchdog.since_refusal("ldap", 111.0) == 10.0
        watchdog.order_refused("ldap", 112.0, "hold")
        assert asked(watchdog, [130.0, 140.0]) == []
