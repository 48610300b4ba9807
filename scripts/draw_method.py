"""Draw `assets/method.png`: what filter atoms are, on a real weight of the bundled base.

    python scripts/draw_method.py

Trains the variant `atoms` on a bundled subject for `--max_train_steps` and shows, of one of its
convolutions, filters, encoder, coefficients, trained atoms and the change they make.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bundled.method_drawing import draw_method

from sdatoms.diffusion.open import load_base
from sdatoms.files.reader import read_atoms
from sdatoms.storage import read_subject
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train

ROOT = Path(__file__).parents[1]
LAYER = "down_blocks.0.resnets.0.conv1"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default="unicorn")
    parser.add_argument("--max_train_steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=ROOT / "assets" / "method.png")
    args = parser.parse_args()
    folder, about = read_subject(args.subject)
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            instance_data_dir=str(folder),
            instance_prompt=about["instance_prompt"],
            output_dir=scratch,
            atom_variant="atoms",
            learning_rate=1e-2,
            max_train_steps=args.max_train_steps,
            validation_steps=0,
        )
        for _ in train(config):
            pass
        atoms = read_atoms(f"{scratch}/atoms.safetensors").tensors
    weight = load_base().unet.get_submodule(LAYER).weight.detach()
    draw_method(weight, atoms[f"unet.{LAYER}.spatial.atoms"]).save(args.output, optimize=True)
    print(args.output)


if __name__ == "__main__":
    main()
