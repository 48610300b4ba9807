"""Rows of the table of scores that need no base: of a subject's pictures, and of true ones.

By them one sees whether the others can be believed: the instance pictures among themselves, the
most that imitation can reach; the same or other things drawn by another vendor, which fidelity must
put below them; and, where the true pictures of the prompts are known, those that `examiner.py`
lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.errors import AtomError
from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.examiner import Examiner, align
from sdatoms.evaluation.metrics import mean, measure_fidelity
from sdatoms.evaluation.truth import Truth, find_things, find_truth
from sdatoms.pictures import find_pictures, read_picture, read_sidecar
from sdatoms.storage import ABOUT, find_assets

__all__ = [
    "Row",
    "Subject",
    "read_subject_pictures",
    "score_subject",
    "score_true",
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
