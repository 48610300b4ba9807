"""The form and the recipe are one thing: a picture restores the form that paints it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sdatoms_app.generate.form import DEFAULTS, clean_settings, make_order, restore_recipe
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.studio import Studio
from tiny.app import read_pixels

from sdatoms import AtomError
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
    command += ["--num_inference_steps", "2", "--seed", "4", "--atoms", f"{atoms}=0.5"]
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
    assert clean["adapters"] == [row]
    clean["adapters"] = [row]
    assert make_order(clean).adapters == (("dog", 2.0),)
    row["enabled"] = False
    assert make_order(clean).adapters == ()
    row.update(enabled=True, strength=0.5, up=0.0)
    blocks = {"down": 0.5, "mid": 0.5, "up": 0.0}
    assert make_order(clean | {"adapters": [row]}).adapters == (("dog", blocks),)
    with pytest.raises(AtomError, match="the seed is empty"):
        make_order(clean | {"seed": None})
