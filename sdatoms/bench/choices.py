"""Two choices of the trainer, by measurement: running averages or live atoms, and the best step.

Every seed trains once. At every mark the live atoms and their running averages, which do not touch
the training, are measured twice: as the trainer measures its samples (the instance prompt, which
is what a choice has to go by), and on prompts and seeds that no choice saw.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdatoms.adapters.load import load_atoms
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.triggers import UNRELATED_PROMPTS
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.samples import measure_samples
from sdatoms.evaluation.scores import Scorer
from sdatoms.evaluation.truth import FIVE_KINDS, choose_prompts, find_truth
from sdatoms.pictures import draw_grid, find_pictures, read_picture, save_image
from sdatoms.storage import read_subject, write_whole
from sdatoms.training.config import TrainConfig
from sdatoms.training.presets import expand_preset
from sdatoms.training.trainer import Trainer

__all__ = ["KINDS", "compare_kinds", "compare_rules", "measure_choices"]

KINDS = ("live", "averages")
DRIFTS = 4
"""Unrelated prompts among the trainer's samples, as by its default."""
UNSEEN = ("truth", "followed", "fidelity", "likeness", "alignment", "drift")
"""What is told of unseen prompts; the first two where their true pictures are known."""
RULES = {
    "the last step": lambda row: row["step"],
    "fidelity": lambda row: row["samples"]["fidelity"],
    "balance": lambda row: row["samples"]["balance"],
    "fidelity + alignment": lambda row: sum(row["samples"][k] for k in ("fidelity", "alignment")),
    "fidelity × alignment": lambda row: row["samples"]["fidelity"] * row["samples"]["alignment"],
}
"""Rule → what it calls good about a step, from the trainer's samples."""


def measure_choices(
    subject: str,
    preset: str,
    marks: Sequence[int],
    seeds: Sequence[int],
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Rows of every seed, kind and mark; seeds that `output` holds are not trained again."""
    folder, about = read_subject(subject)
    judge = Judge(folder, about["instance_prompt"])
    asked = {"subject": subject, "preset": preset, "marks": list(marks)}
    rows = read_rows(output, asked)
    for seed in seeds:
        if not any(row["seed"] == seed for row in rows):
            rows += run_seed(seed, judge, preset, marks, output)
            if output:
                facts = asked | {"base": judge.base, "rows": rows}
                write_whole(output, (json.dumps(facts, indent=2) + "\n").encode())
    return rows


def read_rows(output: Path | None, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run that was stopped has measured already."""
    found = json.loads(output.read_text()) if output and output.is_file() else {}
    return found["rows"] if asked.items() <= found.items() else []


class Judge:
    """Paints and measures atom files, as the trainer does and on what no choice saw."""

    def __init__(self, folder: Path, prompt: str) -> None:
        evaluator = load_evaluator()
        self.folder, self.prompt = folder, prompt
        self.pipe, self.measure = load_base(), measure_samples(evaluator)
        self.instances = [read_picture(path) for path in find_pictures(folder)[0]]
        self.asked = [(prompt, seed) for seed in range(4)]
        self.asked += [(words, seed) for seed, words in enumerate(UNRELATED_PROMPTS[:DRIFTS])]
        self.unrelated = self.look()[-DRIFTS:]
        prompts = choose_prompts(find_truth(folder), prompt, FIVE_KINDS)
        self.scorer = Scorer(
            self.pipe, evaluator, prompts=prompts, seeds=(100, 101), subject=folder
        )
        self.pictures = {"base": self.scorer.pictures}
        self.base = asdict(self.scorer.score("base"))

    def look(self) -> list[Any]:
        return paint(self.pipe, [p for p, _ in self.asked], [s for _, s in self.asked])

    def judge(self, name: str, file: Any) -> dict[str, Any]:
        adapters = load_atoms(self.pipe, file, name="atoms")
        try:
            seen, count = self.look(), len(self.asked) - DRIFTS
            pairs = list(zip(seen[count:], self.unrelated, strict=True))
            prompts = [prompt for prompt, _ in self.asked[:count]]
            samples = self.measure(self.pipe, seen[:count], prompts, self.instances, pairs)
            unseen = asdict(self.scorer.score(name, self.pipe))
        finally:
            adapters.clear()
        self.pictures[name] = self.scorer.pictures
        known = {key: unseen[key] for key in UNSEEN if unseen[key] is not None}
        return {"samples": dict(samples), "unseen": known}


def run_seed(
    seed: int, judge: Judge, preset: str, marks: Sequence[int], output: Path | None = None
) -> list[dict[str, Any]]:
    """Train once, and measure live atoms and averages at every mark.

    Args:
        output: a grid of the pictures goes beside this file, as a PNG.
    """
    rows = []
    given: dict[str, Any] = {"instance_data_dir": str(judge.folder), "use_ema": True}
    given |= {"instance_prompt": judge.prompt, "max_train_steps": max(marks), "seed": seed}
    with tempfile.TemporaryDirectory() as run:
        trainer = Trainer(TrainConfig(**expand_preset(preset, given), output_dir=run))
        assert trainer.averages
        while trainer.step < max(marks):
            trainer.take_step()
            if trainer.step not in marks:
                continue
            for kind, tensors in zip(KINDS, (None, dict(trainer.averages.values)), strict=True):
                facts = {"seed": seed, "step": trainer.step, "kind": kind}
                name = f"{kind}, step {trainer.step}"
                rows.append(facts | judge.judge(name, trainer.pack(tensors)))
                print(json.dumps(rows[-1]), flush=True)
    if output:
        names = list(judge.pictures)
        grid = draw_grid([judge.pictures[name] for name in names], names, cell=96)
        save_image(grid, output.with_name(f"{output.stem}-seed{seed}.png"))
    return rows


def list_shown(rows: list[dict[str, Any]]) -> list[str]:
    return [key for key in UNSEEN if all(key in row["unseen"] for row in rows)]


def compare_kinds(rows: list[dict[str, Any]], marks: Sequence[int]) -> str:
    """Markdown: what averaging changes, on unseen prompts, mean and spread over seeds."""
    shown = list_shown(rows)
    lines = ["", "| step | " + " | ".join(f"{key}, live → averages" for key in shown) + " |"]
    lines.append("|---" * (1 + len(shown)) + "|")
    for mark in marks:
        cells = []
        for key in shown:
            live, averages = (
                [r["unseen"][key] for r in rows if (r["step"], r["kind"]) == (mark, kind)]
                for kind in KINDS
            )
            change = [b - a for a, b in zip(live, averages, strict=True)]
            cells.append(
                f"{statistics.mean(live):.3f} → {statistics.mean(averages):.3f} "
                f"({min(change):+.3f} … {max(change):+.3f})"
            )
        lines.append(f"| {mark} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare_rules(rows: list[dict[str, Any]]) -> str:
    """Markdown: what each rule chooses among the steps, and how that does on unseen prompts."""
    shown = list_shown(rows)
    lines = ["", "| rule, of " + " | steps chosen | " + " | ".join(shown) + " |"]
    lines.append("|---" * (2 + len(shown)) + "|")
    seeds = sorted({row["seed"] for row in rows})
    for kind in KINDS:
        for rule, good in RULES.items():
            picks = [
                max((r for r in rows if (r["seed"], r["kind"]) == (seed, kind)), key=good)
                for seed in seeds
            ]
            means = [statistics.mean(pick["unseen"][key] for pick in picks) for key in shown]
            steps = ", ".join(str(pick["step"]) for pick in picks)
            cells = " | ".join(f"{mean:.3f}" for mean in means)
            lines.append(f"| {rule}, {kind} | {steps} | {cells} |")
    return "\n".join(lines)
