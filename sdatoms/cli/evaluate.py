"""`sdatoms evaluate`: its flags, and what it says of the scores."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdatoms.cli.base import add_base_flags, open_base
from sdatoms.cli.report import check_report, write_report
from sdatoms.cli.sampling import (
    add_sampling_flags,
    add_size_flags,
    check_size,
    read_sampling,
)
from sdatoms.cli.score_table import draw_checks, draw_scores
from sdatoms.errors import AtomError

if TYPE_CHECKING:
    from sdatoms.evaluation.rows import Row

__all__ = [
    "add_evaluate",
    "name_files",
    "run_evaluate",
]

TRUE_COLUMNS = ("truth", "error", "followed")
"""Measured where the true pictures of the prompts are known."""


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="atom files, one row each")
    parser.add_argument(
        "--subject",
        default=None,
        metavar="DIR",
        help="folder of the pictures trained on, or a bundled subject's name; without it there is "
        "no fidelity",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to generate; may be given several times (default: those whose true pictures are "
        "bundled, else five made from the trigger)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=None,
        help="pictures a prompt (default: 4; 1 of prompts whose true pictures are bundled)",
    )
    parser.add_argument(
        "--strength", type=float, default=1.0, help="strength of every file (default: 1.0)"
    )
    add_base_flags(parser)
    parser.add_argument(
        "--evaluator",
        default=None,
        help="clip or dinov2, from the hub's local cache or the hub, or a CLIP model, folder or "
        "hub id (default: the bundled)",
    )
    parser.add_argument(
        "--style_evaluator",
        default=None,
        help="dinov2, clip, or a vision model, folder or hub id, for fidelity, diversity and drift",
    )
    add_sampling_flags(parser)
    add_size_flags(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="pictures at once (default: 8)")
    parser.add_argument(
        "--report",
        default=None,
        metavar="FILE",
        help="also write a row to send back, as FILE.md and FILE.json: base, settings, measures, "
        "card, minutes; no prompts, pictures or folders",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_evaluate(args: argparse.Namespace) -> None:
    """Score atom files: fidelity, alignment, diversity, drift, and rows to check them by."""
    from sdatoms.atoms.strengths import check_number
    from sdatoms.diffusion.open import pick_device
    from sdatoms.diffusion.sizes import describe_choice, fit_size
    from sdatoms.evaluation.evaluator import load_evaluator
    from sdatoms.evaluation.scores import evaluate
    from sdatoms.evaluation.truth import choose_prompts, find_truth
    from sdatoms.files.reader import read_atoms
    from sdatoms.training.report import name_device

    for flag in ("seeds", "batch_size"):
        count = getattr(args, flag)
        if count is not None and count < 1:
            raise AtomError(f"--{flag} is {count}; it takes at least 1")
    strength = check_number(args.strength, "--strength")
    places = check_report(args.report) if args.report else None
    painting = read_sampling(args)
    check_size(args)
    files = name_files([(path, read_atoms(path)) for path in args.files])
    subject = find_subject(args.subject) if args.subject else None
    trigger = files[0][1].metadata.get("trigger", "")
    truth = find_truth(subject)
    prompts = args.prompt or choose_prompts(truth, trigger)
    known = truth is not None and any(n is not None for n in truth.find(prompts))
    seeds = args.seeds or (1 if known and not args.prompt else 4)
    if not prompts:
        raise AtomError(f"{args.files[0]!r} names no trigger to write prompts from; give --prompt")
    report = lambda text: print(text, file=sys.stderr)
    if subject and not known:
        what = "these prompts" if truth else repr(args.subject)
        report(f"no true pictures are known of {what}: no truth, error and followed")
    evaluator = load_evaluator(args.evaluator, args.style_evaluator, device=pick_device())
    pipe = open_base(args)
    size = fit_size(pipe, args.width, args.height)
    if chosen := describe_choice((args.width, args.height), size):
        report(chosen)
    rows = evaluate(
        pipe,
        files,
        evaluator,
        prompts=prompts,
        seeds=range(seeds),
        subject=subject,
        strength=strength,
        batch_size=args.batch_size,
        width=size[0],
        height=size[1],
        **painting,
        report=report,
    )
    if places:
        write_report(
            places,
            list(zip(map(Path, args.files), (file for _, file in files), strict=True)),
            rows,
            evaluator=evaluator.name,
            prompts=len(prompts),
            seeds=seeds,
            card=name_device(),
        )
        report(f"a row to send back is in {places[0]} and {places[1]}")
    if args.json:
        facts = {
            "evaluator": evaluator.name,
            "base": args.pretrained_model_name_or_path or "sdatoms/emoji-sd",
            "subject": str(subject) if subject else None,
            "prompts": prompts,
            "seeds": seeds,
            "parameters": {name: file.num_parameters for name, file in files},
            "rows": [describe_row(row, known) for row in rows],
        }
        print(json.dumps(facts))
        return
    print(describe_scores(rows, len(prompts), seeds))


def describe_scores(rows: list[Row], prompts: int, seeds: int) -> str:
    """What was measured, how good it is, and by what one sees whether to believe it."""
    asked = f"{prompts} prompt{'' if prompts == 1 else 's'}"
    times = f"{seeds} seed{'' if seeds == 1 else 's'}"
    text = f"On {asked} with {times} each:\n\n{draw_scores(rows)}"
    if checks := draw_checks(rows):
        text += f"\n\nChecks, of pictures whose scores one knows how to order:\n{checks}"
    return text


def describe_row(row: Row, known: bool) -> dict[str, Any]:
    """A row as JSON; without true pictures it has no figures by them."""
    facts = asdict(row)
    return facts if known else {k: v for k, v in facts.items() if k not in TRUE_COLUMNS}


def name_files(files: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Rows are called by the file's stem, or by its whole path where two stems are the same."""
    stems = [Path(path).stem for path, _ in files]
    names = [p if stems.count(Path(p).stem) > 1 else Path(p).stem for p, _ in files]
    for name in names:
        if names.count(name) > 1:
            raise AtomError(f"the atom file {name!r} was given twice; each file takes one row")
    return [(name, file) for name, (_, file) in zip(names, files, strict=True)]


def find_subject(text: str) -> Path:
    from sdatoms.pictures import find_pictures
    from sdatoms.storage import find_assets

    bundled = find_assets() / "subjects" / text
    folder = bundled if not Path(text).exists() and bundled.is_dir() else Path(text)
    find_pictures(folder)  # refuses what holds none before any model is opened
    return folder
