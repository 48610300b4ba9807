"""`sdatoms demo`: a bundled subject learnt, shown before and after, and measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["SUBJECT", "add_demo", "run_demo"]

SUBJECT = "hamburger"


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--subject", default=SUBJECT, help=f"a bundled subject (default: {SUBJECT})"
    )
    parser.add_argument(
        "--output_dir", default="outputs/demo", help="run directory (default: outputs/demo)"
    )
    parser.add_argument(
        "--max_train_steps", type=int, default=100, help="optimizer steps (default: 100)"
    )
    parser.add_argument(
        "--atom_variant",
        default="coefficients",
        choices=("atoms", "overcomplete", "coefficients", "full"),
        help="which tensors are trained (default: coefficients, in product form)",
    )


def run_demo(args: argparse.Namespace) -> None:
    """Personalize the bundled base on a bundled subject and draw a before/after grid."""
    from tqdm import tqdm

    from sdatoms.cli.personalize import describe_result, personalize
    from sdatoms.training.stopping import StopRequest, TrainingStopped

    stop = StopRequest()
    stop.listen()
    with tqdm(total=args.max_train_steps, unit="step") as bar:

        def show(step: int, total: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        try:
            result = personalize(
                args.subject,
                args.output_dir,
                args.max_train_steps,
                args.atom_variant,
                report=tqdm.write,
                progress=show,
                stop=stop,
            )
        except TrainingStopped as stopped:
            bar.close()
            again = f"sdatoms train --config {Path(args.output_dir) / 'config.toml'}"
            print(
                f"stopped at step {stopped.step}; continue with {again} "
                "--resume_from_checkpoint latest",
                file=sys.stderr,
            )
            raise SystemExit(130) from None
    print(describe_result(result, args.max_train_steps))
