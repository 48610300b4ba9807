"""Image to image, inpainting and the second pass, over the modules of the pipeline at hand."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from tiny.pictures import draw
from tiny.pipelines import build_inpainting, build_pipeline
from tiny.samplers import need_packages

from sdatoms import AtomConfig, AtomError, inject, load_atoms, save_atoms
from sdatoms.diffusion.canvas import build_painter, fit_canvas, protect_outside
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.placement import OFFLOADS, Placement, place
from sdatoms.diffusion.samplers import SAMPLERS

STEPS = {"num_inference_steps": 4, "denoising_strength": 0.5}


def read(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    with Image.open(draw(tmp_path_factory.mktemp("canvas") / "0.png", (16, 16), seed=3)) as opened:
        return opened.convert("RGB")


def draw_mask(size=(16, 16), box=(0, 0, 8, 16)):
    """White in the box, on black."""
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_picture_is_painted_over_by_its_share_and_to_the_bit(kind, picture):
    pipe = build_pipeline(kind)
    settings = STEPS | {"init_picture": picture}
    first, again = (paint(pipe, ["a cat"], [3], **settings)[0] for _ in range(2))
    assert first.tobytes() == again.tobytes() and first.size == picture.size
    weak, strong = (
        paint(pipe, ["a cat"], [3], **settings | {"denoising_strength": share})[0]
        for share in (0.25, 1.0)
    )
    plain = paint(pipe, ["a cat"], [3], num_inference_steps=4)[0]
    assert len({p.tobytes() for p in (first, weak, strong, plain)}) == 4
    both = paint(pipe, ["a cat", "b"], [3, 4], batch_size=2, **settings)
    assert abs(read(both[0]) - read(first)).max() <= 1


@pytest.mark.parametrize("scheduler", list(SAMPLERS))
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_what_a_mask_leaves_out_stays_and_the_rest_does_not(kind, scheduler, picture):
    need_packages(scheduler)
    pipe = build_pipeline(kind)
    settings = STEPS | {"init_picture": picture, "scheduler": scheduler, "mask_blur": 0}
    inside = np.asarray(draw_mask()) > 0
    painted = read(paint(pipe, ["a"], [1], mask=draw_mask(), **settings)[0])
    assert (painted == read(picture))[~inside].all()
    assert (painted != read(picture))[inside].mean() > 0.5
    soft = paint(pipe, ["a"], [1], mask=draw_mask(), **settings | {"mask_blur": 2})[0]
    assert (
        soft.tobytes()
        == paint(pipe, ["a"], [1], mask=draw_mask(), **settings | {"mask_blur": 2})[0].tobytes()
    )
    everywhere = draw_mask(box=(0, 0, 16, 16))
    whole = paint(pipe, ["a"], [1], mask=everywhere, **settings)[0]
    assert whole.tobytes() == paint(pipe, ["a"], [1], **settings)[0].tobytes()


def test_the_part_outside_is_held_as_diffusers_holds_it(picture):
    pipe = build_pipeline()
    canvas = fit_canvas(picture, draw_mask(), (16, 16), blur=0, strength=0.5)
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts = {k: v for k, v in pipe.components.items() if k not in extra and k != "image_encoder"}
    other = StableDiffusionInpaintPipeline(**parts, **extra)
    asked = {"prompt": "a", "num_inference_steps": 4, "strength": 0.5, "output_type": "latent"}
    theirs = other(
        image=canvas.picture,
        mask_image=canvas.mask,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(5),
        **asked,
    ).images
    painter = build_painter(pipe, over=True)
    shared = painter.components
    assert all(shared[name] is part for name, part in pipe.components.items() if name in shared)
    with protect_outside(painter, canvas) as restore:
        ours = painter(
            image=canvas.picture,
            generator=torch.Generator().manual_seed(5),
            callback_on_step_end=lambda _, step, __, tensors: restore(step, tensors),
            **asked,
        ).images
    torch.testing.assert_close(ours, theirs)
    assert "add_noise" not in vars(painter.scheduler)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_bases_that_are_shown_the_mask_paint_with_one_and_only_so(kind, picture):
    pipe = build_inpainting(kind)
    settings = STEPS | {"init_picture": picture, "mask_blur": 0}
    inside = np.asarray(draw_mask()) > 0
    first, again = (paint(pipe, ["a"], [1], mask=draw_mask(), **settings)[0] for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert (read(first) == read(picture))[~inside].all()
    assert (read(first) != read(picture))[inside].mean() > 0.5
    for given in ({}, settings):
        with pytest.raises(AtomError, match="takes a picture and a mask"):
            paint(pipe, ["a"], [1], **given)


def test_a_second_pass_paints_the_first_picture_larger(picture):
    pipe = build_pipeline()
    seen = []
    settings = {"num_inference_steps": 3, "hires_scale": 1.5, "denoising_strength": 0.4}
    call = lambda **more: paint(pipe, ["a", "b"], [1, 2], **settings | more)
    twice = call(hires_steps=2, callback=lambda *told: seen.append(told))
    assert [p.size for p in twice] == [(24, 24)] * 2
    assert seen == [(k, 10) for k in range(1, 11)]
    assert [p.tobytes() for p in call(hires_steps=2)] == [p.tobytes() for p in twice]
    first = paint(pipe, ["a"], [1], num_inference_steps=3)[0]
    over = first.resize((24, 24), Image.Resampling.LANCZOS)
    by_hand = paint(
        pipe,
        ["a"],
        [1],
        init_picture=over,
        width=24,
        height=24,
        num_inference_steps=5,
        denoising_strength=0.4,
    )[0]
    assert by_hand.tobytes() == twice[0].tobytes()
    assert call(hires_steps=0, callback=lambda *told: seen.append(told)) and seen[-1] == (12, 12)


@pytest.mark.parametrize(
    ("size", "given", "painted"),
    [
        ((16, 16), {}, (16, 16)),
        ((48, 12), {}, (32, 8)),
        ((30, 20), {"width": 32}, (32, 8)),
        ((16, 16), {"width": 24, "height": 8}, (24, 8)),
    ],
)
def test_sizes_follow_the_picture_or_what_is_asked(size, given, painted):
    pipe = build_pipeline()
    picture = Image.new("RGB", size, "teal")
    made = paint(pipe, ["a"], [0], init_picture=picture, **STEPS, **given)[0]
    assert made.size == painted


@pytest.mark.parametrize(
    ("kind", "offload"),
    [
        pytest.param(
            kind, offload, marks=() if (kind == "sdxl") == bool(place % 2) else pytest.mark.slow
        )
        for kind in ("sd", "sdxl")
        for place, offload in enumerate(OFFLOADS[1:])
    ],
)
def test_adapters_stay_baked_and_dtypes_stay_under_every_offload(kind, offload, picture, tmp_path):
    pipe = build_pipeline(kind)
    injection = inject(pipe.unet, AtomConfig(variant="atoms"))
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.5)
    save_atoms(tmp_path / "a.safetensors", {"unet": injection})
    pipe = build_pipeline(kind, dtype=torch.bfloat16)
    place(pipe, Placement(offload, False, ""), torch.device("cpu"))
    call = lambda: [
        paint(pipe, ["a"], [1], **STEPS, init_picture=picture)[0],
        paint(pipe, ["a"], [1], **STEPS, init_picture=picture, mask=draw_mask())[0],
        paint(pipe, ["a"], [1], **STEPS, hires_scale=1.5)[0],
    ]
    plain = [p.tobytes() for p in call()]
    adapters = load_atoms(pipe, tmp_path / "a.safetensors")
    tuned = [p.tobytes() for p in call()]
    assert all(a != b for a, b in zip(plain, tuned, strict=True))
    assert [p.tobytes() for p in call()] == tuned
    assert pipe.unet.dtype == torch.bfloat16 and pipe.vae.dtype == torch.bfloat16
    adapters.clear()
    assert [p.tobytes() for p in call()] == plain


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask": draw_mask()}, "without a picture"),
        ({"init": True, "mask": Image.new("L", (16, 16))}, "black everywhere"),
        ({"init": True, "mask": draw_mask((32, 16))}, "same proportions"),
        ({"init": True, "mask": draw_mask(), "mask_blur": -1}, "from 0 to 256"),
        ({"init": True, "denoising_strength": 0}, "from above 0 to 1"),
        ({"init": True, "denoising_strength": 0.1, "num_inference_steps": 4}, "leaves none"),
        ({"init": True, "hires_scale": 2.0}, "generated from text"),
        ({"hires_scale": float("nan")}, "from 1 to 4"),
        ({"hires_scale": 2.0, "hires_steps": -1}, "hires_steps is -1"),
        ({"hires_scale": 2.0, "hires_steps": 900}, "raise the strength"),
        ({"batch_size": 0}, "at least 1"),
        ({"hires_scale": 2.0, "hires_steps": 40, "scheduler": "LCM"}, "50"),
    ],
)
def test_refusals_say_what_fits(settings, words, picture):
    given = dict(settings)
    if given.pop("init", False):
        given["init_picture"] = picture
    with pytest.raises(AtomError, match=words):
        paint(build_pipeline(), ["a"], [0], **given)
