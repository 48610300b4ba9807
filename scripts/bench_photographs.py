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
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdatoms.diffusion.pipeline import load_base
from sdatoms.evaluation.evaluator import Evaluator, load_evaluator
from sdatoms.evaluation.metrics import measure_fidelity
from sdatoms.pictures import draw_grid, find_pictures, read_picture, to_tensor
from sdatoms.storage import write_whole
from sdatoms.training.buckets import cut_picture, fit_picture

ALIVE = ("cat", "dog")
"""Classes that take the preset `pet`; others take `object`."""
WAYS: dict[str, tuple[str, ...]] = {
    "nothing kept": ("--no-with_prior_preservation",),
    "class kept by prediction": (),
    "class kept by pictures": ("--prior_preservation_mode", "images", "--num_class_images", "24"),
    "new word, text encoder": (
        "--train_text_encoder",
        "--train_text_encoder_ti",
        "--token_abstraction",
        "<it>",
    ),
}
"""Way → what it gives the command beside its preset."""


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
    args.output.parent.mkdir(parents=True, exist_ok=True)
    asked = {"max_train_steps": args.max_train_steps, "threads": args.threads}
    found = json.loads(args.output.read_text()) if args.output.is_file() else {}
    facts = found if asked.items() <= found.items() else asked | {"subjects": {}}
    classes = read_classes(args.photographs)
    evaluator = load_evaluator()
    for subject in args.subjects:
        folder = args.photographs / subject
        about = facts["subjects"].setdefault(subject, {"ways": {}})
        about |= {"class": classes.get(subject, name_class(subject))}
        pictures = [read_picture(path) for path in find_pictures(folder)[0]]
        back = give_back(pictures)
        about |= set_bounds(folder, args.photographs, pictures, back, evaluator)
        for way in args.ways:
            if way not in about["ways"]:
                about["ways"][way], samples = run_way(folder, about["class"], way, args)
                rows = {"photographs": pictures[:6], "autoencoder": back[:6], **samples}
                name = f"{args.output.stem}-{subject}-{list(WAYS).index(way)}.png"
                grid = draw_grid(list(rows.values()), list(rows), cell=96)
                grid.save(args.output.with_name(name))
                print(subject, way, json.dumps(about["ways"][way]), file=sys.stderr)
            write_whole(args.output, (json.dumps(facts, indent=2) + "\n").encode())
    print(write_table(facts))


def read_classes(folder: Path) -> dict[str, str]:
    """Subject → class, from the lines `subject,class` of DreamBooth's own list."""
    path = folder / "prompts_and_classes.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r"^(\w+),([\w ]+)$", text, re.M))


def name_class(subject: str) -> str:
    return re.sub(r"[\d_]+", " ", subject).strip()


def set_bounds(
    folder: Path,
    others: Path,
    pictures: Sequence[Image.Image],
    back: Sequence[Image.Image],
    evaluator: Evaluator,
) -> dict[str, float]:
    """What fidelity can be: lowest for other subjects, highest for the pictures themselves; `back`
    is what the autoencoder makes of them."""
    styles = evaluator.embed_styles(pictures)
    strange = [
        read_picture(path)
        for place in sorted(others.iterdir())
        if place.is_dir() and place != folder
        for path in find_pictures(place)[0]
    ]
    bounds = {"themselves": measure_fidelity(styles)}
    if strange:
        bounds["other subjects"] = measure_fidelity(evaluator.embed_styles(strange), styles)
    bounds["autoencoder"] = measure_fidelity(evaluator.embed_styles(back), styles)
    return {name: round(float(values.mean()), 4) for name, values in bounds.items()}


@torch.no_grad()
def give_back(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures cut as for training, through the bundled base's autoencoder and back."""
    pipe = load_base(device="cpu")
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    found = []
    for picture in pictures:
        cut = cut_picture(picture, fit_picture(*picture.size, [(side, side)]))
        latents = pipe.vae.encode(to_tensor(cut)[None]).latent_dist.mean
        found += pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)
    return found


def run_way(
    folder: Path, kind: str, way: str, args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """One run of the command, and its samples: the base's, and the chosen step's."""
    word = "<it>" if "--train_text_encoder_ti" in WAYS[way] else "sks"
    half = str(max(1, args.max_train_steps // 2))
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "-m", "sdatoms", "train"]
        command += ["--preset", "pet" if kind in ALIVE else "object", *WAYS[way]]
        command += ["--instance_data_dir", str(folder), "--output_dir", run]
        command += ["--instance_prompt", f"a {word} {kind}", "--class_prompt", f"a {kind}"]
        command += ["--max_train_steps", str(args.max_train_steps), "--validation_steps", half]
        if word == "<it>":
            command += ["--initializer_concept", kind]
        limits = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
        began, spent = time.time(), read_processor()
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | limits)
        seconds, used = time.time() - began, read_processor() - spent
        report = json.loads((Path(run) / "report.json").read_text())
        step = f"step-{report['chosen_step']:06d}"
        samples = {
            name: [read_picture(path) for path in sorted((Path(run) / "samples").glob(f"{at}-*"))]
            for name, at in (("base", "base"), (way, step))
        }
    kept = ("parameters", "bytes", "peak_memory_bytes", "chosen_step", "class_pictures")
    row = {"seconds": round(seconds, 1), "core_seconds": round(used, 1)}
    row |= {key: report[key] for key in kept}
    metrics = report["metrics"]
    return row | {"before": metrics["base"], "after": metrics[step]}, samples


def read_processor() -> float:
    """Processor seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_table(facts: dict[str, Any]) -> str:
    """The run as a table in Markdown."""
    lines = [
        "| subject | way | core seconds | peak memory | file | fidelity | alignment | drift |",
        "|---" * 8 + "|",
    ]
    for subject, about in facts["subjects"].items():
        for way, row in about["ways"].items():
            moves = " | ".join(
                f"{row['before'][key]:.3f} → {row['after'][key]:.3f}"
                for key in ("fidelity", "alignment")
            )
            lines.append(
                f"| {subject} | {way} | {row['core_seconds']:.0f} | "
                f"{row['peak_memory_bytes'] / 1e9:.2f} GB | {row['bytes'] / 1e6:.1f} MB | {moves} "
                f"| {row['after']['drift']:.3f} |"
            )
        bounds = ", ".join(
            f"{name} {about[name]:.3f}"
            for name in ("themselves", "other subjects", "autoencoder")
            if name in about
        )
        lines.append(f"| {subject} | fidelity of photographs: {bounds} | | | | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
