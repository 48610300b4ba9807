r"""What personalization is measured by: figures from embeddings, and from true pictures.

An `Evaluator` gives the embeddings, rows of length 1; a cosine of two of them is in [-1, 1].

- fidelity (up): cosine of the style embeddings of generated and instance pictures; what the
  DreamBooth paper calls DINO where the embedding is DINO's (Ruiz et al., CVPR 2023,
  https://arxiv.org/abs/2208.12242, evaluation metrics).
- likeness (up): the same of their concept embeddings; CLIP-I in that paper. Six drawings of one
  octopus by six hands have high likeness and low fidelity.
- alignment (up): cosine of a picture's concept embedding and its prompt's; CLIP-T in that paper.
  Where the plain subject is known, the evaluator is shown it first (`introduction`).
- diversity (up): mean distance between pictures painted for one prompt; that paper's DIV, with the
  embedding in the place of LPIPS.
- drift (down): how far pictures of unrelated prompts move from the base's, as the image-generation
  benchmark of PEFT defines it (https://github.com/huggingface/peft, method_comparison/image-gen).

Where the true picture of a prompt is known:

- truth (up): cosine of the painted and the true picture's instance embeddings.
- error (down): their mean squared difference at 16×16 px, on [0, 1].
- followed (up): share of the prompt's modifiers that the probe finds in the painted picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdatoms.errors import AtomError

__all__ = [
    "mean",
    "measure_alignment",
    "measure_diversity",
    "measure_drift",
    "measure_error",
    "measure_fidelity",
    "measure_followed",
    "measure_truth",
]


def measure_fidelity(styles: Tensor, instances: Tensor | None = None) -> Tensor:
    """Mean cosine of each row of `styles (n, e)` to `instances (k, e)`: `(n,)` in [-1, 1], 1 for a
    copy of a single instance picture. Of concept embeddings, this is likeness.

    Without `instances` the rows are compared with each other, none with itself: what a perfect
    imitation of them would score.

    Raises:
        AtomError: there is nothing to compare with.
    """
    if instances is not None:
        if not len(instances):
            raise AtomError("fidelity came without instance pictures; it takes at least 1")
        return (styles @ instances.T).mean(1)
    if len(styles) < 2:
        raise AtomError(f"{len(styles)} pictures cannot be compared among themselves; 2 can")
    cosines = styles @ styles.T
    return (cosines.sum(1) - cosines.diagonal()) / (len(styles) - 1)


def measure_alignment(concepts: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each picture's concept embedding with its own text's: `(n, d)` twice → `(n,)` in
    [-1, 1]."""
    return pair(concepts, texts, "texts")


def measure_diversity(styles: Tensor) -> Tensor:
    """Mean of `1 - cosine` over all pairs of seeds: `(prompts, seeds, e)` → `(prompts,)` in [0, 2],
    0 where all seeds give one picture.

    Raises:
        AtomError: there is one seed only.
    """
    seeds = styles.shape[1]
    if seeds < 2:
        raise AtomError(f"diversity came with {seeds} picture a prompt; it takes at least 2 seeds")
    cosines = styles @ styles.mT
    return 1 - (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (
        seeds * (seeds - 1)
    )


def measure_drift(styles: Tensor, base: Tensor) -> Tensor:
    """`1 - cosine` of each picture with the base's for the same prompt and seed: `(n, e)` twice →
    `(n,)` in [0, 2], 0 where the pictures are the same. Prompts are ones that have nothing to do
    with what was trained."""
    return 1 - pair(styles, base, "pictures by the base")


def measure_truth(instances: Tensor, true: Tensor) -> Tensor:
    """Cosine of each picture's instance embedding with its true picture's: `(n, k)` twice → `(n,)`
    in [-1, 1], 1 for the true picture itself."""
    return pair(instances, true, "true pictures")


def measure_error(pictures: Sequence[Image.Image], true: Sequence[Image.Image]) -> Tensor:
    """Mean squared difference of each picture and its true one at 16×16 px: `(n,)` in [0, 1]."""
    return (shrink(pictures) - shrink(true)).square().mean((1, 2, 3))


def shrink(pictures: Sequence[Image.Image]) -> Tensor:
    """Averages of 16×16 px: `(n, 16, 16, 3)` in [0, 1]."""
    small = [p.convert("RGB").resize((16, 16), Image.Resampling.BOX) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(p, np.float32) / 255 for p in small]))


def measure_followed(
    found: Mapping[str, Sequence[str | int | None]], asked: Sequence[Mapping[str, str | int]]
) -> Tensor:
    """Share of what each prompt asks for that its picture shows: `(n,)` in [0, 1], NaN where it
    asks for nothing.

    Args:
        found: kind of modifier → the value that each picture shows.
        asked: kind → value that each prompt asks for.
    """
    shares = []
    for n, wished in enumerate(asked):
        right = [found[kind][n] == value for kind, value in wished.items()]
        shares.append(sum(right) / len(right) if right else float("nan"))
    return torch.tensor(shares)


def pair(a: Tensor, b: Tensor, what: str) -> Tensor:
    if a.shape != b.shape:
        raise AtomError(
            f"{tuple(a.shape)} embeddings came with {tuple(b.shape)} of {what}; each takes its own"
        )
    return (a * b).sum(1)


def mean(values: Tensor) -> float:
    """A figure of all pictures, from one of each."""
    return float(values.mean())
