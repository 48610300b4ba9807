"""An eye that was not made here: likeness of pictures by a network trained on ImageNet.

The bundled evaluator was trained on the same drawings as the base; EfficientNet-Lite0 has seen
neither. What it takes for alike is no figure to choose by, only one to hold the others against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdatoms.errors import AtomError
from sdatoms.models.efficientnet import EfficientNetLite
from sdatoms.models.open import open_model
from sdatoms.pictures import cut_square, to_tensor

__all__ = ["Eye", "open_eye"]

SIDE, BATCH = 224, 16


class Eye:
    """Features of EfficientNet-Lite0 before its head."""

    def __init__(self, model: EfficientNetLite) -> None:
        self.model = model.float().eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of length 1, `(n, 1280)`, of each picture's middle square at 224 px."""
        rows = [self.model.embed(part) for part in self.load(pictures).split(BATCH)]
        return F.normalize(torch.cat(rows), dim=1)

    def load(self, pictures: Sequence[Image.Image]) -> Tensor:
        mean, spread = (torch.tensor(t).view(3, 1, 1) for t in (self.model.mean, self.model.spread))
        return torch.stack([(read_pixels(p) - mean) / spread for p in pictures])


def read_pixels(picture: Image.Image) -> Tensor:
    """The middle square, `(3, 224, 224)` on [0, 1]."""
    small = cut_square(picture.convert("RGB"), SIDE, Image.Resampling.BICUBIC)
    return to_tensor(small) / 2 + 0.5


def open_eye(path: Path) -> Eye:
    """The network in a `.safetensors` file.

    Raises:
        AtomError: the file holds another model.
    """
    model = open_model(path).model
    if not isinstance(model, EfficientNetLite):
        raise AtomError(
            f"{str(path)!r} holds a {type(model).__name__}; --eye takes EfficientNet-Lite0"
        )
    return Eye(model)
