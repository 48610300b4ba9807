"""Introduce a subject to a CLIP model that was never shown it; then ask what follows a prompt.

Such a model takes the subject for the nearest thing that it knows, and does not know which way up
it stands, so that what it says of a picture is for the most part a mistake about the subject. Shown
the plain subject once, upright and upside down, it can tell the subject from its setting. Of a
picture's row x the mistake that it makes about the plain picture, a less its caption's row n, is
taken away in part; and picture and prompt t are compared as they are seen from the subject's name,
so that the subject alone does not pass for a followed prompt:

    x' = x + S Σ_k w_k (n_k - a_k) + P (v_+ - v_-) h,
    w = softmax_k(H (x·a_k + u_k) + F f_k),    v = softmax_z(F g_z),
    alignment = cos(x' - K n_0, t - K n_0),

over k, upright (0) and upside down (1); u is `UPRIGHT` for the first, since most pictures are so,
and f_k is how well the plain picture fits in the picture, pixel by pixel (`standing`). Of two
things a model cannot say which is above when it knows one alone: g_z is how well the plain picture
fits above the middle (+), in it and below it (-), and h what a caption of the subject gains by
"above" in place of "below" other things.
A cache of few pictures that is asked by nearness is Tip-Adapter's (Zhang et al., "Tip-Adapter",
ECCV 2022, https://arxiv.org/abs/2111.03930, equation 4), differences from a source picture and its
text are StyleGAN-NADA's (Gal et al., 2021, https://arxiv.org/abs/2108.00946, equation 2). The
numbers were chosen on true scenes of things that the bundled model was trained on, and on generated
pictures by what the probe finds in them (`docs/results.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdatoms.errors import AtomError
from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.standing import FITTING

__all__ = [
    "CONSTANTS",
    "Introduction",
    "correct_rows",
    "introduce",
    "see_from",
    "turn_over",
    "weigh",
]

SHARE, SHARPNESS, UPRIGHT, NAME, FIT, HEIGHT = NUMBERS = 0.7, 40.0, 0.05, 0.3, 40.0, 0.15
"""S, H, u, K, F and P above."""
OTHERS = ("a star", "a dog", "an apple", "a car")
"""What a subject is said to be above and below; any well-known things."""
CONSTANTS = (NUMBERS, OTHERS, FITTING)
"""All that an introduction depends on beside the evaluator."""


@dataclass(frozen=True)
class Introduction:
    """What a CLIP model makes of plain subjects and of their captions, unit rows."""

    pictures: Tensor
    """`(n, 2, d)`: upright, upside down."""
    captions: Tensor
    """`(n, 2, d)`."""
    heights: Tensor
    """What captions gain by saying above in place of below, `(n, d)`, not of unit length."""

    def take(self, numbers: Tensor) -> Introduction:
        """Those of the subjects of these numbers, `(m,)`."""
        return Introduction(self.pictures[numbers], self.captions[numbers], self.heights[numbers])

    def align(self, rows: Tensor, texts: Tensor, fits: Tensor) -> Tensor:
        """Alignment of pictures with texts, unit rows `(n, d)` twice, the n-th of the n-th subject:
        `(n,)` in [-1, 1].

        Args:
            fits: of each subject in its picture, `(n, 2, 3)`, as `fit_plain` finds them.
        """
        known = correct_rows(rows, self.pictures, self.captions, fits.amax(2))
        high, _, low = (FIT * fits.amax(1)).softmax(1).unbind(1)
        known = known + HEIGHT * (high - low)[:, None] * self.heights
        seen = see_from(known, self.captions)
        return (seen * see_from(texts, self.captions)).sum(1)


def introduce(
    evaluator: Evaluator, plain: Sequence[Image.Image], captions: Sequence[str]
) -> Introduction:
    """Show plain subjects, each with its caption; equal ones are looked at once.

    Args:
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
    name = lambda picture: (picture.size, picture.mode, picture.tobytes())
    things = [(name(picture), text) for picture, text in zip(plain, captions, strict=True)]
    places = {thing: n for n, thing in enumerate(dict.fromkeys(things))}
    shown = {places[thing]: picture for thing, picture in zip(things, plain, strict=True)}
    pictures = [view for n in range(len(places)) for view in (shown[n], turn_over(shown[n]))]
    texts = [said for _, text in places for said in (text, f"{text}, upside down")]
    where = [
        f"{text} {relation} {other}"
        for _, text in places
        for relation in ("above", "below")
        for other in OTHERS
    ]
    said = evaluator.embed_texts([*texts, *where])
    above, below = said[len(texts) :].unflatten(0, (-1, 2, len(OTHERS))).mean(2).unbind(1)
    return Introduction(
        evaluator.embed_concepts(pictures).unflatten(0, (-1, 2)),
        said[: len(texts)].unflatten(0, (-1, 2)),
        above - below,
    ).take(torch.tensor([places[thing] for thing in things]))


def turn_over(picture: Image.Image) -> Image.Image:
    """The same upside down."""
    return picture.transpose(Image.Transpose.ROTATE_180)


def correct_rows(
    rows: Tensor, pictures: Tensor, captions: Tensor, fits: Tensor | None = None
) -> Tensor:
    """`x'` of unit rows `(n, d)`, by those of plain pictures and captions `(n, 2, d)`, and fits
    `(n, 2)`, where they were measured."""
    mistakes = weigh(rows, pictures, fits).softmax(1)[..., None] * (captions - pictures)
    return rows + SHARE * mistakes.sum(1)


def see_from(rows: Tensor, captions: Tensor) -> Tensor:
    """Rows `(n, d)` less a part of their subject's name, the first of `captions (n, 2, d)`; of
    length 1."""
    return F.normalize(rows - NAME * captions[:, 0], dim=1)


def weigh(rows: Tensor, pictures: Tensor, fits: Tensor | None = None) -> Tensor:
    """Logits `(n, 2)` of which plain picture each row `(n, d)` shows."""
    near = torch.einsum("nd,nkd->nk", rows, pictures)
    logits = SHARPNESS * (near + torch.tensor([UPRIGHT, 0.0]))
    return logits if fits is None else logits + FIT * fits
