"""Pre-train a CIFAR ResNet from scratch, for machines that have no published weights.

    python scripts/pretrain_classifier.py --output resnet20.safetensors

It learns the categories of Noto's emoji at 32 px, but of no concept that `finetune_classifier.py
--data emoji-category --vendors twemoji` would test on with the same seed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from classifier_tasks import read_task
from safetensors.torch import save as save_tensors

from sdatoms.classifiers.experiment import make_accelerator
from sdatoms.classifiers.fit import TrainSettings, evaluate, fit
from sdatoms.classifiers.methods import attach
from sdatoms.classifiers.model import MEAN, SPREAD, Classifier
from sdatoms.classifiers.pictures import Item, Pool, draw_task, keep_test
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser
from sdatoms.models.cifar_resnet import CifarResNet
from sdatoms.settings import add_flags, build_config
from sdatoms.storage import write_whole

ROOT = Path(__file__).parent.parent


def leave_out(pool: Pool, other: Pool) -> Pool:
    """The pool with the groups that the other one tests on as its test split, not to be trained
    on."""
    tested = {item.group for item in other.items["test"]}
    items: dict[str, list[Item]] = {"train": [], "test": []}
    for item in pool.items["train"]:
        items["test" if item.group in tested else "train"].append(item)
    return replace(pool, items=items)


def pretrain(args: argparse.Namespace) -> None:
    """Train the whole network, its normalization included; print what it reaches."""
    given = {k: v for k, v in vars(args).items() if k in TrainSettings.__dataclass_fields__}
    settings = build_config(TrainSettings, {"epochs": 40, "train_batch_size": 64, **given}, "flags")
    emoji = {"packages": args.packages, "emoji": args.packages / "unused"}
    pool, target = (read_task("emoji-category", vendors=(v,), **emoji) for v in ("noto", "twemoji"))
    pool = leave_out(pool, keep_test(target, settings.seed))
    task = draw_task(pool, 32, seed=settings.seed)
    torch.manual_seed(settings.seed)
    model = CifarResNet(args.blocks, len(pool.classes))
    classifier = Classifier(model, "linear", 32, MEAN, SPREAD, "scratch")
    tuned = attach(classifier, "full_finetune", statistics=True)
    accelerator = make_accelerator(settings.mixed_precision)
    model.to(accelerator.device, memory_format=torch.channels_last)
    began, shown = time.perf_counter(), task.train.join(task.validation)
    fit(tuned, shown, args.learning_rate, settings, accelerator, flips=pool.flips)
    verdict = evaluate(classifier, task.test, accelerator.device)
    tensors = {k: t.cpu().contiguous() for k, t in model.state_dict().items() if "tracked" not in k}
    write_whole(args.output, save_tensors(tensors))
    facts = {"pictures": len(shown), "test_accuracy": verdict.accuracy}
    print(json.dumps(facts | {"seconds": round(time.perf_counter() - began, 1)}))


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=3, help="a stage; 3 make ResNet-20")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--packages", type=Path, default=ROOT / "runs" / "base" / "packages")
    add_flags(parser, TrainSettings)
    run_guarded(pretrain, parser.parse_args())


if __name__ == "__main__":
    main()
