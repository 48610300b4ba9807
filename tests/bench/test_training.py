"""Figures of training steps are taken of methods in turn, and of bases in 16 bits."""

import pytest

from sdatoms.bench.base_dtype import measure_config
from sdatoms.bench.process import call_apart
from sdatoms.bench.training import ALL, measure_beside, measure_method

pytestmark = pytest.mark.usefixtures("one_thread")


def test_methods_in_turn_are_compared_with_the_lora_on_their_layers():
    rows = measure_beside("bundled", ["product, b = 16", ALL], 1)
    own, lora = (rows[name]["core_seconds_per_step"] for name in ("product, b = 16", ALL))
    assert rows["product, b = 16"]["to_lora"]["core_seconds_per_step"] == round(own / lora, 3)
    assert "to_lora" not in rows[ALL]


@pytest.mark.slow
def test_a_lean_step_holds_the_base_in_16_bits():
    row = call_apart(measure_method, "bundled", "overcomplete", 1, True, threads=1)
    assert row["lean"] and row["parameters"] > 0 and row["peak_bytes"] > 0


@pytest.mark.slow
def test_every_way_to_add_a_change_gives_float32_s_gradient():
    rows = measure_config("overcomplete", 0.03)
    assert rows["float32"]["gradient_cosine"] == pytest.approx(1, abs=1e-3)
    assert rows["float32"]["change_error"] == 0
    assert all(row["gradient_cosine"] > 0.99 for row in rows.values())
    assert all(0.05 < row["change_error"] < 0.6 for way, row in rows.items() if way != "float32")
