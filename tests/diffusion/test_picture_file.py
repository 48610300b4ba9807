"""Pictures that carry how they were made: written, read back, and read from strangers."""

import io
import json
from dataclasses import replace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdatoms import AtomError, read_atoms
from sdatoms.diffusion.picture_file import read_embedded_atoms, read_recipe, save_picture
from sdatoms.diffusion.recipe import (
    Recipe,
    UsedAtoms,
    compare_recipe,
    format_parameters,
    list_versions,
    parse_parameters,
)

PRINTS = {"conv_in": [1.0, 0.5, -0.5, 0.25]}
RECIPE = Recipe(
    prompt="a cat, (sitting:1.2)\non a mat 猫",
    negative_prompt="blurry, bad",
    seed=7,
    num_inference_steps=12,
    guidance_scale=4.5,
    scheduler="Euler a",
    schedule="sgm_uniform",
    clip_skip=2,
    guidance_rescale=0.5,
    width=64,
    height=96,
    base_model="emoji-sd",
    base_fingerprint=PRINTS,
    adapters=(
        UsedAtoms("dog", "ab" * 32, 0.7, "sks dog"),
        UsedAtoms('x: "y"', "cd" * 32, {"down": 0.0, "mid": 1.0, "up": 1 / 3}),
        UsedAtoms("ink", "ab" * 32, {"*": 0.1, "down.1": 2.0}, "", "0 to 1 until 0.4, then 1"),
    ),
    denoising_strength=0.6,
    init_sha256="ef" * 32,
    versions=list_versions(),
)
PICTURE = Image.new("RGB", (8, 8), "red")


def write(path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    PICTURE.save(path, "PNG", pnginfo=info)
    return path


def test_a_recipe_survives_its_picture(tmp_path):
    path = save_picture(PICTURE, tmp_path / "p.png", RECIPE)
    assert read_recipe(path) == RECIPE
    assert read_embedded_atoms(path) == []
    with Image.open(path) as opened:
        assert opened.convert("RGB").tobytes() == PICTURE.tobytes()


def test_the_text_is_what_a1111_reads():
    text = format_parameters(RECIPE)
    lines = text.split("\n")
    assert lines[2] == "Negative prompt: blurry, bad"
    assert lines[3].startswith(
        "Steps: 12, Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 4.5, Seed: 7, "
    )
    assert ", Size: 64x96, " in lines[3]
    assert "Denoising strength: 0.6" in lines[3] and 'Atoms: "dog: 0.7, ' in lines[3]
    back = parse_parameters(text)
    for name in ("prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale"):
        assert getattr(back, name) == getattr(RECIPE, name)
    assert (back.width, back.height, back.scheduler) == (64, 96, "Euler a")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_blur": 4.0, "mask_sha256": "0a" * 32}, "Mask blur: 4"),
        (
            {"hires_scale": 1.5, "hires_steps": 9, "init_sha256": None},
            "Hires upscale: 1.5, Hires steps: 9, Hires upscaler: Lanczos",
        ),
        ({"batch_size": 4, "batch_position": 2}, "Batch size: 4, Batch pos: 2"),
    ],
)
def test_more_ways_of_painting_are_said_in_a1111s_words(tmp_path, changes, said):
    recipe = replace(RECIPE, **changes)
    text = format_parameters(recipe)
    assert "Denoising strength: 0.6," in text and f", {said}," in text
    back = parse_parameters(text)
    assert all(getattr(back, k) == v for k, v in changes.items() if "sha256" not in k)
    assert read_recipe(save_picture(PICTURE, tmp_path / "p.png", recipe)) == recipe


def test_pictures_of_other_tools_are_read(tmp_path):
    text = (
        "masterpiece, cat\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 42, Size: 512x768, Model: sd15, "
        'Lora hashes: "a: 1, b: 2", Version: v1.9.3'
    )
    recipe = read_recipe(write(tmp_path / "a.png", parameters=text))
    assert recipe == Recipe(
        "masterpiece, cat", "dog", 42, 20, 7.0, "DPM++ 2M", 512, 768, base_model="sd15"
    )
    assert read_recipe(write(tmp_path / "b.png", parameters="only words")).prompt == "only words"
    assert read_recipe(write(tmp_path / "c.png", Comment="x")) is None


@pytest.mark.parametrize(
    ("body", "prompt", "negative"),
    [
        ("a sign: Negative prompt: none", "a sign: Negative prompt: none", ""),
        (
            "a sign: Negative prompt: none\nNegative prompt: dog",
            "a sign: Negative prompt: none",
            "dog",
        ),
        (
            "cat\n  Negative prompt:dog, Negative prompt: x\nbad",
            "cat",
            "dog, Negative prompt: x\nbad",
        ),
        ("cat\nNegative prompt: dog\nNegative prompt: ink", "cat", "dog\nink"),
        ("cat\non a mat", "cat\non a mat", ""),
        ("Negative prompt: dog", "", "dog"),
    ],
)
@pytest.mark.parametrize("end", ["", "\nSteps: 20, Seed: 42, Sampler: DDIM"])
def test_the_negative_prompt_starts_a_line(body, prompt, negative, end):
    recipe = parse_parameters(body + end)
    assert (recipe.prompt, recipe.negative_prompt) == (prompt, negative)
    assert recipe.seed == (42 if end else 0)


def test_quoted_settings_are_read():
    recipe = replace(RECIPE, base_model="a, b: c.safetensors", scheduler='E "uler", a')
    back = parse_parameters(format_parameters(recipe))
    assert (back.base_model, back.scheduler) == (recipe.base_model, recipe.scheduler)


def test_atom_files_ride_inside_and_come_out_whole(tmp_path, make_file):
    files = [read_atoms(make_file(name, seed)) for seed, name in enumerate(("dog", "ink"))]
    path = save_picture(PICTURE, tmp_path / "p.png", RECIPE, files)
    assert [file.sha256 for file in read_embedded_atoms(path)] == [file.sha256 for file in files]
    assert read_recipe(path) == RECIPE


@pytest.mark.parametrize("body", [b"\x80\x04K\x01.", b"", b"\xff" * 64])
def test_embedded_files_that_are_no_atom_files_are_refused(tmp_path, body):
    info = PngInfo()
    info.add(b"saTm", body)
    path = tmp_path / "evil.png"
    PICTURE.save(path, "PNG", pnginfo=info)
    with pytest.raises(AtomError):
        read_embedded_atoms(path)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 3},
        {"seed": "1"},
        {"seed": True},
        {"guidance_scale": float("nan")},
        {"guidance_scale": 10**400},
        {"adapters": [{"name": "a", "strength": 10**400}]},
        {"base_fingerprint": {"a": [1, 2, 3, 10**400]}},
        {"adapters": {}},
        {"adapters": [{"name": 1}]},
        {"adapters": [{"name": "a", "strength": float("inf")}]},
        {"adapters": [{"name": "a", "strength": {"left": 1}}]},
        {"adapters": [{}] * 17},
        {"base_fingerprint": {"a": [1, 2]}},
        {"versions": {"torch": 1}},
    ],
)
def test_damaged_recipes_are_refused_in_words(tmp_path, change):
    table = {"prompt": "x"} | change
    with pytest.raises(AtomError, match=r"the picture .p\.png. has a recipe"):
        read_recipe(write(tmp_path / "p.png", sdatoms=json.dumps(table)))


def test_halves_of_characters_become_question_marks(tmp_path):
    table = {"prompt": "a \ud800 dog", "adapters": [{"name": "\udfff"}]}
    recipe = read_recipe(write(tmp_path / "p.png", sdatoms=json.dumps(table)))
    assert recipe.prompt == "a ? dog" and recipe.adapters[0].name == "?"


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"prompt": null}'])
def test_recipes_that_are_no_table_are_refused(tmp_path, text):
    with pytest.raises(AtomError):
        read_recipe(write(tmp_path / "p.png", sdatoms=text))


def test_files_that_are_no_png_are_refused(tmp_path):
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG")
    for number, data in enumerate(
        (b"", b"text", buffer.getvalue(), b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    ):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        with pytest.raises(AtomError, match="PNG"):
            read_recipe(path)


def test_every_difference_is_told():
    hashes = [used.sha256 for used in RECIPE.adapters]
    same = Recipe("x", base_fingerprint=PRINTS, adapters=RECIPE.adapters, versions=list_versions())
    assert compare_recipe(same, base_fingerprint=PRINTS, hashes=hashes) == []
    other = {"conv_in": [2.0, 0.5, -0.5, 0.25]}
    old = Recipe("x", base_model="b", base_fingerprint=PRINTS, versions={"torch": "1.0"})
    assert "base differs" in compare_recipe(old, base_fingerprint=other, hashes=[])[0]
    assert "torch 1.0" in compare_recipe(old, base_fingerprint=PRINTS, hashes=[])[0]
    missing = compare_recipe(same, base_fingerprint=PRINTS, hashes=hashes[:1])
    assert len(missing) == 1 and "cdcdcdcdcdcd" in missing[0]
    assert "another picture" in compare_recipe(RECIPE, base_fingerprint=PRINTS, hashes=hashes)[0]
