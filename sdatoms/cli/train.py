"""`sdatoms train`: flags, config file and preset into a `TrainConfig`, and its steps as a bar."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sdatoms.settings import add_flags, build_config, read_config_file

if TYPE_CHECKING:
    from sdatoms.training.config import TrainConfig
    from sdatoms.training.samples import Evaluate

__all__ = [
    "add_train",
    "find_measure",
    "run_train",
]


def add_train(parser: argparse.ArgumentParser) -> None:
    from sdatoms.training.config import TrainConfig
    from sdatoms.training.presets import PRESETS

    add_flags(parser, TrainConfig)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="toml, yaml or json with any of these flags; the command line wins",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="named settings; a file and other flags win over them: "
        + "; ".join(f"{name}: {preset.about.lower()}" for name, preset in PRESETS.items()),
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print parameters, bytes, memory, steps and minutes; train nothing",
    )


def run_train(args: argparse.Namespace) -> None:
    """Train filter atoms on a folder of pictures.

    The same trainer as scripts/train_dreambooth_atoms.py.
    """
    from sdatoms.training.config import TrainConfig
    from sdatoms.training.presets import expand_preset

    apart = ("command", "run", "config", "dry_run", "preset")
    given = {k: v for k, v in vars(args).items() if k not in apart}
    values = (read_config_file(Path(args.config)) if args.config else {}) | given
    preset = values.pop("preset", None)
    if args.preset or preset:
        values = expand_preset(args.preset or preset, values)
    config = build_config(
        TrainConfig,
        values,
        f"the config file {args.config!r}" if args.config else "the command line",
    )
    from tqdm import tqdm

    from sdatoms.training.estimate import estimate
    from sdatoms.training.loop import train
    from sdatoms.training.processes import agree

    if args.dry_run:
        for name, value in estimate(config).items():
            print(f"{name:<12} {value}")
        return
    stop = StopFlag()
    steps = train(config, evaluate=find_measure(config))
    bar = None  # made with the first step: what is wrong with the input is said without a bar
    for step in steps:
        bar = bar or tqdm(
            total=step.total, initial=step.step - 1, unit="step", disable=not is_main_process()
        )
        bar.update(step.step - bar.n)
        bar.set_postfix(loss=f"{step.loss:.3f}", lr=f"{step.lr:.1e}")
        if agree(stop.asked):
            steps.close()
            bar.close()
            print(
                f"interrupted at step {step.step}; continue with --resume_from_checkpoint latest",
                file=sys.stderr,
            )
            raise SystemExit(130)
    if bar:
        bar.close()


def find_measure(config: TrainConfig) -> Evaluate | None:
    """What measures the samples: the evaluator asked for, or the bundled one for the bundled base.

    It knows emoji and nothing else, so of other bases nothing is measured unasked.
    """
    from sdatoms.diffusion.pipeline import find_base
    from sdatoms.evaluation.evaluator import load_evaluator
    from sdatoms.evaluation.scores import measure_samples
    from sdatoms.storage import find_assets

    if not config.validation_steps or not config.num_validation_images:
        return None
    if config.evaluator is None and config.style_evaluator is None:
        base = Path(find_base(config.pretrained_model_name_or_path)).resolve()
        if base != Path(find_base(None)).resolve() or not (find_assets() / "emoji-clip").is_dir():
            return None
    return measure_samples(load_evaluator(config.evaluator, config.style_evaluator))


def is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


class StopFlag:
    """Turns Ctrl-C and SIGTERM into a wish that the loop reads after its step; a second Ctrl-C
    stops at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
