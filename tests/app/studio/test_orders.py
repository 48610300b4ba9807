"""What may be asked for, and what is said of what may not."""

from dataclasses import replace

import pytest

from sdatoms import AtomError


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": " "},
        {"prompt": "x" * 2001},
        {"negative_prompt": "x" * 2001},
        {"prompt": "(cat:99)"},
        {"num_inference_steps": 0},
        {"num_inference_steps": 101},
        {"guidance_scale": float("nan")},
        {"seed": -1},
        {"batch": 9},
        {"width": 65},
        {"width": 2056},
        {"height": 500},
        {"height": 16},
        {"scheduler": "x"},
        {"schedule": "x"},
        {"schedule": "karras"},
        {"scheduler": "LCM", "num_inference_steps": 51},
        {"clip_skip": 0},
        {"clip_skip": 13},
        {"guidance_rescale": 1.5},
        {"guidance_rescale": float("nan")},
        {"denoising_strength": 0.0},
        {"mask_blur": 65},
        {"hires_scale": 0.5},
        {"hires_scale": 4, "width": 1024},
        {"hires_steps": 101},
        {"batch_size": 0},
        {"base": "../models"},
        {"base": "stabilityai/sd"},
        {"adapters": (("x", 1.0),)},
        {"adapters": (("dog", 11.0),)},
        {"adapters": (("dog", float("nan")),)},
        {"adapters": (("dog", 1.0), ("dog", 1.0))},
        {"adapters": tuple((str(k), 1.0) for k in range(6))},
    ],
)
def test_orders_out_of_range_are_refused(studio, changes, order):
    with pytest.raises(AtomError):
        studio.check(replace(order, **changes))


def test_the_operators_cap_is_the_longest_side(studio, order, monkeypatch):
    studio.check(replace(order, width=1216, height=832))
    monkeypatch.setattr(studio, "max_side", 1024)
    studio.check(replace(order, width=1024, height=832))
    with pytest.raises(AtomError, match="from 64 to 1024, and the nearest is 1024"):
        studio.check(replace(order, width=1216, height=832))
