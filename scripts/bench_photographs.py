"""Personalize the bundled base on real photographs, by the whole command, in several ways.

    python scripts/bench_photographs.py --photographs DIR --subjects dog backpack \\
        --output photographs.json

DIR holds a folder of photographs a subject, such as DreamBooth's data set
(https://github.com/google/dreambooth), and may hold its `prompts_and_classes.txt`; without it a
folder's name is its class. Each way is a process of its own, `sdatoms train` from the command to
the atom file, samples and their measurement included: seconds, peak memory and bytes are the
run's, and the figures those of its `report.json`, before and after.

Three figures say how far to believe them: fidelity of the photographs among themselves, to other
subjects' photographs, and of what the base's autoencoder gives back of them, which is more than
any training of the UNet can reach. A PNG a subject shows all of it. Run again, it goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sdatoms.bench.photographs import WAYS, measure_photographs, write_table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--subjects", nargs="+", default=["dog", "backpack"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--max_train_steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("outputs/photographs.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = measure_photographs(**vars(args))
    print(write_table(facts))


if __name__ == "__main__":
    main()
