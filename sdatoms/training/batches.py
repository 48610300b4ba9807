"""Batches of instance and class pictures, with their masks.

Batches are a function of the seed and their number alone: a resumed run sees what the uninterrupted
run would have, and N processes share one batch as one process would have drawn it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdatoms.training.denoising import Denoising
from sdatoms.training.encodings import Encoded

SEEDS = 1 << 63
"""Of a generator, of which the negative ones are left out."""

__all__ = [
    "Batch",
    "Draw",
    "draw_batches",
    "name_bad_rows",
]


@dataclass(frozen=True)
class Batch:
    """Rows of one size for one process, of instances or of their class."""

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    latents: Tensor
    """`(B, c, h, w)`, scaled as the UNet expects them."""
    mask: Tensor | None
    """`(B, 1, h, w)`, ones for rows without a mask; None when no row has one."""
    time_ids: Tensor
    """`(B, 6)` whole numbers."""
    noise: Tensor
    input_noise: Tensor
    """The noise mixed in, which input perturbation makes differ from `noise`."""
    timesteps: Tensor
    """`(B,)` whole numbers."""
    prior: bool = False
    """Whether these rows keep the class rather than teach the subject."""
    from_base: bool = False
    """Whether the target is the base's own prediction."""

    def share(self, process: int, size: int) -> Batch:
        """The rows of one process."""
        mine = slice(process * size, (process + 1) * size)
        return replace(
            self,
            names=self.names[mine],
            prompts=self.prompts[mine],
            latents=self.latents[mine],
            mask=None if self.mask is None else self.mask[mine],
            time_ids=self.time_ids[mine],
            noise=self.noise[mine],
            input_noise=self.input_noise[mine],
            timesteps=self.timesteps[mine],
        )


@dataclass(frozen=True)
class Draw:
    """How batches are drawn; the same for the whole run."""

    denoising: Denoising
    seed: int
    batch_size: int
    num_processes: int = 1
    process: int = 0
    proportion_empty_prompts: float = 0.0
    class_prompt: str | None = None
    """With it and without class pictures, the base's prediction for this prompt is a target."""


def draw_batches(
    instances: Sequence[Encoded], classes: Sequence[Encoded] | None, index: int, draw: Draw
) -> list[Batch]:
    """The `index`-th batch of the run for one process: instance rows and, if kept, class rows."""
    generator = torch.Generator().manual_seed((draw.seed * 1_000_003 + index) % SEEDS)
    whole = [draw_rows(instances, index, draw.seed, draw, generator)]
    if classes is not None:
        whole.append(replace(draw_rows(classes, index, draw.seed + 1, draw, generator), prior=True))
    elif draw.class_prompt is not None:
        # The instances' own noisy latents, read as their class.
        own = whole[0]
        prompts = (draw.class_prompt,) * len(own.names)
        whole.append(replace(own, prompts=prompts, mask=None, prior=True, from_base=True))
    return [batch.share(draw.process, draw.batch_size) for batch in whole]


def draw_rows(
    examples: Sequence[Encoded], index: int, seed: int, draw: Draw, generator: torch.Generator
) -> Batch:
    """The rows of all processes."""
    count = draw.batch_size * draw.num_processes
    rows = pick_rows(examples, index, count, seed)
    mean = torch.stack([row.mean for row in rows])
    deviation = torch.stack([row.deviation for row in rows])
    latents = mean + deviation * torch.randn(mean.shape, generator=generator)
    noise, input_noise = draw.denoising.draw_noise(tuple(latents.shape), generator)
    timesteps = draw.denoising.draw_timesteps(count, generator)
    empty = torch.zeros(count, dtype=torch.bool)
    if draw.proportion_empty_prompts:
        empty = torch.rand(count, generator=generator) < draw.proportion_empty_prompts
    masked = any(row.mask is not None for row in rows)
    blank = torch.ones(1, *mean.shape[-2:])
    return Batch(
        names=tuple(row.name for row in rows),
        prompts=tuple("" if e else row.prompt for row, e in zip(rows, empty, strict=True)),
        latents=latents,
        mask=torch.stack([blank if r.mask is None else r.mask for r in rows]) if masked else None,
        time_ids=torch.tensor([row.time_ids for row in rows]),
        noise=noise,
        input_noise=input_noise,
        timesteps=timesteps,
    )


def pick_rows(examples: Sequence[Encoded], index: int, count: int, seed: int) -> list[Encoded]:
    """Rows of one size. Within a size every example comes once before any comes again, in a seeded
    order; sizes are drawn in proportion to their examples."""
    sizes: dict[torch.Size, list[Encoded]] = {}
    for example in examples:
        sizes.setdefault(example.mean.shape, []).append(example)
    groups, place = list(sizes.values()), index
    group = groups[0]
    if len(groups) > 1:
        # Replayed from the start: which sizes came before is a function of the seed as well.
        draw = random.Random(seed * 104_729 + 1)
        drawn = draw.choices(range(len(groups)), [len(g) for g in groups], k=index + 1)
        group, place = groups[drawn[-1]], drawn[:-1].count(drawn[-1])
    rows = []
    for k in range(place * count, (place + 1) * count):
        epoch, offset = divmod(k, len(group))
        generator = torch.Generator().manual_seed((seed * 7919 + epoch) % SEEDS)
        rows.append(group[int(torch.randperm(len(group), generator=generator)[offset])])
    return rows


def name_bad_rows(batch: Batch, errors: Tensor) -> str:
    """The pictures and timesteps whose loss is not finite, for an error's sentence."""
    rows = (~torch.isfinite(errors)).nonzero().flatten().tolist()
    words = [f"{batch.names[row]} at timestep {int(batch.timesteps[row])}" for row in rows]
    return f" on {', '.join(words[:3])}" if words else ""
