"""Atoms in ConvNeXt-B, ViT-B/16 and ResNet-50 at real size: counts, one training step, memory.

    python scripts/bench_classifiers.py --output classifiers.json

Weights are random, shapes are the published ones. Counts stand beside those on paper, which know no
budget: `m·h·w` a k×k convolution for `atoms`, `g·i·m·m1 + m·m1·h·w` for `overcomplete`, `m·p` of
the block view for `coefficients`, the sum for `full`. Every variant runs in a process of its own,
so that the peak of its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from sdatoms import AtomConfig
from sdatoms.atoms.decompose import View, split_side
from sdatoms.classifiers.drawings import write_table
from sdatoms.classifiers.methods import VARIANTS, attach
from sdatoms.classifiers.model import classify, open_classifier
from sdatoms.layers.inject import LayerReport
from sdatoms.storage import write_whole

MODELS = ("convnext-base", "vit-base", "resnet-50")
COLUMNS = ("model", "variant", "layers", "parameters", "on_paper", "step_seconds", "peak_mb")


def count_on_paper(row: LayerReport, groups: int, config: AtomConfig) -> int:
    """Trained numbers of one layer by the paper's formulas, complete atoms, no budget."""
    taps, b = math.prod(row.shape[2:]), config.block_size
    spatial, block = 0, 0
    if taps > 1 and config.variant != "coefficients":
        m = min(taps, row.shape[0] * row.shape[1])
        spatial = m * taps
        if config.variant != "atoms":
            spatial = config.num_inner_atoms * m * (groups * row.shape[1] + taps)
    if config.variant in ("coefficients", "full"):
        sides = split_side(row.shape[0] // groups, b), split_side(row.shape[1], b)
        view = View("joint" if taps > 1 else "channel", row.shape, groups, sides)
        block = min(view.width, view.height) * view.width
    return spatial + block


def measure(name: str, variant: str, batch: int) -> dict:
    """Inject, take one AdamW step on random pictures, and say what it took."""
    torch.manual_seed(0)
    classifier = open_classifier(name, 10, resolution=224)
    weights = sum(p.numel() for p in classifier.model.parameters())
    config = AtomConfig(variant)
    began = time.perf_counter()
    tuned = attach(classifier, variant, config)
    inject_seconds = time.perf_counter() - began
    assert tuned.injection is not None
    rows = [row for row in tuned.injection.report() if row.parameters]
    groups = {path: w.base.groups for path, w in tuned.injection.weights.items()}
    parameters = [*tuned.parameters, *tuned.head.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    x, labels = torch.randn(batch, 3, 224, 224), torch.arange(batch) % 10
    tuned.set_training()
    began = time.perf_counter()
    loss = nn.functional.cross_entropy(classify(classifier.model, x), labels)
    loss.backward()
    missing = sum(p.grad is None for p in parameters)
    optimizer.step()
    seconds = time.perf_counter() - began
    return {
        "model": name,
        "variant": variant,
        "weights": weights,
        "layers": len(rows),
        "parameters": tuned.num_parameters,
        "on_paper": sum(count_on_paper(row, groups[row.path], config) for row in rows),
        "head_parameters": tuned.num_head_parameters,
        "bytes": len(tuned.pack(0)[1]),
        "loss": float(loss.detach()),
        "without_gradient": missing,
        "inject_seconds": round(inject_seconds, 2),
        "step_seconds": round(seconds, 2),
        "batch": batch,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "notes": Counter(note for row in rows for note in row.note.split("; ") if note),
        "report": [asdict(row) for row in tuned.injection.report()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, help="JSON file, with every layer")
    args = parser.parse_args()
    pairs = [(model, variant) for model in args.models for variant in args.variants]
    if len(pairs) == 1:
        print(json.dumps(measure(*pairs[0], args.batch)))
        return
    found = []
    for model, variant in pairs:
        command = [sys.executable, __file__, "--models", model, "--variants", variant]
        command += ["--batch", str(args.batch)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print({k: found[-1][k] for k in COLUMNS}, file=sys.stderr, flush=True)
    if args.output:
        write_whole(args.output, (json.dumps(found, indent=1) + "\n").encode())
    print(write_table(found, COLUMNS))


if __name__ == "__main__":
    main()
