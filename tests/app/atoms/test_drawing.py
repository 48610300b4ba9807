"""Drawings of atoms: colours that mean what they say, and words from files that stay words."""

import numpy as np
from sdatoms_app.atoms.drawing import (
    draw_budget,
    draw_heat_map,
    draw_likeness,
    draw_sheet,
    draw_table,
)

from sdatoms.adapters.changes import LayerChange
from sdatoms.files.contents import Budget
from sdatoms.files.likeness import Likeness

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def test_tiles_are_white_at_zero_and_full_at_the_scale():
    tiles = np.array([[[0.0, 1.0], [-1.0, 9.0]]])
    sheet = np.asarray(draw_sheet(tiles, 1.0).convert("RGB"))
    side = len(sheet) // 2
    zero, above = sheet[0, 0], sheet[0, side]
    below, far = sheet[side, 0], sheet[side, side]
    assert zero.tolist() == [255, 255, 255]
    assert above.tolist() == far.tolist() and above[0] > above[2]
    assert below[2] > below[0]


def test_sheets_of_nothing_trained_are_white():
    sheet = np.asarray(draw_sheet(np.zeros((9, 3, 3)), 0.0))
    assert (sheet[sheet[..., 3] > 0] == 255).all()
    assert sheet.shape[1] > sheet.shape[0]  # five a row, then four


def test_names_from_files_are_never_markup():
    change = LayerChange("unet", HOSTILE, HOSTILE, 0.1, 9)
    budget = Budget(100, 8, 50, 42, 2, 10, {})
    pages = [
        draw_heat_map([change]),
        draw_budget(budget, {"trigger": HOSTILE}),
        draw_likeness([HOSTILE], [[Likeness(1.0, 1, 1, True)]]),
        draw_table([HOSTILE], [[HOSTILE]]),
    ]
    for page in pages:
        assert "<script" not in page and "<img" not in page
        assert "&lt;script" in page


def test_every_layer_is_one_labelled_button():
    changes = [
        LayerChange("unet", f"down_blocks.{k}.conv", block, 0.01 * k, 9)
        for k, block in enumerate(("down", "mid", "up", "other"))
    ]
    page = draw_heat_map(changes)
    assert page.count("<button") == page.count('aria-label="down_blocks') == 4
    assert "3.00 %" in page and page.index("down block") < page.index("up block")


def test_likeness_tells_what_must_be_known():
    matrix = [[Likeness(1, 2, 2, True), Likeness(0, 0, 0, True)]] * 2
    assert "share no layer" in draw_likeness(["a", "b"], matrix)
    matrix = [[Likeness(1, 2, 2, True), Likeness(0.5, 2, 1, False)]] * 2
    page = draw_likeness(["a", "b"], matrix)
    assert "different bases" in page and "encoders differ" in page and "≈" in page
