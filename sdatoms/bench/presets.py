"""What each preset of the trainer costs on a bundled subject, from the command to its atom file.

`core_seconds` are processor time: with one thread, and on a machine not shared, the time by the
clock.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from sdatoms.bench.process import call_apart
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.samples import measure_samples
from sdatoms.storage import read_subject
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train
from sdatoms.training.presets import PRESETS, expand_preset

__all__ = ["measure_preset", "measure_presets", "read_presets"]

SUBJECTS = {"style": "ink", "pet": "cat"}
"""Preset → bundled subject; the others take the unicorn."""


def read_presets(facts: dict[str, Any], output: Path | None) -> dict[str, Any]:
    """Presets measured before on the same machine, so that one may be measured again alone."""
    known = json.loads(output.read_text()) if output and output.is_file() else {}
    same = all(known.get(key) == value for key, value in facts.items())
    return known.get("presets", {}) if same else {}


def measure_presets(
    names: Sequence[str], steps: int | None, evaluator: str | None, threads: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Preset and what it cost, each in a process of its own."""
    for name in names:
        row = call_apart(measure_preset, name, steps, evaluator, threads=threads)
        print(name, json.dumps(row), file=sys.stderr)
        yield name, row


def measure_preset(name: str, steps: int | None, evaluator: str | None) -> dict[str, Any]:
    """Train one preset on a bundled subject, from the command to its atom file.

    Args:
        steps: train so many only, with one round of samples, and count the rest as more of the
            same; what is measured on the samples is then left out.
    """
    folder, about = read_subject(SUBJECTS.get(name, "unicorn"))
    given = {"instance_data_dir": str(folder), "instance_prompt": about["instance_prompt"]}
    full = TrainConfig(**expand_preset(name, given), evaluator=evaluator)
    config = replace(full, max_train_steps=steps, validation_steps=steps) if steps else full
    clocks = (time.time, time.process_time)
    marks = [[psutil.Process().create_time(), 0.0]]  # starting Python and loading count as well
    with tempfile.TemporaryDirectory() as run:
        config = replace(config, output_dir=run)
        measure = measure_samples(load_evaluator(evaluator))
        for _ in train(config, evaluate=measure):
            marks.append([clock() for clock in clocks])
        marks.append([clock() for clock in clocks])
        report = json.loads((Path(run) / "report.json").read_text())
    row: dict[str, Any] = {"subject": folder.name, "settings": dict(PRESETS[name].settings)}
    for which, key in enumerate(("seconds", "core_seconds")):
        spent = [after[which] - before[which] for before, after in pairwise(marks)]
        total = sum(spent)
        if steps:
            step = statistics.median(spent[1:-2])
            rounds = full.max_train_steps // full.validation_steps
            total += (full.max_train_steps - steps) * step + (rounds - 1) * (spent[-2] - step)
        row[key] = round(total, 1)
    kept = ("parameters", "bytes", "peak_memory_bytes", "peak_gpu_bytes")
    row |= {key: report[key] for key in kept} | {"steps": full.max_train_steps}
    if steps:
        return row | {"scaled_from_steps": steps}
    return row | {"chosen_step": report["chosen_step"], "measured": report["metrics"]}
