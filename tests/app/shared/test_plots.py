"""Curves as HTML: round ticks, every point in the frame, words that stay words."""

import math
import re

import pytest
from sdatoms_app.shared.plots import Line, draw_plot, find_ticks

HOSTILE = '"><script>alert(1)</script>'


def read_path(page, number=0):
    way = re.search(rf'class="line-{number}[^"]*" stroke-linecap="round" d="M([^"]+)"', page)[1]
    return [tuple(map(float, pair.split())) for pair in way.split("L")]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.0161), (-3, 1e6), (5, 5.5)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = find_ticks(low, high)
    assert 3 <= len(ticks) <= 7 and low <= ticks[0] + 1e-12 and ticks[-1] <= high + 1e-12
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize(("low", "high"), [(-3, 1), (-1.9, -1.2), (2.0, 2.05), (-30, 5)])
def test_logarithmic_ticks_are_inside_too(low, high):
    ticks = find_ticks(low, high, log=True)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= math.log10(tick) <= high + 1e-9 for tick in ticks)


def test_ticks_of_steps_are_whole():
    assert find_ticks(1, 3, whole=True) == [1, 2, 3]


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_where_their_values_are(log):
    points = [(0, 0.01), (50, 0.1), (100, 1.0)]
    drawn = read_path(draw_plot("Loss", [Line("", points)], log=log))
    assert [x for x, _ in drawn] == [0, 50, 100]
    middle = 50 if log else 100 * (1 - 0.09 / 0.99)
    assert [y for _, y in drawn] == pytest.approx([100, middle, 0], abs=0.01)


def test_one_point_and_no_point_and_equal_points_are_drawn():
    assert len(read_path(draw_plot("a", [Line("", [(3, 7.0)])]))) == 2
    assert {y for _, y in read_path(draw_plot("a", [Line("", [(0, 1.0), (9, 1.0)])]))} == {50}
    assert "<svg" not in draw_plot("a", [Line("", [])])
    assert "<svg" not in draw_plot("a", [Line("", [(1, 0.0)])], log=True)


def test_words_are_words_and_the_figure_is_read_aloud():
    page = draw_plot(HOSTILE, [Line(HOSTILE, [(1, 2.0), (4, 1.0)])])
    assert "<script" not in page and "&lt;script" in page
    assert "from 2 at step 1 to 1 at step 4" in page
    assert "<title>step 4: 1 " in page
