"""Exponents of costs are those of the powers they grow by, along every axis."""

import pytest

from sdatoms.bench.growth import Point, fit_exponent, measure_axis, tabulate_growth

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(exponent):
    x = [10, 20, 50, 400]
    assert fit_exponent(x, [3 * value**exponent for value in x]) == pytest.approx(exponent)


def test_every_axis_has_its_own_costs():
    small = Point(width=16, side=8)
    axes = {
        "batch": [small, Point(width=16, side=8, batch=2)],
        "adapters": [small, Point(width=16, side=8, adapters=2)],
    }
    found = {name: measure_axis(name, points, 1, ("atoms",)) for name, points in axes.items()}
    assert [found[name]["x"] for name in axes] == [[1, 2], [1, 2]]
    batch, adapters = (found[name]["costs"] for name in axes)
    assert "step: atoms" in batch and "load: overcomplete" not in batch
    assert "step: atoms" not in adapters
    assert {"load: overcomplete", "strengths: coefficients", "clear: overcomplete"} < set(adapters)
    assert {"forward: bare", "forward: baked", "forward: attached, coefficients"} < set(batch)
    assert all(len(cost["seconds"]) == 2 for cost in (*batch.values(), *adapters.values()))
    table = tabulate_growth(found)
    assert "| cost | batch (1 to 2) | adapters (1 to 2) |" in table
    assert len(table.splitlines()) == 2 + len({**batch, **adapters})
