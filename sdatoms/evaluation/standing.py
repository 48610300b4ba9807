"""Find which way up and how high a subject stands, by how well its plain picture fits there.

It is tried upright and upside down, at all places, in the sizes that scenes have. A fit is a
normalized cross-correlation: the cosine of the subject's pixels, less their mean, with those that
they come to lie on, less theirs (J. P. Lewis, "Fast Normalized Cross-Correlation", 1995, equation
2). It sees what an embedding of the whole picture overlooks, and knows no words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FITTING", "fit_plain"]

SIDES = (32, 28, 24, 22, 16, 12, 8)
"""Of the plain picture where it is looked for, in pixels of a picture of 32."""
MIDDLE = (11, 21)
"""Rows of 32 between which a plain picture's centre stands neither high nor low."""
WHITE = 0.92
"""On [-1, 1]; what is brighter belongs to no subject."""
FITTING = (SIDES, MIDDLE, WHITE)
"""All that a fit depends on."""


@torch.no_grad()
def fit_plain(pictures: Tensor, plain: Tensor) -> Tensor:
    """The best fit of each plain picture in its picture, over sizes and places, upright and upside
    down, with its centre above the middle, in it and below it: `(n, 2, 3)` in [-1, 1].

    Args:
        pictures: `(n, 3, 64, 64)` on [-1, 1].
        plain: the subject of each, on white, of the same shape.
    """
    drawn = (plain.amin(1, keepdim=True) < WHITE).float()
    seen, known, mask = (F.avg_pool2d(x, 2) for x in (pictures, plain, drawn))
    ways = [(known, mask), (known.flip(-1, -2), mask.flip(-1, -2))]
    return torch.stack([fit(seen, *way) for way in ways], 1)


def fit(seen: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """The best over `SIDES` and places, by height `(n, 3)`; `mask (n, 1, 32, 32)` says where the
    subject is."""
    count, colours, *_ = seen.shape
    rows, squares = seen.flatten(0, 1)[None], seen.square().sum(1)[None]
    best = torch.full((count, 3), -1.0)
    for side in SIDES:
        shrink = lambda x, s=side: F.interpolate(x, (s, s), mode="bilinear", antialias=True)
        own = (shrink(mask) > 0.5).float()
        area = own.sum((2, 3), keepdim=True).clamp(min=1)
        small = shrink(known)
        template = (small - (small * own).sum((2, 3), keepdim=True) / area) * own
        both = F.conv2d(rows, template, groups=count)[0]
        sums = F.conv2d(rows, own.repeat_interleave(colours, 0), groups=count * colours)[0]
        spread = F.conv2d(squares, own, groups=count)[0]
        spread = spread - (sums.unflatten(0, (count, colours)).square() / area).sum(1)
        norm = template.square().sum((1, 2, 3))[:, None, None]
        cosines = both / (spread.clamp(min=4e-3) * norm.clamp(min=4e-6)).sqrt()
        heights = torch.arange(cosines.shape[1]) + side / 2
        low, high = MIDDLE
        for n, there in enumerate(
            (heights < low, heights.clamp(low, high) == heights, heights > high)
        ):
            if there.any():
                best[:, n] = torch.maximum(best[:, n], cosines[:, there].flatten(1).amax(1))
    return best.clamp(-1, 1)
