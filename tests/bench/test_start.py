"""What waiting is measured by: processes of their own, until something is there."""

import os

import pytest

from sdatoms.bench.start import measure_help, read_seconds, take_medians, time_process


def test_help_is_measured_by_clock_and_processor():
    found = measure_help(1)
    assert 0 < found["cpu_seconds"] and 0 < found["seconds"]


def test_a_process_that_fails_is_no_figure():
    with pytest.raises(RuntimeError, match="ended with code 3"):
        time_process(["-c", "raise SystemExit(3)"])


def test_medians_are_of_each_figure():
    waits = [{"seconds": s, "cpu_seconds": 10 - s} for s in (1.0, 5.0, 2.0)]
    assert take_medians(waits) == {"seconds": 2.0, "cpu_seconds": 8.0}


def test_a_running_process_has_used_some_seconds():
    assert 0 < read_seconds(os.getpid()) <= sum(os.times()[:2]) + 1
