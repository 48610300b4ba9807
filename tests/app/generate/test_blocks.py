"""The table of blocks and the text are one thing, and names out of files stay text."""

import re

import pytest
from sdatoms_app.generate.blocks import draw_blocks, set_block

from sdatoms import AtomError

BLOCKS = (("conv_in", 1), ("down.0", 12), ("mid", 4), ("up.1", 9), ("text_encoder", 24))


def read_sliders(text):
    html = draw_blocks(BLOCKS, text)
    return dict(
        re.findall(r'value="([^"]*)" data-block="([^"]*)"', html)[k][::-1] for k in range(5)
    )


def test_sliders_show_what_the_text_gives():
    shown = read_sliders("0.5, down=0.2, up_blocks.1=9, *attn2*=0, text_encoder=-0.3")
    assert shown == {
        "conv_in": "0.2",
        "down.0": "0.2",
        "mid": "0.5",
        "up.1": "2.0",
        "text_encoder": "-0.3",
    }
    assert set(read_sliders("").values()) == set(read_sliders("no text").values()) == {"1.0"}


@pytest.mark.parametrize(
    ("text", "block", "number", "after"),
    [
        ("", "mid", 0, "mid=0"),
        ("mid=0", "mid", 1, ""),
        ("mid=0, up.1=0.5", "mid", 0.25, "mid=0.25, up.1=0.5"),
        ("0.5, *attn2*=0.8", "down.0", 0.1, "0.5, down.0=0.1, *attn2*=0.8"),
        ("down=0.5", "down.0", 0.5, "down=0.5"),
        ("0.5", "text_encoder", 7, "0.5, text_encoder=2"),
    ],
)
def test_a_slider_changes_its_own_entry_alone(text, block, number, after):
    assert set_block(text, block, number, BLOCKS) == after
    assert float(read_sliders(after)[block]) == min(number, 2)


@pytest.mark.parametrize(
    ("block", "number"), [("x", 1), ("<b>", 1), ("mid", "1"), ("mid", None), ("mid", float("nan"))]
)
def test_what_a_page_cannot_send_is_refused(block, number):
    with pytest.raises(AtomError):
        set_block("", block, number, BLOCKS)


def test_names_are_escaped():
    assert "<img" not in draw_blocks((('"><img src=x>', 1),), "")


def test_files_are_listed_with_their_blocks(studio):
    blocks = dict(studio.library.find("dog").blocks)
    assert set(blocks) == {"conv_in", "down.0", "down.1", "mid", "up.0", "up.1", "conv_out"}
