"""Score atom files on their base, beside rows that tell whether the scores can be believed.

Every file paints the same prompts with the same seeds as the base without atoms. The sanity rows:
the base itself; the instance pictures among themselves, the most that imitation can reach; the same
or other things drawn by another vendor, which fidelity must put below them; and the base's pictures
of other prompts, which alignment must put below the base's own. Where the true pictures of the
prompts are known, `examiner.py` adds its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    measure_diversity,
    measure_drift,
    measure_fidelity,
)
from sdatoms.evaluation.truth import KNOWN, Truth, find_things, find_truth, read_truth
from sdatoms.files.atom_file import AtomFile
from sdatoms.pictures import find_pictures, read_picture, read_sidecar
from sdatoms.storage import ABOUT, find_assets

__all__ = [
    "Row",
    "Scorer",
    "Subject",
    "evaluate",
    "measure_samples",
    "read_subject_pictures",
    "score_subject",
    "score_truth",
]


@dataclass(frozen=True)
class Subject:
    """Pictures of a subject or a style, and their embeddings."""

    name: str
    pictures: tuple[Image.Image, ...]
    styles: Tensor
    """`(k, e)`."""
    concepts: Tensor
    """`(k, d)`."""
    captions: Tensor | None
    """Their own captions, `(k, d)`; None where a picture has none beside it."""
    prompts: tuple[str, ...]
    """The captions as they were written."""
    package: str | None
    """Where the pictures come from, when `subject.json` says so."""
    truth: Truth | None = None
    """True pictures of prompts about it, where they are known."""


@dataclass(frozen=True)
class Row:
    """One line of the table; None where a figure has no meaning."""

    name: str
    pictures: int
    fidelity: float | None = None
    likeness: float | None = None
    alignment: float | None = None
    diversity: float | None = None
    drift: float | None = None
    truth: float | None = None
    error: float | None = None
    followed: float | None = None


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


def score_truth(examiner: Examiner, prompts: Sequence[str]) -> list[Row]:
    """The rows of true pictures, which need no base: the subject's own, other subjects' in the same
    settings, and the subject without any setting."""
    return [
        score_true(name, examiner, pictures, asked)
        for name, pictures, asked in examiner.list_checks(prompts)
    ]


def score_true(
    name: str, examiner: Examiner, pictures: Sequence[Image.Image], prompts: Sequence[str]
) -> Row:
    evaluator = examiner.evaluator
    texts = evaluator.embed_texts([clean_prompt(prompt) for prompt in prompts])
    concepts = evaluator.embed_concepts(pictures)
    things = find_things(examiner.truth, prompts)
    return Row(
        name,
        len(pictures),
        alignment=mean(align(evaluator, pictures, concepts, texts, things)),
        **examiner.score(pictures, prompts),
    )


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


def measure_samples(
    evaluator: Evaluator, truth: Truth | None = None
) -> Callable[..., dict[str, float]]:
    """What the trainer calls on its samples: mean fidelity to the instance pictures and mean
    alignment with their prompts, both in [-1, 1]; diversity, where a prompt has two pictures, and
    drift, where there are pictures of unrelated prompts, both in [0, 2]; truth, error and followed,
    where the prompts' true pictures are in `truth`.

    `balance` is fidelity and alignment less drift: up as the subject is learnt, down as the prompt
    or the rest of the base is lost.
    """
    examiner = Examiner(evaluator, truth) if truth else None

    def measure(
        pipe: Any,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        instances: Sequence[Image.Image],
        unrelated: Sequence[tuple[Image.Image, Image.Image]],
    ) -> dict[str, float]:
        styles, given = evaluator.embed_styles(pictures), evaluator.embed_styles(instances)
        texts = evaluator.embed_texts([clean_prompt(prompt) for prompt in prompts])
        concepts, things = evaluator.embed_concepts(pictures), find_things(truth, prompts)
        found = {
            "fidelity": mean(measure_fidelity(styles, given)),
            "alignment": mean(align(evaluator, pictures, concepts, texts, things)),
        }
        rows: dict[str, list[int]] = {}
        for k, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(k)
        groups = [measure_diversity(styles[k][None]) for k in rows.values() if len(k) > 1]
        if groups:
            found["diversity"] = mean(torch.cat(groups))
        if unrelated:
            now, base = (evaluator.embed_styles(group) for group in zip(*unrelated, strict=True))
            found["drift"] = mean(measure_drift(now, base))
        if examiner:
            known = examiner.score(pictures, prompts)
            found |= {name: value for name, value in known.items() if value is not None}
        balance = found["fidelity"] + found["alignment"] - found.get("drift", 0.0)
        return {**found, "balance": balance}

    return measure


def score_subject(given: Subject, evaluator: Evaluator) -> list[Row]:
    """The rows that need no base: the instance pictures, and every bundled set from elsewhere."""
    rows = [score_pictures("training pictures, among themselves", evaluator, given)]
    if given.captions is not None:
        wishes = find_things(given.truth, given.prompts)  # all of one thing
        shift = given.captions.roll(1, 0)
        shifted = mean(align(evaluator, given.pictures, given.concepts, shift, wishes))
        rows.append(
            Row("wrong concept: their captions shifted", len(given.styles), alignment=shifted)
        )
    for about in sorted((find_assets() / "subjects").glob(f"*/{ABOUT}")):
        if given.truth or find_truth(about.parent):
            continue  # scenes have other checks, and are a vendor's drawings only in part
        other = read_subject_pictures(about.parent, evaluator)
        if other.package != given.package:
            row = score_pictures(f"wrong vendor: {other.name}", evaluator, other, given)
            rows.append(row)
    return rows


def score_pictures(
    name: str, evaluator: Evaluator, shown: Subject, given: Subject | None = None
) -> Row:
    few = given is None and len(shown.styles) < 2
    things = find_things(shown.truth, shown.prompts)
    return Row(
        name,
        len(shown.styles),
        fidelity=None if few else mean(measure_fidelity(shown.styles, given and given.styles)),
        likeness=None if few else mean(measure_fidelity(shown.concepts, given and given.concepts)),
        alignment=None
        if shown.captions is None
        else mean(align(evaluator, shown.pictures, shown.concepts, shown.captions, things)),
    )


def read_subject_pictures(folder: Path, evaluator: Evaluator) -> Subject:
    """Embed a folder's pictures and, where each has a caption beside it, the captions.

    Raises:
        AtomError: there is no such folder, or a file in it is broken.
    """
    paths, _ = find_pictures(folder)
    pictures: list[Image.Image] = [read_picture(path) for path in paths]
    prompts = [read_sidecar(path) for path in paths]
    captions = [clean_prompt(prompt) for prompt in prompts]
    about = folder / ABOUT
    try:
        package = json.loads(about.read_text(encoding="utf-8"))["package"] if about.exists() else ""
    except (ValueError, KeyError, TypeError):
        raise AtomError(f"{str(about)!r} is no JSON object that names a package") from None
    return Subject(
        name=folder.name,
        pictures=tuple(pictures),
        styles=evaluator.embed_styles(pictures),
        concepts=evaluator.embed_concepts(pictures),
        captions=evaluator.embed_texts(captions) if all(captions) else None,
        prompts=tuple(prompts),
        package=package or None,
        truth=find_truth(folder),
    )


def mean(values: Tensor) -> float:
    return float(values.mean())
