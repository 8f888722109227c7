"""What an order's answer does not wait for: done in order, bounded, and finished at the end."""

from __future__ import annotations

import threading

import pytest

from check_failover.redirector import RedirectError, afterwards
from check_failover.redirector.afterwards import Afterwards


def test_jobs_are_done_in_their_order_and_one_that_fails_stops_none() -> None:
    """A result that cannot be composed is logged; the later ones are sent, the last before ``close`` returns."""
    done: list[int] = []

    def fails(error: Exception) -> None:
        raise error

    jobs = Afterwards()
    for number in range(50):
        jobs.submit(lambda number=number: done.append(number))  # type: ignore[misc]
        jobs.submit(lambda number=number: fails(RedirectError("no") if number % 2 else KeyError("own")))  # type: ignore[misc]
    jobs.close()
    assert done == list(range(50))


def test_it_is_bounded_and_never_blocks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """While a job hangs only so many wait; one too many is left out, and that is logged."""
    monkeypatch.setattr(afterwards, "LIMIT", 3)
    done: list[int] = []
    going_on, hang = threading.Event(), threading.Event()
    jobs = Afterwards()
    jobs.submit(lambda: (going_on.set(), hang.wait(10.0), None)[-1])
    assert going_on.wait(10.0)
    for number in range(5):
        jobs.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    hang.set()
    jobs.close()
    assert done == [0, 1, 2]
    assert caplog.text.count("is left out") == 2


def test_a_look_that_waits_is_enough() -> None:
    """Of jobs with one name only one waits; once it runs the next may come."""
    done: list[str] = []
    going_on, hang = threading.Event(), threading.Event()
    jobs = Afterwards()
    jobs.submit(lambda: (going_on.set(), hang.wait(10.0), None)[-1], only="ldap")
    assert going_on.wait(10.0)
    for name in ("ldap", "ldap", "dns"):
        jobs.submit(lambda name=name: done.append(name), only=name)  # type: ignore[misc]
    hang.set()
    jobs.close()
    assert done == ["ldap", "dns"]


def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A job that hangs at the end is given up, and what is lost is logged."""
    monkeypatch.setattr(afterwards, "LAST_WORD", 0.1)
    hang = threading.Event()
    jobs = Afterwards()
    jobs.submit(lambda: (hang.wait(10.0), None)[-1])
    jobs.close()
    assert "are lost" in caplog.text
    hang.set()
