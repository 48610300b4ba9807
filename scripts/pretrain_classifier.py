"""Pre-train a CIFAR ResNet from scratch, for machines that have no published weights.

    python scripts/pretrain_classifier.py --output resnet20.safetensors

It learns the categories of Noto's emoji at 32 px, but of no concept that `finetune_classifier.py
--data emoji-category --vendors twemoji` would test on with the same seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bundled.emoji_tasks import EMOJI, PACKAGES, read_emoji

from sdatoms.classifiers.fit import TrainSettings
from sdatoms.classifiers.pictures import keep_test
from sdatoms.classifiers.pretrain import leave_out, pretrain
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser
from sdatoms.settings import add_flags, build_config


def run_pretrain(args: argparse.Namespace) -> None:
    """Train on one vendor's emoji without what the other's would test on; print what is reached."""
    given = {k: v for k, v in vars(args).items() if k in TrainSettings.__dataclass_fields__}
    settings = build_config(TrainSettings, {"epochs": 40, "train_batch_size": 64, **given}, "flags")
    noto, twemoji = (
        read_emoji("emoji-category", args.packages, EMOJI, (vendor,))
        for vendor in ("noto", "twemoji")
    )
    pool = leave_out(noto, keep_test(twemoji, settings.seed))
    print(json.dumps(pretrain(pool, args.blocks, args.learning_rate, settings, args.output)))


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=3, help="a stage; 3 make ResNet-20")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    add_flags(parser, TrainSettings)
    run_guarded(run_pretrain, parser.parse_args())


if __name__ == "__main__":
    main()
