"""Batches of instance and class pictures, with their masks.

Batches are a function of the seed and their number alone: a resumed run sees what the uninterrupted
run would have, and N processes share one batch as one process would have drawn it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from sdatoms.training.denoising import Denoising
from sdatoms.training.encodings import Encoded

TURNS = 1000
"""Rows after which concepts with shares come in the same order again."""
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
    class_prompts: tuple[str | None, ...] = ()
    """Of each row's own class, where its concept has another than the run."""

    def share(self, process: int, size: int) -> Batch:
        """The rows of one process."""
        return self.take(slice(process * size, (process + 1) * size))

    def take(self, rows: slice) -> Batch:
        """Some of the rows."""
        return replace(
            self,
            names=self.names[rows],
            prompts=self.prompts[rows],
            latents=self.latents[rows],
            mask=None if self.mask is None else self.mask[rows],
            time_ids=self.time_ids[rows],
            noise=self.noise[rows],
            input_noise=self.input_noise[rows],
            timesteps=self.timesteps[rows],
            class_prompts=self.class_prompts[rows],
        )

    def as_class(self, prompt: str) -> Batch:
        """The same noisy latents read as their class, whose target is the base's prediction.

        Args:
            prompt: of rows whose concept has no class of its own.
        """
        prompts = tuple(own or prompt for own in self.class_prompts)
        return replace(self, prompts=prompts, mask=None, prior=True, from_base=True)


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
    prior_share: float = 0.0
    """Share of a batch's rows that are read as their class alone; 0: all are read as both."""


def draw_batches(
    instances: Sequence[Encoded], classes: Sequence[Encoded] | None, index: int, draw: Draw
) -> list[Batch]:
    """The `index`-th batch of the run for one process: instance rows and, if kept, class rows.

    The base's prediction is a target for the instances' own noisy latents: for all of them, or for
    the first `prior_share` of the rows, which then teach no instance.
    """
    generator = torch.Generator().manual_seed((draw.seed * 1_000_003 + index) % SEEDS)
    whole = [draw_rows(instances, index, draw.seed, draw, generator)]
    if classes is not None:
        whole.append(replace(draw_rows(classes, index, draw.seed + 1, draw, generator), prior=True))
    batches = [batch.share(draw.process, draw.batch_size) for batch in whole]
    if classes is not None or draw.class_prompt is None:
        return batches
    own = batches[0]
    if not draw.prior_share:
        return [own, own.as_class(draw.class_prompt)]
    kept = round(draw.prior_share * draw.batch_size)
    return [own.take(slice(kept, None)), own.take(slice(kept)).as_class(draw.class_prompt)]


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
    prompts = [row.draw_prompt(f"{seed}:{index}:{place}") for place, row in enumerate(rows)]
    masked = any(row.mask is not None for row in rows)
    blank = torch.ones(1, *mean.shape[-2:])
    return Batch(
        names=tuple(row.name for row in rows),
        prompts=tuple("" if e else text for text, e in zip(prompts, empty, strict=True)),
        latents=latents,
        mask=torch.stack([blank if r.mask is None else r.mask for r in rows]) if masked else None,
        time_ids=torch.tensor([row.time_ids for row in rows]),
        noise=noise,
        input_noise=input_noise,
        timesteps=timesteps,
        class_prompts=tuple(row.class_prompt for row in rows),
    )


def pick_rows(examples: Sequence[Encoded], index: int, count: int, seed: int) -> list[Encoded]:
    """Rows of one size. Within a size every example comes once before any comes again, in a seeded
    order; sizes are drawn in proportion to their examples.

    Where concepts have shares, each has its own such order, and rows go round among the concepts so
    that each has its share after any number of them.
    """
    sizes: dict[torch.Size, list[Encoded]] = {}
    for example in examples:
        sizes.setdefault(example.mean.shape, []).append(example)
    groups, place = list(sizes.values()), index
    group, weights = groups[0], weigh_rows(examples)
    if len(groups) > 1:
        # Replayed from the start: which sizes came before is a function of the seed as well.
        draw = random.Random(seed * 104_729 + 1)
        sums = [sum(weights[row.concept] for row in g) if weights else len(g) for g in groups]
        drawn = draw.choices(range(len(groups)), sums, k=index + 1)
        group, place = groups[drawn[-1]], drawn[:-1].count(drawn[-1])
    numbers = range(place * count, (place + 1) * count)
    if not weights:
        return [pick_row(group, k, seed) for k in numbers]
    parts: dict[str, list[Encoded]] = {}
    for row in group:
        parts.setdefault(row.concept, []).append(row)
    turns = share_turns(tuple(len(rows) * weights[name] for name, rows in parts.items()))
    rows, held = [], list(parts.values())
    for k in numbers:
        rounds, step = divmod(k, len(turns))
        part = turns[step]
        rows.append(
            pick_row(held[part], rounds * turns.count(part) + turns[:step].count(part), seed)
        )
    return rows


def pick_row(group: Sequence[Encoded], number: int, seed: int) -> Encoded:
    """The `number`-th row of a group's seeded order."""
    epoch, offset = divmod(number, len(group))
    generator = torch.Generator().manual_seed((seed * 7919 + epoch) % SEEDS)
    return group[int(torch.randperm(len(group), generator=generator)[offset])]


def weigh_rows(examples: Sequence[Encoded]) -> dict[str, float]:
    """Concept → the share of each of its rows; empty where concepts have no shares."""
    counts = Counter(row.concept for row in examples)
    return {row.concept: row.share / counts[row.concept] for row in examples if row.share}


@lru_cache(maxsize=256)
def share_turns(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Whose turn it is in each of `TURNS` rows: always whoever is furthest behind its share."""
    whole, taken = sum(weights), [0] * len(weights)
    turns = []
    for step in range(1, TURNS + 1):
        behind = [step * w / whole - t for w, t in zip(weights, taken, strict=True)]
        part = behind.index(max(behind))
        taken[part] += 1
        turns.append(part)
    return tuple(turns)


def name_bad_rows(batch: Batch, errors: Tensor) -> str:
    """The pictures and timesteps whose loss is not finite, for an error's sentence."""
    rows = (~torch.isfinite(errors)).nonzero().flatten().tolist()
    words = [f"{batch.names[row]} at timestep {int(batch.timesteps[row])}" for row in rows]
    return f" on {', '.join(words[:3])}" if words else ""
