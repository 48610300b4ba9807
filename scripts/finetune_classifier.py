"""Fine-tune an image classifier with filter atoms, or with what they stand beside.

    python scripts/finetune_classifier.py --model resnet20.safetensors --data emoji-category \\
        --method overcomplete --num_train 1000 --learning_rate 3e-3 1e-2 --output_dir outputs/emoji

Several learning rates are tried in turn; the validation split chooses, and the test split is seen
once, at the end. Run it again to continue where it was interrupted. It writes `result.json`,
`confusion.png`, `head.safetensors` and the method's own file, `atoms.safetensors` for atoms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundled.emoji_tasks import EMOJI, EMOJI_TASKS, PACKAGES, list_emoji_tasks

from sdatoms.classifiers.finetune import add_finetune, run_finetune
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser


def finetune(args: argparse.Namespace) -> None:
    run_finetune(args, list_emoji_tasks(args.packages, args.emoji, args.vendors))


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_finetune(parser, EMOJI_TASKS)
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    parser.add_argument("--emoji", type=Path, default=EMOJI)
    run_guarded(finetune, parser.parse_args())


if __name__ == "__main__":
    main()
