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
        {"width": 1032},
        {"height": 16},
        {"scheduler": "x"},
        {"denoising_strength": 0.0},
        {"mask_blur": 65},
        {"hires_scale": 0.5},
        {"hires_scale": 4, "width": 264},
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
