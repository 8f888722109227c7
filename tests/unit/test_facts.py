"""Facts as perfdata: what the sniffer's result carries to the core, and the core's handler to the redirector."""

from __future__ import annotations

import pytest

from check_failover.model import Detector, Facts

# On the wire between programs, and in the databases of sites that graph it.
NUMBERS = {
    "refused": 0,
    "unanswered-syn": 1,
    "unanswered-request": 2,
    "retransmission": 3,
    "error-share": 4,
    "silence": 5,
    "core": 6,
}


def test_the_numbers_of_the_detectors_are_fixed() -> None:
    """Each detector has the number that results of earlier versions carry."""
    assert {str(detector): detector.number for detector in Detector} == NUMBERS


@pytest.mark.parametrize(("word", "number"), NUMBERS.items())
def test_a_detector_travels_as_its_number(word: str, number: int) -> None:
    """Facts become perfdata with the detector's number, and the number becomes the detector again."""
    perfdata = Facts(Detector(word), probes=2, probes_failed=2).perfdata()
    assert f"detector={number} " in perfdata
    assert Facts.parse(perfdata).detector is Detector(word)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "7", "-1", "1.5", "x", ""])
def test_a_number_that_means_nothing_leaves_the_fact_unknown(value: str) -> None:
    """Perfdata comes through the core's macros: a value that is no finite number is as if it were missing."""
    facts = Facts.parse(f"detector={value} probes=2")
    assert facts.detector is None
    assert facts.probes == 2
    if value in ("nan", "inf", "-inf", "1e999", "x", ""):
        assert Facts.parse(f"probes={value} sync_age={value}s evidence={value}") == Facts()
