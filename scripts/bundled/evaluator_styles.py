"""How the bundled evaluator's style head is trained: two nets, each by a loss of its own.

- instance: two views of one picture attract. The hard negatives are in the batch: the same concept
  by another vendor, another thing in the same scene, the same thing in a scene that differs a bit;
- drawing: pictures in the same drawing style attract, same vendor and same recolouring; and a
  cross-entropy over one learned direction a vendor, which is not kept.

Both contrastive losses are `evaluator_models.contrast` at temperature 0.1.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bundled.base_loops import Step, cast, scale_lr, set_rate
from bundled.evaluator_data import VENDORS, Collection
from bundled.evaluator_models import contrast, group_pictures, make_view, pick_pictures
from sdatoms.evaluation.evaluator import DrawingNet, InstanceNet, StyleHead

__all__ = ["DrawingLearner", "move", "restyle", "settle", "train_drawing", "train_instance"]

TEMPERATURE = 0.1


class DrawingLearner(nn.Module):
    """The net that tells drawing styles apart, and the vendors' directions in its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.net: DrawingNet = StyleHead().drawing
        size = self.net.embed.out_features
        self.vendors = nn.Parameter(torch.randn(len(VENDORS), size) / size**0.5)


def train_instance(
    net: InstanceNet,
    optimizer: torch.optim.Optimizer,
    ema,
    collection: Collection,
    draw_scenes: Callable[[random.Random], Tensor],
    *,
    steps: int,
    start: int = 0,
    concepts_per_batch: int = 20,
    learning_rate: float = 2e-3,
    precision: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Iterator[Step]:
    """Fit the net to a collection without held-out concepts.

    A batch is two views of two vendors' pictures of each of `concepts_per_batch` concepts, and of
    the scenes `(n, 3, 64, 64)` uint8 that `draw_scenes` gives.
    """
    by_concept = group_pictures(collection)
    net.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pick = pick_pictures(collection, by_concept, concepts_per_batch, generator)
        scenes = draw_scenes(random.Random(seed * 1_000_003 + step))
        x = torch.cat([collection.pictures[pick], scenes]).float() / 255
        views = torch.cat([make_view(x, generator), make_view(x, generator)])
        rows = embed(net, views, precision)
        number, itself = torch.arange(len(x)).repeat(2), torch.eye(2 * len(x), dtype=torch.bool)
        loss = contrast(rows / TEMPERATURE @ rows.T, number[:, None] == number, ~itself)
        lr = set_rate(optimizer, learning_rate * scale_lr(step, steps))
        take_step(loss, net, optimizer, ema)
        yield Step(step + 1, float(loss.detach()), lr)


def train_drawing(
    learner: DrawingLearner,
    optimizer: torch.optim.Optimizer,
    ema,
    collection: Collection,
    *,
    steps: int,
    start: int = 0,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    restyled: float = 0.15,
    precision: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Iterator[Step]:
    """Fit the net to a collection without held-out concepts.

    Half of a batch is augmented, as the autoencoder and a person's camera would, and half only
    moved; a share `restyled` is recoloured, vendor by vendor.
    """
    learner.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pick = torch.randperm(len(collection.pictures), generator=generator)[:batch_size]
        vendor = collection.vendor[pick]
        plain = torch.rand(len(pick), generator=generator) >= restyled
        x = collection.pictures[pick].float() / 255
        x = restyle(x, torch.where(plain, 0, vendor + 1), generator)
        half = batch_size // 2
        x = torch.cat([make_view(x[:half], generator), move(x[half:], generator)])
        rows = embed(learner.net, x, precision)
        style = vendor + (~plain) * len(VENDORS)
        apart = ~torch.eye(len(x), dtype=torch.bool)
        among = contrast(rows / TEMPERATURE @ rows.T, style[:, None] == style, apart)
        named = rows[plain] @ F.normalize(learner.vendors, dim=1).T / TEMPERATURE
        loss = F.cross_entropy(named, vendor[plain], label_smoothing=0.05) + 0.5 * among
        fade = 0.5 * (1 + math.cos(math.pi * step / steps))
        lr = set_rate(optimizer, learning_rate * min(1.0, (step + 1) / 100) * max(0.01, fade))
        take_step(loss, learner, optimizer, ema)
        yield Step(step + 1, float(loss.detach()), lr)


def embed(net: nn.Module, x: Tensor, precision: torch.dtype) -> Tensor:
    """Rows of pictures in [0, 1]."""
    with cast(precision):
        return net((x * 2 - 1).contiguous(memory_format=torch.channels_last))


def take_step(loss: Tensor, part: nn.Module, optimizer: torch.optim.Optimizer, ema) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(part.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    ema.step(part.parameters())


def settle(net: DrawingNet, collection: Collection, count: int = 1024) -> None:
    """Measure the normalizations' statistics anew, on `count` pictures: averaged weights have none
    of their own."""
    order = torch.randperm(len(collection.pictures), generator=torch.Generator().manual_seed(0))
    parts = collection.pictures[order[:count]].split(64)
    update_bn((part.float() / 127.5 - 1 for part in parts), net)


def restyle(x: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    """Recolour pictures `(n, 3, 64, 64)` in [0, 1], the same way within a group; group 0 stays.

    A random mixing of the colour channels and a curve, ink on white paper kept white. It gives the
    style head thousands of drawing styles to tell apart instead of seven.
    """
    groups = int(group.max()) + 1
    mix = torch.eye(3) + 0.9 * torch.randn(groups, 3, 3, generator=generator)
    mix = mix / mix.sum(2, keepdim=True).abs().clamp(min=0.5)
    power = torch.exp(0.5 * torch.randn(groups, generator=generator))
    ink = torch.einsum("nij,njhw->nihw", mix[group], 1 - x).clamp(0, 1)
    changed = 1 - ink ** power[group][:, None, None, None]
    return torch.where((group > 0)[:, None, None, None], changed, x)


def move(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures `(n, 3, 64, 64)` in [0, 1], mirrored half of the time and moved by up to 4 px: every
    pixel as its vendor's program drew it."""
    mirror = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirror[:, None, None, None], x.flip(-1), x)
    dx, dy = torch.randint(0, 9, (2,), generator=generator).tolist()
    side = x.shape[-1]
    return F.pad(x, (4, 4, 4, 4), value=1.0)[..., dy : dy + side, dx : dx + side]
