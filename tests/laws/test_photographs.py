"""Photographs as phones, presses and scanners make them go through the whole trainer.

`SDATOMS_PHOTOGRAPHS=DIR` lets the slow test train on the folders of real ones in DIR.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sdatoms.pictures import read_picture
from sdatoms.training.buckets import cut_picture, fit_picture
from sdatoms.training.folder import check_folder
from sdatoms.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


TURNED = 6
"""EXIF's word for a phone held upright: what is stored lies on its side."""


def take_photograph(size, seed=0):
    """A scene with a red thing in its upper left quarter, and noise as a sensor has it."""
    numbers = np.random.default_rng(seed)
    small = numbers.integers(60, 200, (6, 6, 3), dtype=np.uint8)
    scene = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    scene.paste((230, 20, 20), (0, 0, size[0] // 2, size[1] // 2))
    return scene.filter(ImageFilter.GaussianBlur(2))


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = TURNED
    upright = take_photograph((2000, 3000))
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "phone.jpg", exif=exif, quality=90)
    take_photograph((900, 600), 1).convert("CMYK").save(folder / "press.jpg", quality=90)
    take_photograph((640, 640), 2).save(folder / "progressive.jpeg", progressive=True)
    grey = np.asarray(take_photograph((600, 400), 3).convert("L"), dtype=np.uint16)
    Image.fromarray(grey * 257).save(folder / "scan.png")
    (folder / "phone.txt").write_text("a sks cat upright")
    return folder


def test_photographs_become_upright_crops_in_their_own_colours(photographs):
    found = check_folder(photographs, "sks cat")
    assert found.notes == ()
    assert [(s.path.name, s.size) for s in found.sources] == [
        ("phone.jpg", (2000, 3000)),
        ("press.jpg", (900, 600)),
        ("progressive.jpeg", (640, 640)),
        ("scan.png", (600, 400)),
    ]
    for source in found.sources:
        picture = read_picture(source.path)
        cut = np.asarray(cut_picture(picture, fit_picture(*picture.size, [(64, 64)]))).astype(int)
        thing, ground = cut[4:28, 4:28].mean((0, 1)), cut[36:, 36:].mean((0, 1))
        if source.path.name == "scan.png":
            assert 60 < thing.mean() < 100 and 60 < ground.mean() < 200  # white before
        else:
            assert thing[0] > 190 and thing[1:].max() < 60, source.path.name
            assert ground[1] > 60, source.path.name


def test_photographs_train_under_buckets_with_mirrored_copies_and_a_class(
    train_config, photographs, tmp_path
):
    classes = tmp_path / "class"
    classes.mkdir()
    take_photograph((800, 500), 4).convert("CMYK").save(classes / "a.jpg")
    config = train_config(
        instance_data_dir=str(photographs),
        aspect_ratio_buckets="auto",
        random_flip=True,
        with_prior_preservation=True,
        class_prompt="cat",
        class_data_dir=str(classes),
        num_class_images=2,
        max_train_steps=3,
    )
    trainer = Trainer(config)
    shapes = {row.name: tuple(row.mean.shape[-2:]) for row in trainer.data.instances}
    assert shapes == {
        "phone.jpg": (10, 6),
        "press.jpg": (6, 10),
        "progressive.jpeg": (8, 8),
        "scan.png": (6, 10),
    }
    assert len(trainer.data.instances) == 8  # each mirrored too
    assert {row.prompt for row in trainer.data.instances} == {"sks cat", "a sks cat upright"}
    assert (
        trainer.data.classes is not None and len(trainer.data.classes) == 2
    )  # one of them painted
    for _ in range(3):
        assert np.isfinite(trainer.take_step().loss)


@pytest.mark.slow
def test_the_bundled_base_learns_photographs_by_the_command(photographs, tmp_path):
    given = os.environ.get("SDATOMS_PHOTOGRAPHS")
    folder = Path(given) if given else photographs.parent
    subjects = ["dog"] if given else ["photographs"]
    output = tmp_path / "photographs.json"
    command = [sys.executable, ROOT / "scripts" / "bench_photographs.py", "--threads", "1"]
    command += ["--photographs", folder, "--subjects", *subjects, "--output", output]
    command += ["--max_train_steps", "20", "--ways", "nothing kept", "class kept by pictures"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about = json.loads(output.read_text())["subjects"][subjects[0]]
    assert -1 <= about["autoencoder"] <= 1
    for row in about["ways"].values():
        assert row["before"]["drift"] == pytest.approx(0, abs=1e-6) and row["after"]["drift"] > 0.01
        assert row["peak_memory_bytes"] > 0 and row["core_seconds"] > 0
    assert about["ways"]["class kept by pictures"]["class_pictures"] == 24
    assert len(done.stdout.splitlines()) == 5
    assert len(list(tmp_path.glob("photographs-*.png"))) == 2
