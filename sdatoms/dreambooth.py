"""Instance and class pictures as cached latents and prompt embeddings, and the batches drawn from
them.

Batches are a function of the seed and their number alone: a resumed run sees what the uninterrupted
run would have, and N processes share one batch as one process would have drawn it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdatoms.errors import AtomError
from sdatoms.pictures import crop_to, find_pictures, read_picture, to_tensor
from sdatoms.pipeline import paint

__all__ = ["Batch", "Examples", "draw_batch", "encode_examples", "make_class_pictures"]

CAPTION_LIMIT = 2000


class Batch(NamedTuple):
    """One step's worth of training input for one process."""

    latents: Tensor
    """`(B, c, h, w)`, scaled as the UNet expects them."""
    context: Tensor
    """Prompt embeddings `(B, tokens, width)`."""
    noise: Tensor
    timesteps: Tensor
    """`(B,)`, whole numbers in [0, num_train_timesteps)."""
    weights: Tensor
    """`(B,)`, 1 for instance rows and the prior's weight for class rows."""


@dataclass(frozen=True)
class Examples:
    """Cached latent distributions and prompt embeddings of a set of pictures."""

    names: tuple[str, ...]
    mean: Tensor
    """`(n, c, h, w)`, scaled."""
    deviation: Tensor
    context: Tensor
    """`(n, tokens, width)`."""

    def __len__(self) -> int:
        return len(self.mean)


def read_prompt(picture: Path, prompt: str) -> str:
    """The picture's own caption from a `.txt` beside it, else the prompt all share."""
    sidecar = picture.with_suffix(".txt")
    text = (
        sidecar.read_text(encoding="utf-8", errors="replace").strip()[:CAPTION_LIMIT]
        if sidecar.is_file()
        else ""
    )
    return text or prompt


def is_caption(path: Path, pictures: list[Path]) -> bool:
    return path.suffix == ".txt" and any(p.stem == path.stem for p in pictures)


@torch.no_grad()
def encode_examples(
    pipe: Any,
    folder: Path,
    prompt: str,
    resolution: int,
    log: Callable[[str], None],
    flip: bool = False,
) -> Examples:
    """Read a folder's pictures, cover and crop them to `resolution` px, and encode them and their
    prompts.

    Raises:
        AtomError: the folder holds no usable picture.
    """
    pictures, others = find_pictures(folder)
    ignored = [p.name for p in others if not is_caption(p, pictures)]
    if ignored:
        log(
            f"ignored {len(ignored)} files that are no pictures in {folder.name}: "
            f"{', '.join(ignored[:10])}"
        )
    tensors = torch.stack([to_tensor(crop_to(read_picture(p), resolution)) for p in pictures])
    prompts = [read_prompt(p, prompt) for p in pictures]
    if flip:
        tensors, prompts, pictures = (
            torch.cat([tensors, tensors.flip(-1)]),
            prompts * 2,
            pictures * 2,
        )
    vae, device = pipe.vae, pipe.device
    means, deviations = [], []
    for part in tensors.split(8):
        posterior = vae.encode(part.to(device, vae.dtype)).latent_dist
        means.append(posterior.mean.float() * vae.config.scaling_factor)
        deviations.append(posterior.std.float() * vae.config.scaling_factor)
    contexts = {p: encode_prompt(pipe, p) for p in dict.fromkeys(prompts)}
    return Examples(
        names=tuple(p.name for p in pictures),
        mean=torch.cat(means).cpu(),
        deviation=torch.cat(deviations).cpu(),
        context=torch.cat([contexts[p] for p in prompts]).float().cpu(),
    )


@torch.no_grad()
def encode_prompt(pipe: Any, prompt: str) -> Tensor:
    """`(1, tokens, width)` as the pipeline itself encodes it."""
    ids = pipe.tokenizer(
        prompt,
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return pipe.text_encoder(ids.to(pipe.device))[0]


def make_class_pictures(
    pipe: Any,
    folder: Path,
    prompt: str,
    count: int,
    *,
    seed: int,
    batch_size: int,
    log: Callable[[str], None],
) -> int:
    """Paint class pictures with the base until `folder` holds `count`; returns how many were
    painted."""
    folder.mkdir(parents=True, exist_ok=True)
    present = [p for p in folder.iterdir() if p.suffix in (".png", ".jpg", ".jpeg", ".webp")]
    missing = count - len(present)
    if missing <= 0:
        return 0
    log(f"painting {missing} class pictures of {prompt!r}")
    seeds = [seed * 100_003 + len(present) + k for k in range(missing)]
    for start in range(0, missing, batch_size):
        part = seeds[start : start + batch_size]
        pictures = paint(pipe, [prompt] * len(part), part, batch_size=batch_size)
        for number, picture in zip(part, pictures, strict=True):
            picture.save(folder / f"class-{number:09d}.png")
    return missing


def draw_batch(
    instances: Examples,
    classes: Examples | None,
    *,
    index: int,
    batch_size: int,
    num_processes: int,
    process: int,
    num_train_timesteps: int,
    prior_loss_weight: float,
    seed: int,
) -> Batch:
    """The `index`-th batch of the run for one process, a function of `seed` and `index` alone."""
    whole = batch_size * num_processes
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    rows = [pick_rows(instances, index * whole, whole, seed, generator)]
    weights = [torch.ones(whole)]
    if classes is not None:
        rows.append(pick_rows(classes, index * whole, whole, seed + 1, generator))
        weights.append(torch.full((whole,), prior_loss_weight))
    mine = slice(process * batch_size, (process + 1) * batch_size)
    parts = []
    for (latents, context), weight in zip(rows, weights, strict=True):
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(num_train_timesteps, (whole,), generator=generator)
        parts.append(
            Batch(latents[mine], context[mine], noise[mine], timesteps[mine], weight[mine])
        )
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def pick_rows(
    examples: Examples, first: int, count: int, seed: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sampled latents and contexts: every example once before any comes again, in a seeded order
    per epoch."""
    index = []
    for place in range(first, first + count):
        epoch, offset = divmod(place, len(examples))
        order = torch.randperm(
            len(examples), generator=torch.Generator().manual_seed(seed * 7919 + epoch)
        )
        index.append(int(order[offset]))
    noise = torch.randn(count, *examples.mean.shape[1:], generator=generator)
    return examples.mean[index] + examples.deviation[index] * noise, examples.context[index]


def check_folders(instance_data_dir: Path, with_prior: bool, class_prompt: str | None) -> None:
    """Refuse, before any model is loaded, what cannot be trained on."""
    find_pictures(instance_data_dir)
    if with_prior and not class_prompt:
        raise AtomError(
            "--with_prior_preservation needs --class_prompt, the words for the class, such as "
            "'a dog'"
        )
