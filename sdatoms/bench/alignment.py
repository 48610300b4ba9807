"""Whether alignment tells a followed prompt from an ignored one, with an introduction and without.

On true pictures, where the answer is known, and on generated ones, where the probe says which
prompts they follow: it was trained apart from the evaluator, on true scenes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdatoms.adapters.load import load_atoms
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.examiner import align, stack
from sdatoms.evaluation.metrics import measure_alignment, measure_followed
from sdatoms.evaluation.probe import Probe, find_modifiers
from sdatoms.evaluation.truth import Wish, list_truths, read_truth

__all__ = ["judge_generated", "judge_true", "rank_apart"]

WAYS = ("alone", "introduced")
"""The cosine of picture and prompt alone, and with the subject introduced first."""


def judge_true(evaluator: Evaluator, names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Way → mean alignment, over subjects in scenes, of the true picture, of other prompts' true
    pictures, of another subject's in the same setting, and of the subject alone.

    Args:
        names: of two subjects or more; all of them when none is given.
    """
    rows: dict[str, dict[str, list[Tensor]]] = {way: {} for way in WAYS}
    names = list(names) or list_truths()
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        wishes = list_asked(name)
        shown = {
            "true": [wish.picture for wish in wishes],
            "other prompt": [wish.picture for wish in wishes[7:] + wishes[:7]],
            "other subject": [wish.picture for wish in list_asked(other)],
            "subject alone": [wish.plain for wish in wishes],
        }
        for what, pictures in shown.items():
            for way, found in zip(WAYS, judge(evaluator, pictures, wishes), strict=True):
                rows[way].setdefault(what, []).append(found)
    return {
        way: {what: float(torch.cat(found).mean()) for what, found in own.items()}
        for way, own in rows.items()
    }


def judge_generated(
    pipe: Any,
    files: Sequence[tuple[str, Path]],
    evaluator: Evaluator,
    probe: Probe,
    seeds: Sequence[int] = (0, 1),
    prompts: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """What the base and an atom file of each of some subjects generate for its known prompts: how
    often a picture that follows its whole prompt, as the probe finds, has more alignment than one
    that does not, by both ways; and how many pictures there were.

    Args:
        files: name of a subject in scenes, and a file that learnt it.
        prompts: at most so many of a subject; all of them when not given.
    """
    aligned, followed = [], []
    for name, path in files:
        wishes = [wish for wish in list_asked(name)[:prompts] for _ in seeds]
        asked = [wish.prompt for wish in wishes], [*seeds] * (len(wishes) // len(seeds))
        for own in (None, path):
            who = f"by {own.name}" if own else "by the base"
            report(f"generating {len(wishes)} pictures of {name}, {who}")
            adapters = load_atoms(pipe, own, name="judged") if own else None
            try:
                pictures = paint(pipe, *asked)
            finally:
                if adapters:
                    adapters.remove("judged")
            aligned.append(torch.stack(judge(evaluator, pictures, wishes)))
            found = find_modifiers(probe, stack(pictures), stack([wish.plain for wish in wishes]))
            followed.append(measure_followed(found, [wish.modifiers for wish in wishes]))
    whole, both = torch.cat(followed) == 1, torch.cat(aligned, 1)
    facts = {way: rank_apart(row[whole], row[~whole]) for way, row in zip(WAYS, both, strict=True)}
    return facts | {"pictures": len(whole), "followed": float(whole.float().mean())}


def list_asked(name: str) -> list[Wish]:
    return [wish for wish in read_truth(name).wishes if wish.modifiers]


def judge(
    evaluator: Evaluator, pictures: Sequence[Image.Image], wishes: Sequence[Wish]
) -> list[Tensor]:
    """Alignment of pictures with the prompts of wishes, by each of `WAYS`."""
    rows = evaluator.embed_concepts(pictures)
    texts = evaluator.embed_texts([clean_prompt(wish.prompt) for wish in wishes])
    return [measure_alignment(rows, texts), align(evaluator, pictures, rows, texts, wishes)]


def rank_apart(more: Tensor, less: Tensor) -> float:
    """Share of pairs in which the first of the two has more, ties by half: the area under the
    receiver's curve; 0.5 where nothing is told apart."""
    above = (more[:, None] > less).float() + (more[:, None] == less).float() / 2
    return float(above.mean())
