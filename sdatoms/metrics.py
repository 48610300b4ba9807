r"""How alike pictures are in style, by the statistics of an autoencoder's features.

For every resolution level of the base's own VAE encoder, the channel Gram matrix `G = F Fᵀ / (h·w)`
of the features F `(c, h·w)`; the similarity of two pictures is the mean over levels of the cosine
between their Gram matrices after the mean over a reference set is taken off. Range [-1, 1].

Reference: Gatys, Ecker, Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR
2016, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdatoms.pictures import to_tensor

__all__ = ["gram_similarity", "measure_grams"]


@torch.no_grad()
def measure_grams(vae: Any, pictures: Sequence[Image.Image]) -> list[Tensor]:
    """Per level, the flattened Gram matrices `(n, c²)` of the encoder's features, float32."""
    levels: list[list[Tensor]] = []
    hooks, captured = [], []
    for block in vae.encoder.down_blocks:
        hooks.append(block.register_forward_hook(lambda _m, _i, out: captured.append(out.float())))
    try:
        for picture in pictures:
            captured.clear()
            vae.encoder(to_tensor(picture.convert("RGB"))[None].to(vae.device, vae.dtype))
            for level, features in enumerate(captured):
                f = features[0].flatten(1)
                if len(levels) <= level:
                    levels.append([])
                levels[level].append((f @ f.T / f.shape[1]).flatten().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.stack(rows) for rows in levels]


def gram_similarity(
    vae: Any,
    pictures: Sequence[Image.Image],
    instances: Sequence[Image.Image],
    reference: Sequence[Image.Image],
) -> Tensor:
    """Mean similarity of each picture to the instance pictures, `(n,)`; Grams are centred on
    `reference`'s mean."""
    scores = []
    for a, b, r in zip(
        *(measure_grams(vae, group) for group in (pictures, instances, reference)), strict=True
    ):
        centre = r.mean(0)
        a, b = (torch.nn.functional.normalize(x - centre, dim=1) for x in (a, b))
        scores.append((a @ b.T).mean(1))
    return torch.stack(scores).mean(0)
