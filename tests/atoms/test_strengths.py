"""A strength is checked in one way, wherever it comes from."""

import math

import numpy as np
import pytest

from sdatoms import AtomError
from sdatoms.atoms.strengths import check_strength, read_strength

WRONG = [None, "1", True, [1.0], float("nan"), float("inf"), 1j]


@pytest.mark.parametrize("strength", [0, 1, -2.5, np.float32(0.5), np.int64(3)])
def test_finite_numbers_become_plain_ones(strength):
    checked = check_strength(strength, "it")
    assert type(checked) is float
    assert checked == strength
    assert check_strength({"mid": strength}, "it") == {"mid": checked}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_finite_number_is_refused_in_one_sentence(wrong):
    for strength in (wrong, {"up": wrong}):
        with pytest.raises(AtomError, match=r"^the strength of 'dog' is .*takes a finite number$"):
            check_strength(strength, "the strength of 'dog'")


@pytest.mark.parametrize("block", ["", "UP", "middle", 0, None])
def test_blocks_are_down_mid_and_up(block):
    with pytest.raises(AtomError, match="blocks are down, mid and up"):
        check_strength({block: 1.0}, "it")


def test_untrusted_strengths_stay_one_line():
    with pytest.raises(AtomError) as caught:
        check_strength("a\n" * 1000, "it")
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_a_block_that_is_not_named_keeps_its_strength():
    table = {"down": 0.2, "up": 0.0}
    paths = {"conv_in": 0.2, "down_blocks.0.conv": 0.2, "mid_block.x": 1.0, "conv_out": 0.0}
    assert {path: read_strength(table, path) for path in paths} == paths
    assert read_strength(table, "layers.0") == 1.0
    assert math.isclose(read_strength(0.3, "conv_in"), 0.3)
