"""The base's own prediction as a target: strength 0 on the same UNet, no second model.

Reference: "differential output preservation" in kohya-ss/sd-scripts and ostris/ai-toolkit, "prior
prediction" in OneTrainer: the class prompt on the instances' noisy latents should stay what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sdatoms.inject import Injection

__all__ = ["without_atoms"]


@contextmanager
def without_atoms(injection: Injection) -> Iterator[None]:
    """Switch an injection's deltas off; what is computed inside is the base's, to the bit."""
    kept = [(layer, layer.deltas) for layer in injection.layers.values()]
    try:
        for layer, _ in kept:
            layer._modules["deltas"] = nn.ModuleDict()
        yield
    finally:
        for layer, deltas in kept:
            layer._modules["deltas"] = deltas
