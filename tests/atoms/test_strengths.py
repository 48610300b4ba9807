"""A strength is checked in one way, wherever it comes from."""

import math

import numpy as np
import pytest

from sdatoms import AtomError
from sdatoms.atoms.strengths import (
    check_names,
    check_strength,
    list_blocks,
    parse_strength,
    read_strength,
    scale_strength,
    write_strength,
)

WRONG = [None, "1", True, [1.0], float("nan"), float("inf"), 1j, 10**400]


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


@pytest.mark.parametrize("block", ["", "UP", "middle", 0, None, "a\n*", ".", "*" * 201, "<b>.x"])
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


LAYERS = {
    "unet": [
        "conv_in",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q",
        "down_blocks.10.resnets.0.conv1",
        "mid_block.resnets.0.conv1",
        "up_blocks.0.resnets.0.conv1",
    ],
    "text_encoder": ["encoder.layers.0.mlp.fc1"],
    "text_encoder_2": ["encoder.layers.0.mlp.fc1"],
}


def read_all(strength):
    return [read_strength(strength, p, c) for c, paths in LAYERS.items() for p in paths]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.5", [0.5] * 8),
        ("down=0.2, mid=0, up=0.7", [0.2, 0.2, 0.2, 0.2, 0, 0.7, 1, 1]),
        ("down.1=0.5", [1, 0.5, 0.5, 1, 1, 1, 1, 1]),
        ("down_blocks.1=0.5, mid=0, *attn2*=0.8", [1, 0.5, 0.8, 1, 0, 1, 1, 1]),
        ("*attn2*=0.8, down_blocks.1=0.5", [1, 0.5, 0.5, 1, 1, 1, 1, 1]),
        ("0.3, text_encoder=2, up=1", [0.3] * 5 + [1, 2, 0.3]),
        ("unet=0, unet.up_blocks.0.resnets=1", [0] * 5 + [1, 1, 1]),
        ("text_encoder*.fc1=0", [1] * 6 + [0, 0]),
    ],
)
def test_the_last_name_of_a_layer_counts(text, numbers):
    strength = parse_strength(text, "it")
    assert read_all(strength) == numbers
    assert parse_strength(write_strength(strength), "it") == strength
    check_names(strength, LAYERS, "it")
    assert read_all(scale_strength(strength, 0.3)) == [n * 0.3 for n in numbers]
    assert scale_strength(strength, 1) == strength


def test_texts_hold_strengths_to_the_bit():
    for strength in (1 / 3, -1e-7, {"*": 0.1 + 0.2, "down.0": 1 / 7}, {"mid": 2.0, "*": 0.5}):
        again = parse_strength(write_strength(strength), "it")
        assert again == strength
        assert not isinstance(strength, dict) or list(again) == list(strength)


@pytest.mark.parametrize(
    "text", ["", "x", "mid=", "=1", "mid=x", "mid=1,", "mid=nan", "mid=1, mid=2", "1, 2", "midd=1"]
)
def test_texts_that_are_no_strength_are_refused(text):
    with pytest.raises(AtomError, match=r"^it ") as caught:
        parse_strength(text, "it")
    assert "\n" not in str(caught.value)


def test_names_of_no_layer_are_refused_with_the_blocks_there_are():
    with pytest.raises(AtomError, match=r"names 'down\.7', which none of its 8 layers is in"):
        check_names({"down.7": 1.0}, LAYERS, "it")
    blocks = {"conv_in": 1, "down.1": 2, "down.10": 1, "mid": 1, "up.0": 1}
    blocks |= {"text_encoder": 1, "text_encoder_2": 1}
    for order in (list, reversed):
        turned = {component: list(order(paths)) for component, paths in LAYERS.items()}
        assert list(list_blocks(turned).items()) == list(blocks.items())
