"""H. Arguments are looked at before anything is done with them."""

import json
from dataclasses import fields

import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tiny.pipelines import save_pipeline

import sdatoms
from sdatoms.cli.generate import claim_name, slugify
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train


@pytest.mark.parametrize("seed", [2**32, 2**64 - 1])
def test_seeds_that_are_taken_train(train_config, seed):
    config = train_config(seed=seed, max_train_steps=1)
    assert len(list(train(config))) == 1


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_other_seeds_are_refused_by_name(train_config, tiny_base, capsys, seed):
    with pytest.raises(sdatoms.AtomError, match=r"--seed is .* it takes 0 to 18446744073709551615"):
        train_config(seed=seed)
    pipe = load_base(str(tiny_base), device="cpu")
    with pytest.raises(sdatoms.AtomError, match="seeds go from"):
        paint(pipe, ["a"], [seed if seed > 0 else -(2**64)])


@pytest.mark.parametrize("side", [-8, 0, 4, 63, 8200, 100_000, 2**40])
def test_resolutions_no_memory_holds_are_refused(side):
    with pytest.raises(sdatoms.AtomError, match=r"--resolution is .* a multiple of 8 up to 8192"):
        TrainConfig(resolution=side)


NAMED = [f.name for f in fields(TrainConfig) if f.name.endswith(("_dir", "checkpoint"))]


@pytest.mark.parametrize("name", NAMED)
def test_a_variable_that_was_not_set_is_no_place(train_config, tmp_path, monkeypatch, name):
    """Neither the folder one stands in, nor a run begun anew over the one that was to go on."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sdatoms.AtomError, match=rf"--{name} is (empty|missing)"):
        next(train(train_config(**{name: ""})))
    assert not list(tmp_path.glob("*.toml")) and not (tmp_path / "run").exists()


def test_one_side_gives_the_other_and_odd_ones_are_refused(tiny_base):
    pipe = load_base(str(tiny_base), device="cpu")
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    wide = paint(pipe, ["a"], [0], width=side * 2, num_inference_steps=1)[0]
    tall = paint(pipe, ["a"], [0], height=side * 2, num_inference_steps=1)[0]
    assert wide.size == (side * 2, side // 2) and tall.size == (side // 2, side * 2)
    for changes in ({"width": side + 1}, {"height": 0}, {"width": -8}):
        with pytest.raises(sdatoms.AtomError, match="it takes multiples of"):
            paint(pipe, ["a"], [0], **changes)
    for steps in (0, 1001, 5000):
        with pytest.raises(sdatoms.AtomError, match="it takes 1 to 1000"):
            paint(pipe, ["a"], [0], num_inference_steps=steps)


def test_pictures_of_an_earlier_call_are_kept(tmp_path):
    names = set()
    for prompt in ("a cat", "a cat!", "赤い猫", "красный кот", "???", "é" * 90, "a cat"):
        with claim_name(tmp_path, f"{slugify(prompt)}-0") as path:
            assert not path.stat().st_size and path not in names
            path.write_bytes(prompt.encode())
        names.add(path)
    assert {"赤い猫-0.png", "красный-кот-0.png", "a-cat-0-3.png"} <= {p.name for p in names}
    with pytest.raises(ValueError), claim_name(tmp_path, "x") as path:
        raise ValueError
    assert not path.exists()


@pytest.fixture
def foreign(tmp_path):
    """Bases that are no Stable Diffusion, by kind."""

    def make(kind):
        folder = tmp_path / kind
        if kind == "unconditional":
            sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 8}
            blocks = {
                "down_block_types": ("DownBlock2D",) * 2,
                "up_block_types": ("UpBlock2D",) * 2,
            }
            DDPMPipeline(UNet2DModel(**sizes, **blocks), DDPMScheduler()).save_pretrained(folder)
            return folder
        folder = save_pipeline(folder)
        index = json.loads((folder / "model_index.json").read_text())
        if kind == "inpainting":
            path = folder / "unet" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
        else:
            index["_class_name"] = kind
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return make


@pytest.mark.parametrize(
    "kind", ["inpainting", "unconditional", "FluxPipeline", "StableDiffusionInpaintPipeline"]
)
def test_bases_of_other_families_are_refused_before_anything_is_done(
    foreign, train_config, kind, tmp_path
):
    base = str(foreign(kind))
    with pytest.raises(sdatoms.AtomError, match=r"Stable Diffusion 1\.x.*XL"):
        load_base(base)
    with pytest.raises(sdatoms.AtomError, match=r"Stable Diffusion 1\.x.*XL"):
        next(train(train_config(pretrained_model_name_or_path=base)))
    assert not (tmp_path / "run").exists()
