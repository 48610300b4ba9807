"""Introduce a subject to a CLIP model that was never shown it.

Such a model takes the subject for the nearest thing that it knows, and does not know which way up
it stands, so that what it says of a picture is for the most part a mistake about the subject. Shown
the plain subject once, upright and upside down, it can tell the subject from its setting: of a
picture's row x the mistake that it makes about the plain picture, a less its caption's row t, is
taken away in part,

    x' = (x + ½ Σ_k w_k (t_k - a_k)) / ‖…‖,    w = softmax_k(15 x·a_k),

over k, upright and upside down. A cache of few pictures that is asked by nearness is Tip-Adapter's
(Zhang et al., "Tip-Adapter", ECCV 2022, https://arxiv.org/abs/2111.03930, equation 4); there the
captions' rows alone are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdatoms.errors import AtomError

__all__ = ["SHARPNESS", "Introduction", "correct_rows", "introduce", "turn_over", "weigh"]

SHARE, SHARPNESS = 0.5, 15.0


@dataclass(frozen=True)
class Introduction:
    """What a CLIP model makes of plain subjects and of their captions, unit rows."""

    pictures: Tensor
    """`(n, 2, d)`: upright, upside down."""
    captions: Tensor
    """`(n, 2, d)`."""

    def correct(self, rows: Tensor) -> Tensor:
        """Rows of pictures `(n, d)`, the n-th of the n-th subject, less the mistake."""
        return correct_rows(rows, self.pictures, self.captions)


def introduce(
    evaluator: Any, plain: Sequence[Image.Image], captions: Sequence[str]
) -> Introduction:
    """Show plain subjects, each with its caption; equal ones are looked at once.

    Args:
        evaluator: an `Evaluator`.
        plain: each subject alone, on white.
        captions: what each is, for instance `a robot`.

    Raises:
        AtomError: there is no subject, or not a caption for each.
    """
    if len(plain) != len(captions) or not plain:
        raise AtomError(
            f"{len(plain)} plain pictures came with {len(captions)} captions; each of at least 1 "
            "takes its own"
        )
    things = [(picture.tobytes(), text) for picture, text in zip(plain, captions, strict=True)]
    places = {thing: n for n, thing in enumerate(dict.fromkeys(things))}
    shown = {places[thing]: picture for thing, picture in zip(things, plain, strict=True)}
    pictures = [view for n in range(len(places)) for view in (shown[n], turn_over(shown[n]))]
    texts = [said for _, text in places for said in (text, f"{text}, upside down")]
    own = torch.tensor([places[thing] for thing in things])
    return Introduction(
        evaluator.embed_concepts(pictures).unflatten(0, (-1, 2))[own],
        evaluator.embed_texts(texts).unflatten(0, (-1, 2))[own],
    )


def turn_over(picture: Image.Image) -> Image.Image:
    """The same upside down."""
    return picture.transpose(Image.Transpose.ROTATE_180)


def correct_rows(rows: Tensor, pictures: Tensor, captions: Tensor) -> Tensor:
    """The equation above: unit rows `(n, d)`, of plain pictures and captions `(n, k, d)`."""
    mistakes = weigh(rows, pictures).softmax(1)[..., None] * (captions - pictures)
    return F.normalize(rows + SHARE * mistakes.sum(1), dim=1)


def weigh(rows: Tensor, pictures: Tensor) -> Tensor:
    """Logits `(n, k)` of which plain picture each row `(n, d)` shows."""
    return SHARPNESS * torch.einsum("nd,nkd->nk", rows, pictures)
