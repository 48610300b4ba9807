"""`sdatoms train`: flags, config file and preset into a `TrainConfig`, and its steps as a bar."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdatoms.cli.progress import Progress
from sdatoms.cli.train_result import describe_training
from sdatoms.errors import AtomError
from sdatoms.settings import (
    add_flags,
    build_config,
    check_values,
    quote_value,
    read_config_file,
)
from sdatoms.storage import locate

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
    from sdatoms.training.stopping import StopRequest, TrainingStopped

    stop = StopRequest()
    stop.listen()
    config = read_settings(args)

    from sdatoms.training.estimate import estimate
    from sdatoms.training.loop import train

    if args.dry_run:
        for name, value in estimate(config).items():
            print(f"{name:<12} {value}")
        return
    progress = Progress(shown=is_main_process())
    for note in (*describe_move(args, config), *describe_preset(args)):
        progress.note(note)
    steps = train(config, evaluate=find_measure(config), stop=stop, notify=progress.note)
    try:
        for step in steps:
            progress.show(step.step, step.total, loss=f"{step.loss:.3f}", lr=f"{step.lr:.1e}")
    except TrainingStopped as stopped:
        progress.close()
        progress.note(
            f"stopped at step {stopped.step}; continue with --resume_from_checkpoint latest"
            if stopped.step or stopped.saved
            else "stopped before the first step; the same command begins again, with the class "
            "pictures generated so far"
        )
        raise SystemExit(130) from None
    finally:
        progress.close()
    asked = [config.validation_prompt, *config.validation_prompts, config.instance_prompt]
    prompt = next(filter(None, asked), "your prompt")
    base = config.pretrained_model_name_or_path
    if told := describe_training(Path(config.output_dir), prompt, base):
        progress.note(f"\n{told}")


def read_settings(args: argparse.Namespace) -> TrainConfig:
    """Defaults, then `accelerate launch`, a preset, a file and the command line, each over those
    before.

    Raises:
        AtomError: a setting is unknown or out of range.
    """
    from sdatoms.training.config import TrainConfig
    from sdatoms.training.presets import expand_preset

    apart = ("command", "run", "config", "dry_run", "preset")
    given = {k: v for k, v in vars(args).items() if k not in apart}
    values = (read_config_file(Path(args.config)) if args.config else {}) | given
    where = f"the config file {args.config!r}" if args.config else "the command line"
    preset = values.pop("preset", None)
    if not isinstance(preset, str | None):
        raise AtomError(f"{where}: preset is {quote_value(preset)} where the name of one fits")
    values = check_values(TrainConfig, values, where)
    if name := args.preset or preset:
        values = expand_preset(name, values)
    if moved := find_moved_run(args, values):
        values |= {"output_dir": str(moved)}
    return build_config(TrainConfig, read_launcher() | values, where)


def read_launcher() -> dict[str, Any]:
    """What `accelerate launch` was told and the trainer has a flag for.

    Raises:
        AtomError: the precision or accumulation is not one the trainer knows.
    """
    values: dict[str, Any] = {}
    if precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower():
        if precision not in ("no", "fp16", "bf16"):
            raise AtomError(
                f"accelerate launch was given --mixed_precision {precision}; training takes no, "
                "fp16 or bf16"
            )
        values["mixed_precision"] = precision
    if batches := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        if not batches.isdecimal():
            raise AtomError(
                f"accelerate launch was given --gradient_accumulation_steps {batches}; training "
                "takes a whole number"
            )
        values["gradient_accumulation_steps"] = int(batches)
    return values


def find_moved_run(args: argparse.Namespace, values: dict[str, Any]) -> Path | None:
    """The run directory that a resumed run's own config.toml lies in, where that is another than
    the file says and the command line names none: the run was moved."""
    if not args.config or hasattr(args, "output_dir") or not values.get("resume_from_checkpoint"):
        return None
    folder = locate(args.config).parent
    named = values.get("output_dir")
    is_run = Path(args.config).name == "config.toml" and (folder / "checkpoints").is_dir()
    stays = isinstance(named, str) and ("\0" in named or locate(named) == folder)
    if not is_run or stays:
        return None
    return Path(args.config).parent


def describe_move(args: argparse.Namespace, config: TrainConfig) -> list[str]:
    """A line where the run goes on in another place than its config.toml says."""
    values = read_config_file(Path(args.config)) if args.config else {}
    if not find_moved_run(args, values | {"resume_from_checkpoint": config.resume_from_checkpoint}):
        return []
    return [f"the run was moved: going on in {config.output_dir!r}"]


def describe_preset(args: argparse.Namespace) -> list[str]:
    """A line where the preset's settings are not measured, and how to send back what they gave."""
    from sdatoms.training.real_presets import REAL_PRESETS, UNMEASURED

    values = read_config_file(Path(args.config)) if args.config else {}
    name = args.preset or values.get("preset")
    if name not in REAL_PRESETS:
        return []
    return [
        f"the preset {name} is {UNMEASURED}; sdatoms evaluate ATOMS --report FILE writes what it "
        "gave, to be sent back"
    ]


def find_measure(config: TrainConfig) -> Evaluate | None:
    """What measures the samples: the evaluator asked for, or the bundled one for the bundled base.

    It knows emoji and nothing else, so of other bases nothing is measured unasked.
    """
    from sdatoms.diffusion.family import find_base
    from sdatoms.evaluation.evaluator import load_evaluator
    from sdatoms.evaluation.samples import measure_samples
    from sdatoms.evaluation.truth import find_truth
    from sdatoms.storage import find_assets

    if not config.validation_steps or not config.num_validation_images:
        return None
    if config.evaluator is None and config.style_evaluator is None:
        base = locate(find_base(config.pretrained_model_name_or_path))
        if base != locate(find_base(None)) or not (find_assets() / "emoji-clip").is_dir():
            return None
    evaluator = load_evaluator(config.evaluator, config.style_evaluator)
    return measure_samples(evaluator, find_truth(Path(config.instance_data_dir)))


def is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
