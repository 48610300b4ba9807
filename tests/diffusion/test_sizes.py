"""Sizes of pictures: what is taken, what is offered, and the side that is not given."""

from types import SimpleNamespace

import pytest

from sdatoms import AtomError
from sdatoms.diffusion.sizes import (
    MAX_SIDE,
    check_side,
    choose_size,
    complete_size,
    describe_choice,
    list_sizes,
    name_shape,
)

XL = "1024x1024 1152x896 896x1152 1216x832 832x1216 1344x768 768x1344 1536x640 640x1536"


def test_stable_diffusion_xl_offers_what_it_was_trained_on():
    assert " ".join(f"{w}x{h}" for w, h in list_sizes(1024)) == XL
    for width, height in list_sizes(1024):
        assert complete_size(width, None, 1024) == (width, height)
        assert complete_size(None, height, 1024) == (width, height)


@pytest.mark.parametrize("side", [8, 16, 64, 512, 768, 1024])
def test_every_size_that_is_offered_can_be_painted(side):
    sizes = list_sizes(side)
    assert sizes[0] == (side, side) and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        check_side("width", width)
        check_side("height", height)
        assert (height, width) in sizes
    shapes = {name_shape(*size) for size in sizes}
    assert side < 32 or shapes == {"square", "portrait", "landscape"}


@pytest.mark.parametrize(
    ("side", "step", "most", "nearest"),
    [
        (500, 8, MAX_SIDE, 504),
        (3, 8, MAX_SIDE, 8),
        (-8, 8, MAX_SIDE, 8),
        (0, 8, MAX_SIDE, 8),
        (4096, 8, MAX_SIDE, 2048),
        (2049, 8, MAX_SIDE, 2048),
        (100, 64, MAX_SIDE, 128),
        (1032, 8, 1024, 1024),
        (1024, 8, 1000, 1000),
        (float("nan"), 8, MAX_SIDE, 8),
        (float("inf"), 8, MAX_SIDE, 2048),
    ],
)
def test_a_side_that_does_not_fit_is_told_the_nearest_that_does(side, step, most, nearest):
    with pytest.raises(AtomError) as error:
        check_side("width", side, step, most)
    text = str(error.value)
    assert text.startswith(f"the width is {side} px; it takes multiples of {step} px from {step}")
    assert text.endswith(f"the nearest is {nearest}")
    check_side("width", nearest, step, most)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((None, None), (None, None)),
        ((512, 768), (512, 768)),
        ((384, None), (384, 680)),
        ((None, 768), (344, 768)),
        ((2048, None), (2048, 128)),
        ((64, None), (64, 2048)),
    ],
)
def test_one_side_makes_the_other_from_the_bases_area(given, found):
    pipe = SimpleNamespace(
        vae_scale_factor=8, unet=SimpleNamespace(config=SimpleNamespace(sample_size=64))
    )
    assert choose_size(pipe, *given) == found
    said = describe_choice(given, found)
    if (given[0] is None) == (given[1] is None):
        assert said is None
    else:
        name = "width" if given[0] is None else "height"
        assert said == f"{found[0]}×{found[1]} px: the {name} is what makes the base's own area"
