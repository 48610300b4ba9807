"""What `sdatoms train` says when it is done: what happened, how good, where it is, what next."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdatoms.cli.score_table import draw_scores
from sdatoms.storage import read_table

__all__ = ["describe_training"]


def describe_training(run: Path, prompt: str, base: str | None = None) -> str:
    """The last words of a finished training; empty where its report cannot be read.

    Args:
        run: its run directory.
        prompt: something to try it with.
        base: the base, as it was asked for; None: the bundled one.
    """
    report = read_table(run / "report.json", {})
    if not report:
        return ""
    steps, chosen = report["steps"], report["chosen_step"]
    best = "" if chosen == steps else f", the best of them {chosen}"
    facts = f"{report['bytes'] / 1000:,.0f} kB, {report['parameters']:,} trained numbers"
    atoms = run / "atoms.safetensors"
    parts = [
        f"Done: {steps} steps{best}, in {describe_seconds(report['seconds'])}.",
        f"The adapter      {atoms} ({facts})",
    ]
    samples = run / "samples.png"
    parts += [f"How it went      {samples}"] if samples.is_file() else []
    if scores := draw_measures(report.get("metrics", {}), chosen):
        parts += ["", "How good is it? By the samples of this training:", "", scores]
    words = ["sdatoms", "generate", prompt, "--atoms", str(atoms), "--num_images", "4"]
    words += ["--pretrained_model_name_or_path", base] if base else []
    return "\n".join([*parts, "", f"Next:  {shlex.join(words)}"])


def draw_measures(metrics: dict[str, dict[str, float]], chosen: int) -> str:
    """The measures of the chosen step's samples beside the base's; empty where there are none."""
    from sdatoms.evaluation.rows import Row
    from sdatoms.training.run_folder import name_step

    names = {field.name for field in fields(Row)}

    def make_row(name: str, found: dict[str, Any]) -> Row:
        return Row(name, 0, **{k: v for k, v in found.items() if k in names})

    now, base = metrics.get(name_step(chosen)), metrics.get("base")
    if not now or not names & set(now):
        return ""
    rows = [make_row("adapter", now)]
    return draw_scores(rows + ([make_row("base without atoms", base)] if base else []))


def describe_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
