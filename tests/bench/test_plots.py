"""Plots are text that opens as SVG, whatever a method is called."""

import xml.etree.ElementTree as ET

from sdatoms.bench.plots import Point, draw_pareto, find_front

POINTS = [
    Point("<script>&\"'", "atoms", 10.0, 0.2),
    Point("worse", "peers", 100.0, 0.1),
    Point("better", "peers", 100.0, 0.5),
    Point("none", "peers", float("nan"), 0.5),
]


def test_the_front_holds_what_nothing_beats():
    assert [p.y for p in find_front(POINTS[:3])] == [0.2, 0.5]


def test_names_are_text_and_points_without_a_place_are_left_out():
    svg = draw_pareto(POINTS, "numbers <n>", "truth", logarithmic=True)
    root = ET.fromstring(svg)
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 3 and titles[0].startswith("<script>&\"'")
    assert "<script>" not in svg


def test_nothing_to_show_is_no_plot():
    assert draw_pareto([], "x", "y") == ""
