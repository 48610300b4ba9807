r"""What personalization is measured by: five figures from embeddings.

An `Evaluator` gives the embeddings, rows of length 1; a cosine of two of them is in [-1, 1].

- fidelity (up): cosine of the style embeddings of generated and instance pictures; what the
  DreamBooth paper calls DINO where the embedding is DINO's (Ruiz et al., CVPR 2023,
  https://arxiv.org/abs/2208.12242, evaluation metrics).
- likeness (up): the same of their concept embeddings; CLIP-I in that paper. Six drawings of one
  octopus by six hands have high likeness and low fidelity.
- alignment (up): cosine of a picture's concept embedding and its prompt's; CLIP-T in that paper.
- diversity (up): mean distance between pictures painted for one prompt; that paper's DIV, with the
  embedding in the place of LPIPS.
- drift (down): how far pictures of unrelated prompts move from the base's, as the image-generation
  benchmark of PEFT defines it (https://github.com/huggingface/peft, method_comparison/image-gen).
"""

from __future__ import annotations

from torch import Tensor

from sdatoms.errors import AtomError

__all__ = [
    "measure_alignment",
    "measure_diversity",
    "measure_drift",
    "measure_fidelity",
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


def pair(a: Tensor, b: Tensor, what: str) -> Tensor:
    if a.shape != b.shape:
        raise AtomError(
            f"{tuple(a.shape)} embeddings came with {tuple(b.shape)} of {what}; each takes its own"
        )
    return (a * b).sum(1)
