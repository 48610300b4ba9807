"""The form and the recipe are one thing: a picture restores the form that paints it."""

from dataclasses import replace

import gradio as gr
import numpy as np
import orjson
import pytest
from PIL import Image
from sdatoms_app.generate.form import (
    DEFAULTS,
    ROW,
    clean_settings,
    join_strength,
    make_order,
    restore_recipe,
    spread_strength,
)
from sdatoms_app.generate.layout import build_form, build_prompt
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.studio import Studio
from tiny.app import read_pixels

from sdatoms import AtomError
from sdatoms.atoms.strengths import read_strength
from sdatoms.cli.main import main
from sdatoms.diffusion.picture_file import read_embedded_atoms, read_recipe, save_picture


def pixels(kept):
    return read_pixels(kept.path)


def test_a_picture_restores_the_form_to_the_same_pixels(studio, paint, order):
    blocks = {"down": 0.3, "mid": -0.7, "up": 1.9}
    wanted = replace(
        order,
        negative_prompt="no",
        scheduler="Euler",
        schedule="karras",
        guidance_rescale=0.3,
        width=72,
        height=64,
        adapters=(("dog", 0.35), ("ink", blocks)),
    )
    kept = paint(wanted)[0]
    settings, remarks = restore_recipe(read_recipe(kept.path), studio)
    assert remarks == []
    again = paint(make_order(settings))[0]
    assert np.array_equal(pixels(again), pixels(kept)) and again.recipe == kept.recipe


def test_a_picture_of_two_passes_restores_the_form_too(studio, paint, order):
    kept = paint(replace(order, hires_scale=1.5, hires_steps=1, denoising_strength=0.5))[0]
    settings, remarks = restore_recipe(read_recipe(kept.path), studio)
    again = paint(make_order(settings))[0]
    assert remarks == [] and pixels(again).shape == (96, 96, 3)
    assert np.array_equal(pixels(again), pixels(kept)) and again.recipe == kept.recipe


STRENGTHS = [
    {"down": 0.5, "mid": 0.5, "up": 0.0},
    {"*": 0.5, "down": 0.25, "mid": -0.5, "up": 1.0},
    {"*": 0.3, "down": 0.1, "mid": 0.7, "up": 0.2},
    {"*": 0.0, "down": 0.25},
    {"mid": 0.0, "*": 0.5},
    {"down": 5.0, "up": 0.5},
    {"up.0": 1 / 3, "unet.conv_in": 0.0, "*resnets*": 1.7},
    0.35,
    -3.0,
]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_row_holds_every_strength_to_the_bit(strength):
    again = join_strength(ROW | {"id": "x"} | spread_strength(strength))
    paths = ["conv_in", "down_blocks.0.resnets.0.conv1", "mid_block.x", "up_blocks.0.y", "z"]
    for path in paths:
        assert read_strength(again, path, "unet") == read_strength(strength, path, "unet")


def test_a_picture_of_blocks_and_schedules_restores_the_form_to_the_same_pixels(
    studio, paint, order
):
    exact = {"*": 0.7, "up.0": 1 / 3, "*resnets*": 0.0}
    wanted = replace(order, adapters=(("dog", 0.9), ("ink", exact)), num_inference_steps=4)
    plain = paint(wanted)[0]
    wanted = replace(wanted, strength_schedules={"ink": "0 until 0.5, then 1"})
    kept = paint(wanted)[0]
    assert not np.array_equal(pixels(plain), pixels(kept))
    assert [used.schedule for used in kept.recipe.adapters] == ["", "0 until 0.5, then 1"]
    settings, remarks = restore_recipe(read_recipe(kept.path), studio)
    again = paint(make_order(settings))[0]
    assert remarks == [] and np.array_equal(pixels(again), pixels(kept))
    assert again.recipe == kept.recipe
    constant = paint(
        replace(wanted, strength_schedules={"ink": "1", "dog": "1 until 0.5, then 1"})
    )[0]
    assert np.array_equal(pixels(constant), pixels(plain))
    off = paint(replace(wanted, strength_schedules={"ink": "0", "dog": "0"}))[0]
    assert np.array_equal(
        pixels(off), pixels(paint(replace(wanted, adapters=(), strength_schedules={}))[0])
    )
    for schedules in ({"ink": "0 until 2"}, {"cat": "1"}):
        with pytest.raises(AtomError, match="schedule"):
            paint(replace(wanted, strength_schedules=schedules))


def test_an_embedded_atom_file_comes_back_with_its_picture(
    studio, paint, tiny_base, tmp_path, order
):

    kept = paint(replace(order, adapters=(("dog", 0.5),), embed=True))[0]
    fresh = Studio(str(tiny_base), Library(tmp_path / "library"), tmp_path / "outputs")
    recipe = read_recipe(kept.path)
    _, remarks = restore_recipe(recipe, fresh)
    assert len(remarks) == 1 and "dog" in remarks[0]
    for file in read_embedded_atoms(kept.path):
        fresh.library.add_file(file, "dog")
    settings, remarks = restore_recipe(recipe, fresh)
    again = next(iter(fresh.paint(make_order(settings))))
    assert remarks == [] and np.array_equal(pixels(again), pixels(kept))


def test_the_commands_pictures_paint_themselves_again_in_the_app(studio, tiny_base, tmp_path):
    atoms = studio.library.find("dog").path
    command = ["generate", "a (cat:1.2)", "--pretrained_model_name_or_path", str(tiny_base)]
    command += ["--num_inference_steps", "3", "--seed", "4", "--atoms", f"{atoms}=0.5,up.0=0.2"]
    command += ["--strength_schedule", "atoms=0 to 1 until 0.6, then 1"]
    main([*command, "--embed_atoms", "--output_dir", str(tmp_path)])
    path = next(tmp_path.glob("*.png"))
    settings, remarks = restore_recipe(read_recipe(path), studio)
    again = next(iter(studio.paint(make_order(settings))))
    assert remarks == [] and settings["adapters"][0]["id"] == "dog"
    with Image.open(path) as opened:
        assert np.array_equal(pixels(again), opened.convert("RGB"))
    assert [file.sha256 for file in read_embedded_atoms(path)] == [
        studio.library.find("dog").sha256
    ]


def test_a_picture_of_another_base_is_restored_with_a_warning(studio, paint, tmp_path):
    kept = paint()[0]
    prints = {path: [v[0] * 2, *v[1:]] for path, v in kept.recipe.base_fingerprint.items()}
    recipe = replace(kept.recipe, base_model="another", base_fingerprint=prints, scheduler="LMS")
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "p.png", recipe)
    settings, remarks = restore_recipe(read_recipe(path), studio)
    assert any("The base differs from the picture's (another)" in r for r in remarks)
    assert any("scheduler 'LMS' is not possible here" in r for r in remarks)
    assert settings["scheduler"] == "DDIM" and settings["seed"] == 3


def test_settings_from_anywhere_become_settings_the_form_takes(studio):
    wild = {
        "prompt": 3,
        "num_inference_steps": 1e9,
        "guidance_scale": float("inf"),
        "seed": True,
        "base": "../x",
        "unknown": 1,
        "adapters": [{"id": "nope"}, {"id": "dog", "strength": 99, "down": "x"}, 5],
    }
    clean, remarks = clean_settings(wild, studio)
    assert set(clean) == {*DEFAULTS, "adapters"} and len(remarks) >= 7
    assert clean["prompt"] == DEFAULTS["prompt"] and clean["base"] == studio.bases.list()[0].id
    row = {"id": "dog", "enabled": True, "strength": 2.0, "down": 1.0, "mid": 1.0, "up": 1.0}
    row |= {"by_block": "", "schedule": ""}
    assert clean["adapters"] == [row]
    clean["adapters"] = [row]
    assert make_order(clean).adapters == (("dog", 2.0),)
    row["enabled"] = False
    assert make_order(clean).adapters == ()
    row.update(enabled=True, strength=0.5, up=0.0)
    blocks = {"*": 0.5, "down": 0.5, "mid": 0.5, "up": 0.0}
    assert make_order(clean | {"adapters": [row]}).adapters == (("dog", blocks),)
    texts = {"id": "dog", "by_block": "mid=x", "schedule": "1 until 5"}
    clean, _ = clean_settings({"adapters": [texts]}, studio)
    assert clean["adapters"][0]["by_block"] == clean["adapters"][0]["schedule"] == ""
    assert clean["guidance_scale"] == studio.bases.find_guidance(clean["base"])
    for name in ("seed", "guidance_scale"):
        with pytest.raises(AtomError, match=f"the {name.replace('_', ' ')} is empty"):
            make_order(clean | {name: None})


@pytest.mark.filterwarnings("default")  # gradio's own warnings
def test_a_page_shows_from_the_start_what_filling_in_nothing_gives(studio):
    """So that a page without a past need not be filled in, part by part."""
    with gr.Blocks():
        form = build_form(studio, build_prompt().prompt)
    updates, remarks = form.fill({})
    assert not remarks
    for part, update in zip(form.outputs, updates, strict=True):
        if update == gr.skip():
            continue
        told = update if isinstance(update, gr.blocks.Block) else None
        wanted = told.value if hasattr(told, "value") else None if told else update
        assert (getattr(part, "value", None) or "") == (wanted or ""), part
        assert told is None or told.visible == part.visible


ODD = (None, True, "\ud800", [], ["a"], {}, 10**400, -(10**400), float("nan"), float("inf"))


@pytest.mark.parametrize("name", [*DEFAULTS, "adapters"])
def test_settings_of_any_kind_become_some_that_can_be_shown(studio, name):
    """They come from saved forms, pictures and browsers, which anybody may have filled."""
    for value in ODD:
        settings, remarks = clean_settings({name: value}, studio)
        assert orjson.dumps([settings, remarks])
        assert all(len(remark) < 200 for remark in remarks)


@pytest.mark.parametrize("name", ["id", *ROW])
def test_rows_of_any_kind_become_some_that_can_be_shown(studio, name):
    for value in ODD:
        rows = [{"id": "dog"} | {name: value}]
        settings, remarks = clean_settings({"adapters": rows}, studio)
        assert orjson.dumps([settings, remarks])
        make_order(settings)


@pytest.mark.parametrize("value", ["x", [], *ODD[:2], *ODD[6:]], ids=lambda value: str(value)[:9])
def test_a_form_without_a_number_is_refused(studio, value):
    settings, _ = clean_settings({"adapters": [{"id": "dog"}]}, studio)
    for name in ("guidance_scale", "seed", "hires_scale"):
        with pytest.raises(AtomError, match=rf"{name.replace('_', ' ')} is .*; give a number"):
            make_order(settings | {name: value})
    for name in ("strength", "mid"):
        with pytest.raises(AtomError, match=r"the strength of 'dog' is .*; give a number"):
            join_strength(settings["adapters"][0] | {name: value})
