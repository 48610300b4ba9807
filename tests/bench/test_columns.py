"""The constant of the choice between columns and weight is where measured layers change sides."""

import pytest

from sdatoms.bench.columns import SETTINGS, SIDES, fit_worth


def make_row(positions, channels, turn, picked):
    """A layer whose columns take a time that equals the weight's at `turn` positions a channel."""
    loads = {name: positions * SIDES[name] ** 2 / channels for name in SETTINGS}
    ways = {
        name: {"weight_ms": 1.0, "columns_ms": load / turn, "picked": picked}
        for name, load in loads.items()
    }
    return {"positions": positions, "channels": channels, **ways}


@pytest.mark.parametrize("turn", [0.2, 1.0, 6.0])
def test_the_constant_lies_between_layers_of_either_side(turn):
    rows = {n: make_row(n, 64, turn, "weight") for n in (2, 8, 32, 128, 512)}
    found = fit_worth({str(n): row for n, row in rows.items()})
    assert turn / 4 <= found["worth"] <= turn * 4
    assert found["longer"] == 1.0 < found["longer_today"]


def test_where_one_way_always_wins_the_constant_says_so():
    slow = {str(n): make_row(n, 64, 1e-6, "weight") for n in (1, 64)}
    assert fit_worth(slow) == {"worth": 0.0, "longer": 1.0, "longer_today": 1.0}
    fast = {str(n): make_row(n, 64, 1e6, "columns") for n in (1, 64)}
    assert fit_worth(fast)["worth"] >= 4.0
