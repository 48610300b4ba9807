"""What a training measures of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.examiner import Examiner, align
from sdatoms.evaluation.metrics import mean, measure_diversity, measure_drift, measure_fidelity
from sdatoms.evaluation.truth import Truth, find_things

__all__ = ["measure_samples"]


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
