"""Atoms in ConvNeXt-B, ViT-B/16 and ResNet-50 at real size: counts, one training step, memory.

Weights are random, shapes are the published ones. Counts stand beside those on paper, which know no
budget: `m·h·w` a k×k convolution for `atoms`, `g·i·m·m1 + m·m1·h·w` for `overcomplete`, `m·p` of
the block view for `coefficients`, the sum for `full`.
"""

from __future__ import annotations

import math
import resource
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from sdatoms.atoms.config import BLOCK_VARIANTS, AtomConfig, Variant
from sdatoms.atoms.decompose import View, split_side
from sdatoms.classifiers.methods import attach_method
from sdatoms.classifiers.model import classify, open_classifier
from sdatoms.layers.inject import LayerReport

__all__ = ["COLUMNS", "MODELS", "count_on_paper", "measure"]

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
    if config.variant in BLOCK_VARIANTS:
        sides = split_side(row.shape[0] // groups, b), split_side(row.shape[1], b)
        view = View("joint" if taps > 1 else "channel", row.shape, groups, sides)
        block = min(view.width, view.height) * view.width
    return spatial + block


def measure(name: str, variant: Variant, batch: int) -> dict[str, Any]:
    """Inject, take one AdamW step on random pictures, and say what it took."""
    torch.manual_seed(0)
    classifier = open_classifier(name, 10, resolution=224)
    weights = sum(p.numel() for p in classifier.model.parameters())
    config = AtomConfig(variant)
    began = time.perf_counter()
    tuned = attach_method(classifier, variant, config)
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
