"""Paints a task's prompts by a trained method, and measures every prompt for itself.

Figures of one prompt are means over its picture seeds. They stay apart by prompt, so that methods
can be compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from sdatoms.atoms.schedules import Schedule
from sdatoms.bench.eye import Eye
from sdatoms.bench.tasks import Task
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.triggers import UNRELATED_PROMPTS, clean_prompt
from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.examiner import align, stack
from sdatoms.evaluation.metrics import (
    measure_diversity,
    measure_drift,
    measure_error,
    measure_fidelity,
    measure_followed,
    measure_truth,
)
from sdatoms.evaluation.probe import Probe, find_modifiers, load_probe
from sdatoms.pictures import find_pictures, read_picture

__all__ = ["BETTER_DOWN", "MEASURES", "Judge", "Painted", "Painting", "Values"]

Values = dict[str, list[float | None]]
"""Figure → a value a prompt, of drift one an unrelated prompt; None where a prompt has none."""

MEASURES = (
    "truth",
    "error",
    "followed",
    "fidelity",
    "likeness",
    "imagenet",
    "alignment",
    "diversity",
    "drift",
)
"""As `sdatoms.evaluation.metrics` defines them; `imagenet` is likeness by another network, see
`eye.py`, where one is given."""
BETTER_DOWN = ("error", "drift")


@dataclass(frozen=True)
class Painting:
    """The one way that all methods paint in."""

    seeds: tuple[int, ...] = (0, 1)
    """Of the pictures of every prompt."""
    prompts: int | None = None
    """At most so many of a task, spread over its list."""
    unrelated: int = len(UNRELATED_PROMPTS)
    """Prompts that drift is measured on."""
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    """As all tables of docs/results.md were made; the bundled base itself says 3.5."""
    batch_size: int = 8

    def choose(self, count: int) -> list[int]:
        """Numbers of the prompts that are painted, of `count`."""
        most = min(self.prompts or count, count)
        return [k * count // most for k in range(most)]

    def count_unrelated(self) -> int:
        return min(self.unrelated, len(UNRELATED_PROMPTS))


@dataclass(frozen=True)
class Painted:
    """What one trained method painted."""

    asked: list[Image.Image]
    """Prompt by prompt, a picture a seed."""
    unrelated: list[Image.Image]


class Judge:
    """Knows one task's pictures and what the base paints of unrelated things."""

    def __init__(
        self,
        task: Task,
        evaluator: Evaluator,
        painting: Painting,
        base: Any,
        eye: Eye | None = None,
    ) -> None:
        """`base` paints the unrelated prompts once."""
        self.evaluator, self.painting, self.eye = evaluator, painting, eye
        numbers = painting.choose(len(task.prompts))
        self.prompts = [task.prompts[n] for n in numbers]
        self.wishes = [task.wishes[n] for n in numbers] if task.wishes else []
        self.probe: Probe | None = load_probe() if self.wishes else None
        pictures = [read_picture(path) for path in find_pictures(task.folder)[0]]
        self.seen = eye.embed(pictures) if eye else None
        self.styles = evaluator.embed_styles(pictures)
        self.concepts = evaluator.embed_concepts(pictures)
        self.texts = evaluator.embed_texts([clean_prompt(p) for p in self.prompts])
        self.true = [task.true[n] for n in numbers] if task.true else []
        self.true_instances = evaluator.embed_instances(self.true) if self.true else None
        self.unrelated = UNRELATED_PROMPTS[: painting.unrelated]
        self.base = evaluator.embed_styles(
            self.paint(base, self.unrelated, range(len(self.unrelated)))
        )

    def paint(
        self,
        pipe: Any,
        prompts: Sequence[str],
        seeds: Sequence[int],
        strengths: Mapping[str, Schedule] | None = None,
    ) -> list[Image.Image]:
        asked = self.painting
        return paint(
            pipe,
            prompts,
            seeds,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            batch_size=asked.batch_size,
            strength_schedules=strengths,
        )

    def paint_all(
        self,
        pipe: Any,
        rewrite: Callable[[str], str] = str,
        strengths: Mapping[str, Schedule] | None = None,
    ) -> Painted:
        """What is measured.

        Args:
            rewrite: a prompt as it has to be said.
            strengths: how those of loaded adapters go over the steps.
        """
        asked = [(rewrite(prompt), seed) for prompt in self.prompts for seed in self.painting.seeds]
        return Painted(
            self.paint(pipe, [p for p, _ in asked], [s for _, s in asked], strengths),
            self.paint(pipe, self.unrelated, range(len(self.unrelated)), strengths),
        )

    def measure(self, painted: Painted) -> Values:
        seeds, count = self.painting.seeds, len(self.prompts)
        pictures, others = painted.asked, painted.unrelated
        evaluator = self.evaluator
        styles, concepts = evaluator.embed_styles(pictures), evaluator.embed_concepts(pictures)
        each = len(seeds)
        wishes = [wish for wish in self.wishes for _ in seeds]
        texts = self.texts.repeat_interleave(each, 0)
        found = {
            "fidelity": measure_fidelity(styles, self.styles),
            "likeness": measure_fidelity(concepts, self.concepts),
            "alignment": align(evaluator, pictures, concepts, texts, wishes),
        }
        if self.eye:
            found["imagenet"] = measure_fidelity(self.eye.embed(pictures), self.seen)
        if self.true_instances is not None:
            true = [picture for picture in self.true for _ in seeds]
            instances = evaluator.embed_instances(pictures)
            known = self.true_instances.repeat_interleave(each, 0)
            found |= {
                "truth": measure_truth(instances, known),
                "error": measure_error(pictures, true),
            }
        if self.probe:
            shown = find_modifiers(self.probe, stack(pictures), stack([w.plain for w in wishes]))
            found["followed"] = measure_followed(shown, [wish.modifiers for wish in wishes])
        values = {name: found[name].view(count, each).mean(1) for name in found}
        if each > 1:
            values["diversity"] = measure_diversity(styles.unflatten(0, (count, each)))
        values["drift"] = measure_drift(evaluator.embed_styles(others), self.base)
        return {name: round_values(values[name]) for name in MEASURES if name in values}


def round_values(values: Tensor) -> list[float | None]:
    return [None if value != value else round(value, 6) for value in values.tolist()]
