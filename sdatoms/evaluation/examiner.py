"""The examiner: compares pictures with the true ones of their prompts.

Its own checks come from true pictures alone: a subject's own must reach truth 1; other subjects' in
the same settings follow the prompts but are not the subject; the subject alone is it but follows
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.introduction import introduce
from sdatoms.evaluation.metrics import (
    measure_alignment,
    measure_error,
    measure_followed,
    measure_truth,
)
from sdatoms.evaluation.probe import Probe, find_modifiers, load_probe
from sdatoms.evaluation.standing import fit_plain
from sdatoms.evaluation.truth import Truth, Wish, list_truths, read_truth
from sdatoms.pictures import to_tensor

__all__ = ["Examiner", "align", "stack"]

OTHERS = 7
"""How many subjects the row of wrong ones takes: those that follow in the alphabet, in a round."""


class Examiner:
    """Scores pictures of prompts whose true pictures are known."""

    def __init__(self, evaluator: Evaluator, truth: Truth, probe: Probe | None = None) -> None:
        """The bundled probe, unless one is given.

        Raises:
            AtomError: the probe is missing or damaged.
        """
        self.evaluator, self.truth = evaluator, truth
        self.probe = probe or load_probe()

    def score(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[str, float | None]:
        """Means of truth, error and followed over the pictures of known prompts; None where there
        is none, and of followed where no prompt asks for anything."""
        numbers = self.truth.find(prompts)
        both = zip(pictures, numbers, strict=True)
        pairs = [(picture, self.truth.wishes[n]) for picture, n in both if n is not None]
        if not pairs:
            return dict.fromkeys(("truth", "error", "followed"))
        shown = [picture for picture, _ in pairs]
        wishes = [wish for _, wish in pairs]
        true = [wish.picture for wish in wishes]
        embed = self.evaluator.embed_instances
        found = find_modifiers(self.probe, stack(shown), stack([wish.plain for wish in wishes]))
        followed = measure_followed(found, [wish.modifiers for wish in wishes])
        followed = followed[~followed.isnan()]
        return {
            "truth": float(measure_truth(embed(shown), embed(true)).mean()),
            "error": float(measure_error(shown, true).mean()),
            "followed": float(followed.mean()) if len(followed) else None,
        }

    def list_checks(self, prompts: Sequence[str]) -> list[tuple[str, list[Image.Image], list[str]]]:
        """Name, pictures and prompts of the checks on true pictures."""
        numbers = [n for n in self.truth.find(prompts) if n is not None]
        wishes = [self.truth.wishes[n] for n in numbers]
        asked = [wish.prompt for wish in wishes]
        own, names = self.truth.name, [n for n in list_truths() if n != self.truth.name]
        after = sorted(names, key=lambda name: (name < own, name))[:OTHERS]
        others = [read_truth(name) for name in after]
        strange = [other.wishes[n].picture for other in others for n in numbers]
        return [
            ("true pictures", [wish.picture for wish in wishes], asked),
            ("wrong subject: others, same settings", strange, asked * len(others)),
            ("wrong setting: the subject alone", [wish.plain for wish in wishes], asked),
        ]


def align(
    evaluator: Evaluator,
    pictures: Sequence[Image.Image],
    concepts: torch.Tensor,
    texts: torch.Tensor,
    wishes: Sequence[Wish | None] = (),
) -> torch.Tensor:
    """Alignment of pictures with their prompts, `(n,)` in [-1, 1].

    Args:
        concepts: embeddings of `pictures`, `(n, d)`.
        texts: those of the prompts without triggers, `(n, d)`.
        wishes: what shows the plain subject of each picture, which an evaluator that is trained for
            that is shown first.
    """
    found = measure_alignment(concepts, texts)
    known = [(n, wish) for n, wish in enumerate(wishes) if wish and evaluator.is_introduced]
    if known:
        rows = [n for n, _ in known]
        plain, captions = [wish.plain for _, wish in known], [wish.caption for _, wish in known]
        shown = introduce(evaluator, plain, captions)
        fits = fit_plain(stack([pictures[n] for n in rows]), stack(plain))
        found[rows] = shown.align(concepts[rows], texts[rows], fits)
    return found


def stack(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as the probe reads them, `(n, 3, 64, 64)` on [-1, 1]."""
    return torch.stack([to_tensor(p.convert("RGB").resize((64, 64))) for p in pictures])
