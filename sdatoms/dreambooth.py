"""Batches of instance and class pictures, and the class pictures themselves.

Batches are a function of the seed and their number alone: a resumed run sees what the uninterrupted
run would have, and N processes share one batch as one process would have drawn it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sdatoms.denoising import Denoising
from sdatoms.encodings import Encoded
from sdatoms.pipeline import paint
from sdatoms.preflight import PICTURE_SUFFIXES

__all__ = [
    "Batch",
    "Draw",
    "draw_batches",
    "find_other_class",
    "make_class_pictures",
    "name_bad_rows",
]

PROMPT = "prompt"
"""Key of a class picture's own prompt in its PNG."""


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
    generator = torch.Generator().manual_seed(draw.seed * 1_000_003 + index)
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
        generator = torch.Generator().manual_seed(seed * 7919 + epoch)
        rows.append(group[int(torch.randperm(len(group), generator=generator)[offset])])
    return rows


def name_bad_rows(batch: Batch, errors: Tensor) -> str:
    """The pictures and timesteps whose loss is not finite, for an error's sentence."""
    rows = (~torch.isfinite(errors)).nonzero().flatten().tolist()
    words = [f"{batch.names[row]} at timestep {int(batch.timesteps[row])}" for row in rows]
    return f" on {', '.join(words[:3])}" if words else ""


def make_class_pictures(
    pipe: Any,
    folder: Path,
    prompt: str,
    count: int,
    *,
    seed: int,
    batch_size: int,
    log: Callable[[str], None],
    tell: Callable[[], None] = lambda: None,
) -> int:
    """Paint class pictures with the base until `folder` holds `count`; returns how many were
    painted."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {p.name for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES}
    missing = count - len(present)
    if missing <= 0:
        return 0
    log(f"painting {missing} class pictures of {prompt!r}")
    free = (k for k in itertools.count(seed * 100_003) if name_class_picture(k) not in present)
    seeds = list(itertools.islice(free, missing))
    facts = PngInfo()
    facts.add_itxt(PROMPT, prompt)
    for start in range(0, missing, batch_size):
        tell()
        part = seeds[start : start + batch_size]
        pictures = paint(pipe, [prompt] * len(part), part, batch_size=batch_size)
        for number, picture in zip(part, pictures, strict=True):
            # Renamed when whole: a run killed here must not leave half a picture.
            unfinished = folder / f".class-{number:09d}.tmp"
            picture.save(unfinished, format="PNG", pnginfo=facts)
            unfinished.replace(folder / name_class_picture(number))
    return missing


def name_class_picture(number: int) -> str:
    return f"class-{number:09d}.png"


def find_other_class(folder: Path, prompt: str) -> str | None:
    """The prompt of class pictures painted here for another class; None where there is none."""
    for path in sorted(folder.glob("class-*.png")):
        with Image.open(path) as picture:
            found = picture.info.get(PROMPT)
        if isinstance(found, str) and found != prompt:
            return found
    return None
