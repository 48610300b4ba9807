"""A CIFAR ResNet trained from scratch, for machines that have no published weights."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from sdatoms.classifiers.experiment import make_accelerator
from sdatoms.classifiers.fit import TrainSettings, evaluate_classifier, fit
from sdatoms.classifiers.methods import attach_method
from sdatoms.classifiers.model import MEAN, SPREAD, Classifier
from sdatoms.classifiers.pictures import Item, Pool, draw_task
from sdatoms.models.cifar_resnet import CifarResNet
from sdatoms.storage import write_whole

__all__ = ["leave_out", "pretrain"]


def leave_out(pool: Pool, other: Pool) -> Pool:
    """The pool with the groups that the other one tests on as its test split, not to be trained
    on."""
    tested = {item.group for item in other.items["test"]}
    items: dict[str, list[Item]] = {"train": [], "test": []}
    for item in pool.items["train"]:
        items["test" if item.group in tested else "train"].append(item)
    return replace(pool, items=items)


def pretrain(
    pool: Pool, blocks: int, rate: float, settings: TrainSettings, output: Path
) -> dict[str, Any]:
    """Train the whole network, its normalization included, write it, and say what it reaches.

    Args:
        blocks: a stage; 3 make ResNet-20.
        rate: learning rate.
        output: a `.safetensors` file, as the public checkpoints are.
    """
    task = draw_task(pool, 32, seed=settings.seed)
    torch.manual_seed(settings.seed)
    model = CifarResNet(blocks, len(pool.classes))
    classifier = Classifier(model, "linear", 32, MEAN, SPREAD, "scratch")
    tuned = attach_method(classifier, "full_finetune", statistics=True)
    accelerator = make_accelerator(settings.mixed_precision)
    classifier.place(accelerator.device)
    began, shown = time.perf_counter(), task.train.join(task.validation)
    fit(tuned, shown, rate, settings, accelerator, flips=pool.flips)
    reached = evaluate_classifier(classifier, task.test, accelerator.device)
    tensors = {k: t.cpu().contiguous() for k, t in model.state_dict().items() if "tracked" not in k}
    write_whole(output, save_tensors(tensors))
    facts = {"pictures": len(shown), "test_accuracy": reached.accuracy}
    return facts | {"seconds": round(time.perf_counter() - began, 1)}
