"""`sdatoms generate` over a picture, in a mask, in a second pass, several at once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny.pictures import draw
from tiny.pipelines import build_inpainting, save_base, save_pipeline

from sdatoms.cli.main import main
from sdatoms.diffusion.picture_file import read_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def generate(base, tmp_path, capsys):
    """Paint with two steps; returns the paths."""

    def call(*words):
        start = ["generate", "a cat", "--pretrained_model_name_or_path", str(base)]
        start += ["--num_inference_steps", "4", "--output_dir", str(tmp_path / "out")]
        main([*start, *map(str, words)])
        return [Path(line) for line in capsys.readouterr().out.split()]

    return call


@pytest.fixture
def photo(tmp_path):
    """A picture that stands on its side by its EXIF tag: 96×64 px as it is meant."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return draw(tmp_path / "photo.jpg", (64, 96), seed=4, exif=exif, quality=95)


def read(path):
    with Image.open(path) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)


def test_a_picture_is_painted_over_where_the_mask_says(generate, photo, tmp_path):
    mask = Image.new("RGBA", (96, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 48, 64))
    mask.save(tmp_path / "mask.png")
    size = ["--width", "96", "--height", "64", "--image", photo]
    over = generate(*size, "--denoising_strength", "0.5")[0]
    words = [*size, "--mask_image", tmp_path / "mask.png", "--mask_blur", "0"]
    inside, again = (generate(*words)[0] for _ in range(2))
    with Image.open(photo) as opened:
        whole = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    painted = read(inside)
    assert (painted[:, 48:] == whole[:, 48:]).all() and (painted[:, :48] != whole[:, :48]).any()
    assert (read(again) == painted).all() and (read(over) != whole).any()
    recipe = read_recipe(inside)
    assert (recipe.denoising_strength, recipe.mask_blur) == (0.6, 0.0)
    assert recipe.init_sha256 == read_recipe(over).init_sha256 and recipe.mask_sha256
    with Image.open(inside) as opened:
        assert "Denoising strength: 0.6, Mask blur: 0," in opened.text["parameters"]
    assert read(generate("--image", photo)[0]).shape == (56, 80, 3)  # its proportions, 64² px


def test_a_second_pass_and_batches_are_in_the_recipe(generate):
    words = ["--hires_scale", "1.5", "--hires_steps", "2", "--seed", "3"]
    paths = generate(*words, "--num_images", "3", "--batch_size", "2")
    assert [path.name for path in paths] == [f"a-cat-{seed}.png" for seed in (3, 4, 5)]
    recipes = [read_recipe(path) for path in paths]
    assert [(r.batch_size, r.batch_position) for r in recipes] == [(2, 0), (2, 1), (1, 0)]
    assert {(r.width, r.height, r.hires_scale, r.hires_steps) for r in recipes} == {
        (64, 64, 1.5, 2)
    }
    assert {read(path).shape for path in paths} == {(96, 96, 3)}
    again = generate(*words, "--num_images", "3", "--batch_size", "2")
    alone = generate(*words[:-1], "5")
    assert all((read(a) == read(b)).all() for a, b in zip(again, paths, strict=True))
    assert (read(alone[0]) == read(paths[2])).all()
    with Image.open(paths[0]) as opened:
        text = opened.text["parameters"]
    assert "Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 2, Hires upscaler: L" in text


def test_bases_that_are_shown_the_mask_take_one_and_nothing_else_is_written(
    refuse, photo, tmp_path, capsys
):
    plain = save_pipeline(tmp_path / "plain")
    build_inpainting().save_pretrained(tmp_path / "wide")
    wide = ["generate", "a", "--pretrained_model_name_or_path", str(tmp_path / "wide")]
    wide += ["--num_inference_steps", "2", "--output_dir", str(tmp_path / "wide-out")]
    Image.new("L", (96, 64), 255).save(tmp_path / "mask.png")
    words = ["generate", "a", "--image", photo, "--output_dir", tmp_path / "out"]
    for more, said in (
        (["--mask_image", tmp_path / "none.png"], "none.png"),
        (["--mask_image", photo, "--denoising_strength", "2"], "denoising_strength is 2"),
        (["--hires_scale", "2"], "generated from text"),
        (["--batch_size", "0"], "--batch_size is 0"),
    ):
        refuse([*words, "--pretrained_model_name_or_path", plain, *more], said)
    assert not list((tmp_path / "out").glob("*"))
    refuse(wide, "inpainting models")
    refuse([*wide, "--image", photo], "inpainting models")
    main([*wide, "--image", str(photo), "--mask_image", str(tmp_path / "mask.png")])
    assert Path(capsys.readouterr().out.strip()).is_file()
