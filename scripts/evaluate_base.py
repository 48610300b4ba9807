"""Judge the bundled base: `python scripts/evaluate_base.py [--base_dir DIR] [--probe FILE]`.

Printed as one JSON object and written to `--output_dir`: how well the autoencoder restores emoji
and scenes of the concepts in `bundled/held_out.txt`; over `--num_prompts` names of trained
concepts, how often the picture's own concept is among the 10 nearest of all real ones; and per kind
of modifier, over `--per_kind` sentences each, how often the probe finds what the sentence asks for.
`contact-sheet.png` shows 64 of the sentences, for a person to judge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bundled.base_judge import judge_base

ROOT = Path(__file__).parents[1]
PROBE = ROOT / "assets" / "emoji-probe" / "probe.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run_dir = ROOT / "runs" / "base"
    parser.add_argument("--base_dir", type=Path, default=ROOT / "assets" / "emoji-sd")
    parser.add_argument("--evaluator_dir", type=Path, default=ROOT / "assets" / "emoji-clip")
    parser.add_argument("--run_dir", type=Path, default=run_dir, help="holds the packages")
    parser.add_argument("--probe", type=Path, default=PROBE)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "evaluate-base")
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--per_kind", type=int, default=40)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=None, help="(the base's own)")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--scheduler", default=None, help="DDIM, Euler, DPM++ 2M, … (the base's)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    found = judge_base(**vars(args))
    (args.output_dir / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
