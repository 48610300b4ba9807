"""Does alignment tell a followed prompt from an ignored one?

    python scripts/bench_alignment.py --output alignment.json

On the true pictures of all subjects in scenes, and on what the bundled base generates with and
without the bundled examples, judged by the probe; once by the cosine of picture and prompt alone,
and once with the subject introduced to the evaluator, which is what every command reports.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sdatoms.bench.alignment import judge_generated, judge_true
from sdatoms.diffusion.open import load_base
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.probe import load_probe
from sdatoms.evaluation.truth import list_truths
from sdatoms.storage import find_assets, write_whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--subjects", nargs="+", default=None, help="(default: all examples)")
    parser.add_argument("--output", type=Path, default=None, help="JSON")
    args = parser.parse_args()
    evaluator, folder = load_evaluator(), find_assets() / "examples"
    files = [(name, folder / f"{name}.safetensors") for name in args.subjects or list_truths()]
    files = [(name, path) for name, path in files if path.is_file()]
    report = lambda text: print(text, flush=True)
    facts = {
        "true pictures": judge_true(evaluator),
        "generated": judge_generated(
            load_base(), files, evaluator, load_probe(), args.seeds, report=report
        ),
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if args.output:
        write_whole(args.output, (text + "\n").encode())


if __name__ == "__main__":
    main()
