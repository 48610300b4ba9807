"""What the studio paints is what the library paints, and the base stays what it was."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.painting import Job
from sdatoms_app.studio.studio import Studio
from tiny.app import read_pixels
from tiny.pipelines import build_inpainting

import sdatoms
from sdatoms import AtomError
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint as paint_plainly


def pixels(kept):
    return read_pixels(kept.path)


def test_compatibility_is_told_before_loading(studio, paint, tmp_path, make_file, tiny_base, order):
    paint()
    assert studio.judge(studio.library.find("dog")).verdict == "fits"
    other = studio.library.add(make_file("other"))
    assert studio.judge(other).verdict == "other base"
    convs = load_base(str(tiny_base)).vae
    injection = sdatoms.inject(convs, sdatoms.AtomConfig(variant="atoms"))
    path = sdatoms.save_atoms(tmp_path / "vae.safetensors", {"unet": injection})
    wrong = studio.library.add(path)
    assert studio.judge(wrong).verdict == "does not fit"
    with pytest.raises(AtomError, match="has no layer"):
        paint(replace(order, adapters=((wrong.id, 1.0),)))
    for entry in (other, wrong):
        entry.path.unlink()


def test_painting_equals_the_library_and_leaves_the_base(studio, paint, tiny_base, order):
    first = paint()[0]
    wanted = replace(order, adapters=(("dog", 0.7), ("ink", {"down": -0.5, "mid": 0.0, "up": 1.0})))
    mixed = paint(wanted)[0]
    assert np.array_equal(pixels(paint()[0]), pixels(first))
    pipe = load_base(str(tiny_base))
    adapters = sdatoms.load_atoms(
        pipe, studio.library.find("ink").path, strength=wanted.adapters[1][1]
    )
    adapters.load(studio.library.find("dog").path, strength=0.7)
    again = paint_plainly(pipe, ["cat face"], [3], num_inference_steps=2, scheduler="DDIM")[0]
    assert np.array_equal(again, pixels(mixed))
    assert not np.array_equal(pixels(mixed), pixels(first))
    assert [(u.name, u.strength) for u in mixed.recipe.adapters] == list(wanted.adapters)


def test_strength_zero_paints_the_base(paint, order):
    assert np.array_equal(
        pixels(paint()[0]), pixels(paint(replace(order, adapters=(("dog", 0.0),)))[0])
    )


def test_a_batch_is_its_pictures_one_by_one(paint, order):
    batch = paint(replace(order, batch=3))
    assert [k.recipe.seed for k in batch] == [3, 4, 5]
    assert np.array_equal(pixels(batch[2]), pixels(paint(replace(order, seed=5))[0]))


def test_sizes_and_starting_pictures_count(paint, order):
    tall = paint(replace(order, width=64, height=96))[0]
    assert pixels(tall).shape == (96, 64, 3)
    start = Image.new("RGB", (40, 40), "red")
    over = paint(replace(order, init_picture=start, denoising_strength=0.5))[0]
    assert over.recipe.denoising_strength == 0.5 and over.recipe.init_sha256
    assert not np.array_equal(pixels(over), pixels(paint()[0]))


def test_a_base_that_is_shown_the_mask_paints_with_one_and_only_so(tmp_path, order):
    build_inpainting(size=16).save_pretrained(tmp_path / "wide")
    studio = Studio(str(tmp_path / "wide"), Library(tmp_path / "atoms"), tmp_path / "outputs")
    assert "inpainting" in studio.bases.list()[0].about
    start = Image.new("RGB", (16, 16), "red")
    wanted = replace(order, init_picture=start, mask=Image.new("L", (16, 16), 255))
    for without in (order, replace(order, init_picture=start)):
        with pytest.raises(AtomError, match="takes a picture and a mask"):
            list(studio.paint(without))
    kept = list(studio.paint(replace(wanted, batch=2, batch_size=2)))
    assert [k.recipe.batch_position for k in kept] == [0, 1] and kept[0].recipe.mask_sha256


def test_a_long_prompt_is_said_to_be_read_in_windows(studio, order):
    job = Job(lambda job: list(studio.paint(replace(order, prompt="abcdefgh ijklmnop qrst"), job)))
    remark = "The prompt's 20 tokens are read in 2 windows of 14."
    assert list(job.start().watch())[-1].remarks == (remark,)


def test_cancelling_stops_within_a_step_and_keeps_what_is_done(studio, order):
    steps, done = [], []

    def work(job):
        tell = job.tell

        def watch(**changes):
            tell(**changes)
            if "done" in changes:
                steps.append(changes["done"])
                if changes["done"] == 25:  # the fifth step of the second picture
                    job.cancel()

        job.tell = watch
        done.extend(studio.paint(replace(order, batch=3, num_inference_steps=20), job))

    job = Job(work).start()
    assert list(job.watch())[-1].done == 25
    assert job.cancelled and steps[-1] == 25 and not studio.lock.locked()
    assert len(studio.history.list("cat", 1)) == 1


def test_another_base_is_opened_when_asked_for(studio, paint, tiny_base, order):
    studio.bases.folder = tiny_base.parent
    torch.manual_seed(0)
    kept = paint(replace(order, base="models/tiny"))[0]
    assert kept.recipe.base_model == "models/tiny"
    assert np.array_equal(pixels(kept), pixels(paint()[0]))
    studio.bases.folder = None


def test_the_base_is_bit_for_bit_itself_after_everything(studio):
    adapters = sdatoms.AdapterSet(studio.open())
    adapters.clear()
    assert adapters.verify_base() and json.dumps(adapters.strengths) == "{}"


@pytest.mark.parametrize("content", [{"model.diffusion_model.x": torch.zeros(2)}, {}])
def test_a_file_that_is_no_model_is_refused_in_one_sentence(tmp_path, content):
    """Named by the operator, or listed by what its names promise."""
    save_file(content, path := tmp_path / "some.safetensors")
    wrong = Studio(str(path), Library(tmp_path / "atoms"), tmp_path / "outputs")
    with pytest.raises(AtomError, match=r"some\.safetensors") as caught:
        wrong.open()
    assert "\n" not in str(caught.value)
