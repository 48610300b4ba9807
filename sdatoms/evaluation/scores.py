"""Score atom files on their base, beside rows that tell whether the scores can be believed.

Every file paints the same prompts with the same seeds as the base without atoms. Two of the sanity
rows are the base's: as it paints, and its pictures of other prompts, which alignment must put below
them. Those that need no base are in `rows.py`.
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
from sdatoms.diffusion.triggers import UNRELATED_PROMPTS, clean_prompt
from sdatoms.errors import AtomError
from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.examiner import Examiner, align
from sdatoms.evaluation.metrics import (
    mean,
    measure_diversity,
    measure_drift,
    measure_fidelity,
)
from sdatoms.evaluation.rows import (
    Row,
    read_subject_pictures,
    score_subject,
    score_true,
    score_truth,
)
from sdatoms.evaluation.truth import KNOWN, Truth, find_things, read_truth
from sdatoms.files.atom_file import AtomFile

__all__ = [
    "Scorer",
    "evaluate",
]


class Scorer:
    """Paints the same prompts and seeds by every candidate, and scores what comes out."""

    def __init__(
        self,
        base: Any,
        evaluator: Evaluator,
        *,
        prompts: Sequence[str],
        seeds: Sequence[int],
        subject: Path | None = None,
        batch_size: int = 8,
        **painting: Any,
    ) -> None:
        """`base` paints once, at once: drift is the distance from these pictures. `painting` goes
        to `paint`.

        Fidelity needs `subject`, a folder of instance pictures; diversity needs two seeds; truth,
        error and followed need a subject whose true pictures are bundled, and prompts of its list.
        Drift is taken on ten prompts that have nothing to do with any bundled subject.

        Raises:
            AtomError: there is no prompt or seed.
        """
        if not prompts or not seeds:
            raise AtomError(
                f"{len(prompts)} prompts came with {len(seeds)} seeds; at least 1 of each is needed"
            )
        self.evaluator, self.shape = evaluator, (len(prompts), len(seeds))
        self.given = read_subject_pictures(subject, evaluator) if subject else None
        self.asked = [(prompt, seed) for prompt in prompts for seed in seeds]
        self.count = len(self.asked)
        self.asked += [(prompt, seed) for seed, prompt in enumerate(UNRELATED_PROMPTS)]
        self.painting: dict[str, Any] = {"batch_size": batch_size} | painting
        self.texts = evaluator.embed_texts([clean_prompt(p) for p, _ in self.asked[: self.count]])
        self.pictures: list[Image.Image] = []
        """What the last candidate painted for the prompts, seed by seed; the base at first."""
        self.unrelated: list[Image.Image] = []
        """What it painted of other things."""
        self.base = self.look(base)
        self.shown, self.strange = self.pictures, self.unrelated
        """What the base painted for the prompts, and of other things."""
        self.examiner: Examiner | None = None
        """Knows the true pictures of the prompts, where there are any."""
        self.ceiling: tuple[list[str], list[Image.Image]] = ([], [])
        """Prompts of the same settings about things that the base knows, and its pictures."""
        truth = self.given.truth if self.given else None
        if truth and any(n is not None for n in truth.find(prompts)):
            self.examiner = Examiner(evaluator, truth)
            self.ceiling = self.paint_ceiling(base, truth, prompts, seeds[0])

    def paint_ceiling(
        self, base: Any, truth: Truth, prompts: Sequence[str], seed: int
    ) -> tuple[list[str], list[Image.Image]]:
        known = read_truth(KNOWN)
        asked = [known.wishes[n].prompt for n in truth.find(prompts) if n is not None]
        return asked, paint(base, asked, [seed] * len(asked), **self.painting)

    def look(self, pipe: Any) -> tuple[Tensor, Tensor]:
        words, seeds = [p for p, _ in self.asked], [s for _, s in self.asked]
        pictures = paint(pipe, words, seeds, **self.painting)
        self.pictures, self.unrelated = pictures[: self.count], pictures[self.count :]
        return self.evaluator.embed_concepts(pictures), self.evaluator.embed_styles(pictures)

    def score(self, name: str, pipe: Any | None = None) -> Row:
        """The row of a pipeline; without one, of the base."""
        concepts, styles = self.look(pipe) if pipe else self.base
        count, given = self.count, self.given
        pictures = self.pictures if pipe else self.shown
        words = [prompt for prompt, _ in self.asked[:count]]
        own = concepts[:count]
        return Row(
            name,
            count,
            fidelity=mean(measure_fidelity(styles[:count], given.styles)) if given else None,
            likeness=mean(measure_fidelity(own, given.concepts)) if given else None,
            alignment=mean(self.align(pictures, own, self.texts, words)),
            diversity=mean(measure_diversity(styles[:count].unflatten(0, self.shape)))
            if self.shape[1] > 1
            else None,
            drift=mean(measure_drift(styles[count:], self.base[1][count:])),
            **(self.examiner.score(pictures, words) if self.examiner else {}),
        )

    def check(self) -> list[Row]:
        """The sanity rows: by them one sees whether the others can be believed."""
        rows, given = [self.score("base without atoms")], self.given
        if self.examiner:
            rows += self.check_truth(self.examiner)
        if given:
            rows += score_subject(given, self.evaluator)
        concepts, styles = (part[self.count :] for part in self.base)
        places = torch.arange(len(styles)) * self.shape[1] % self.count
        words = [self.asked[place][0] for place in places]
        wrong = Row(
            "wrong concept: base, other prompts",
            len(styles),
            fidelity=mean(measure_fidelity(styles, given.styles)) if given else None,
            likeness=mean(measure_fidelity(concepts, given.concepts)) if given else None,
            alignment=mean(self.align(self.strange, concepts, self.texts[places], words)),
        )
        return [*rows, wrong]

    def align(
        self,
        pictures: Sequence[Image.Image],
        concepts: Tensor,
        texts: Tensor,
        prompts: Sequence[str],
    ) -> Tensor:
        """Alignment of pictures with prompts, whoever painted them."""
        truth = self.given.truth if self.given else None
        return align(self.evaluator, pictures, concepts, texts, find_things(truth, prompts))

    def check_truth(self, examiner: Examiner) -> list[Row]:
        """The rows of true pictures, and what the base makes of things that it was trained on."""
        words = [prompt for prompt, _ in self.asked[: self.count : self.shape[1]]]
        asked, painted = self.ceiling
        known = Examiner(self.evaluator, read_truth(KNOWN), examiner.probe)
        ceiling = score_true("ceiling: base, things it knows", known, painted, asked)
        return [*score_truth(examiner, words), ceiling]


def evaluate(
    pipe: Any,
    files: Sequence[tuple[str, AtomFile]],
    evaluator: Evaluator,
    *,
    strength: float = 1.0,
    report: Callable[[str], None] = lambda text: None,
    **asked: Any,
) -> list[Row]:
    """One row for each `(name, file)`, then the sanity rows; `asked` goes to `Scorer`. The pipeline
    comes back as it was.

    Raises:
        AtomError: there is no prompt or seed, or a file does not fit the base.
    """
    report("generating with the base alone")
    scorer = Scorer(pipe, evaluator, **asked)
    rows = []
    for name, file in files:
        report(f"generating with {name}")
        adapters = load_atoms(pipe, file, name=name, strength=strength)
        try:
            rows.append(scorer.score(name, pipe))
        finally:
            adapters.remove(name)
    return rows + scorer.check()
