"""Intervals of paired differences: known cases."""

import math

import numpy as np
import pytest

from sdatoms.bench.intervals import measure_interval


def test_what_never_varies_has_no_width():
    assert measure_interval(np.full((4, 5, 3), 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_one_factor_of_normal_numbers_has_the_textbook_s_interval():
    values = np.random.default_rng(0).normal(1.0, 2.0, (1, 400, 1))
    found = measure_interval(values)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)


def test_a_gain_on_some_subjects_alone_is_no_gain_for_all():
    values = np.zeros((4, 50, 3))
    values[0] = 1.0
    # The draws reach 0; of three seeds they are spread by √(3/2) about the mean.
    least = pytest.approx(0.25 * (1 - math.sqrt(1.5)))
    assert measure_interval(values).low == least
    assert measure_interval(values.transpose(1, 0, 2)).low == least  # whichever factor it is


def test_what_is_absent_is_left_out():
    values = np.full((3, 4, 2), 0.5)
    values[1, 2:] = np.nan
    assert measure_interval(values) == pytest.approx((0.5, 0.5, 0.5))
    assert math.isnan(measure_interval(np.full((2, 2, 2), np.nan)).mean)
