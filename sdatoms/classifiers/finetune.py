"""The command that fine-tunes a classifier: its flags, and what it does with them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from accelerate import PartialState

from sdatoms.atoms.config import ATOM_FLAGS, AtomConfig, read_atom_flags
from sdatoms.classifiers.experiment import Experiment, run_experiment
from sdatoms.classifiers.fit import TrainSettings
from sdatoms.classifiers.methods import BLOCKS, METHODS, attach_method, suggest_rates
from sdatoms.classifiers.model import open_classifier
from sdatoms.classifiers.pictures import draw_task
from sdatoms.classifiers.tasks import ROTATION, Readers, read_task
from sdatoms.errors import AtomError
from sdatoms.settings import add_flags

__all__ = ["add_finetune", "make_atom_config", "run_finetune"]

ATOMS = {flag: name for flag, name in ATOM_FLAGS.items() if flag != "atom_variant"}
"""Flag → setting of AtomConfig; the variant is the method."""


def add_finetune(parser: argparse.ArgumentParser, tasks: Sequence[str] = ()) -> None:
    """The flags of a run.

    Args:
        tasks: built-in ones beside the rotation task, for the help.
    """
    parser.add_argument(
        "--model",
        required=True,
        help="a transformers classifier's folder or name, timm/NAME, torchvision/NAME, or a "
        ".safetensors file of a CIFAR ResNet or of a known model",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="a folder or zip with a folder a class, a `datasets` name, or "
        + ", ".join((*tasks, ROTATION)),
    )
    parser.add_argument("--method", required=True, help=" | ".join(METHODS))
    parser.add_argument("--output_dir", type=Path, default=None, help="nothing is kept without it")
    parser.add_argument(
        "--learning_rate", type=float, nargs="+", default=None, help="one that suits the method"
    )
    parser.add_argument(
        "--rate_ratios",
        nargs="*",
        default=[],
        metavar="KIND=X",
        help="multiples of the learning rate, such as block=0.3; norm=0.1 for atoms if not given",
    )
    parser.add_argument("--train_on_validation", action="store_true")
    parser.add_argument("--num_train", type=int, default=None, help="a fifth is to choose by")
    parser.add_argument("--num_test", type=int, default=None)
    parser.add_argument("--resolution", type=int, default=None, help="px; the model's by default")
    parser.add_argument("--rank", type=int, default=4, help="of LoRA")
    parser.add_argument("--train_norms", action="store_true", help="gains and shifts too; counted")
    parser.add_argument("--train_batch_norm", action="store_true", help="statistics move as well")
    add_flags(parser, AtomConfig, ATOMS)
    for flag in ("target_modules", "exclude_modules"):
        parser.add_argument(f"--{flag}", nargs="+", default=None, metavar="PATTERN")
    parser.add_argument("--cifar", type=Path, default=None, help="pictures for cifar-rotation")
    parser.add_argument("--vendors", nargs="+", default=None, help="whose emoji; all by default")
    add_flags(parser, TrainSettings)


def make_atom_config(args: argparse.Namespace, seed: int) -> AtomConfig:
    """What the flags ask of the atoms; the method becomes their variant."""
    atoms = read_atom_flags(vars(args))
    blocks = {*BLOCKS, "block_atoms", "block_form", "block_factors"}
    if args.method == "coefficients" and not blocks & {*atoms}:
        atoms |= BLOCKS
    return AtomConfig(
        **atoms,
        target_modules=args.target_modules,
        exclude_modules=args.exclude_modules,
        seed=seed,
    )


def run_finetune(args: argparse.Namespace, readers: Readers) -> None:
    """Train, choose, test; prints the result as one line of JSON."""
    given = vars(args)
    settings = TrainSettings(
        **{f.name: given[f.name] for f in fields(TrainSettings) if f.name in given}
    )
    config = make_atom_config(args, settings.seed)
    if args.method not in METHODS:
        raise AtomError(f"there is no method {args.method!r:.60}; known are {', '.join(METHODS)}")
    rates = tuple(args.learning_rate or suggest_rates(args.method, args.train_batch_norm)[1:2])
    if not all(0 < rate < math.inf for rate in rates):
        raise AtomError(f"--learning_rate is {args.learning_rate}; it takes numbers above 0")
    for name in ("num_train", "num_test", "resolution"):
        if given[name] is not None and given[name] < 1:
            raise AtomError(f"--{name} is {given[name]}; it takes at least 1")
    pool = read_task(args.data, readers, args.cifar)
    classifier = open_classifier(
        args.model, len(pool.classes), seed=settings.seed, resolution=args.resolution
    )
    task = draw_task(
        pool,
        classifier.size,
        num_train=args.num_train,
        num_test=args.num_test,
        seed=settings.seed,
    )
    tuned = attach_method(
        classifier,
        args.method,
        config,
        rank=args.rank,
        train_norms=args.train_norms,
        statistics=args.train_batch_norm,
    )
    facts = {name: given[name] for name in ("model", "data", "method", "rank", "num_train")}
    facts |= {"resolution": classifier.size, "num_test": args.num_test, "vendors": args.vendors}
    facts |= {"train_norms": args.train_norms, "train_batch_norm": args.train_batch_norm}
    experiment = Experiment(
        rates=rates,
        settings=settings,
        ratios=dict(map(split_ratio, args.rate_ratios)),
        train_on_validation=args.train_on_validation,
        folder=args.output_dir,
        facts=facts | {"atoms": tuned.injection and tuned.injection.config.to_dict()},
    )
    result = run_experiment(tuned, task, experiment)
    if PartialState().is_main_process:
        print(json.dumps({k: v for k, v in result.items() if k not in ("confusion", "name")}))


def split_ratio(text: str) -> tuple[str, float]:
    kind, _, number = text.partition("=")
    try:
        return kind, float(number)
    except ValueError:
        raise AtomError(
            f"--rate_ratios has {text!r:.60}; it takes words such as block=0.3"
        ) from None
